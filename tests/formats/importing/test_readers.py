"""Every layout is imported with the numbers of its source."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    ConvNextImageProcessorPil,
    LlavaForConditionalGeneration,
    ResNetConfig,
    ResNetForImageClassification,
)

from caldera.errors import ModelFormatError, UsageError
from caldera.formats.model_folder import load_model_folder
from caldera.images.anyres import SINGLE_VIEW
from caldera.model.bundle import LlavaBundle
from tests.formats.conftest import (
    WORDS,
    Weights,
    Write,
    hf_name,
    original_config,
    random_projector,
    read_torch_files,
    run_import,
)


@torch.no_grad()
def logits(assistant: LlavaBundle, ids: Tensor, pixels: Tensor) -> Tensor:
    """Return caldera's logits."""
    embedded = assistant.model.embed(ids, pixels, [SINGLE_VIEW] * len(pixels))
    return assistant.model.language(inputs_embeds=embedded).logits


@pytest.mark.parametrize("names", ["as written", "classic", "in memory"])
def test_llava_hf_gives_transformers_logits(tmp_path: Path, llava_hf: Path, names: str) -> None:
    """Under all three sets of names, the imported model gives transformers' own logits, to 1e-5."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(llava_hf)
    image_id = model.config.image_token_index
    ids = torch.tensor([[1, 40, *[image_id] * 9, 41, 42]])
    pixels = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels).logits
    file = llava_hf / "model.safetensors"
    if names == "in memory":
        state = {name: weight.contiguous() for name, weight in model.state_dict().items()}
        assert "model.language_model.norm.weight" in state
        save_file(state, file)
    if names == "classic":
        save_file({_classic(name): weight for name, weight in load_file(file).items()}, file)

    run_import(tmp_path / "out", source=llava_hf)

    loaded = load_model_folder(tmp_path / "out")
    torch.testing.assert_close(logits(loaded, ids, pixels), expected, atol=1e-5, rtol=0)
    assert loaded.card.template == "vicuna_v1"
    assert loaded.card.image_aspect == "square"


def _classic(name: str) -> str:
    """Return the name of a weight in llava-hf's folders of 2023."""
    rest = name.removeprefix("vision_tower.").removeprefix("vision_model.")
    return f"vision_tower.vision_model.{rest}" if name.startswith("vision_tower.") else name


def test_an_original_folder_keeps_every_number(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """Every weight gets its new name; embedding tables grow by their mean row, to a multiple of 64."""
    folder = write_original()

    report = run_import(tmp_path / "out", source=folder, vision=clip_folder)

    written = load_file(tmp_path / "out" / "model.safetensors")
    original = read_torch_files(folder)
    for name, weight in original.items():
        imported = written[hf_name(name)]
        assert torch.equal(imported[: len(weight)], weight), name
        assert imported.dtype == torch.float16
    table = written["language_model.model.embed_tokens.weight"]
    assert len(table) == 384
    mean = original["model.embed_tokens.weight"].float().mean(dim=0)
    torch.testing.assert_close(table[WORDS:], mean.half().expand(384 - WORDS, -1))
    tower = load_file(clip_folder / "model.safetensors")
    assert {name for name in written if name.startswith("vision_tower.")} == {
        f"vision_tower.{name}" for name in tower if "position_ids" not in name
    }
    assert report.layout == "full"
    loaded = load_model_folder(tmp_path / "out")
    assert loaded.tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [WORDS, WORDS + 1]
    assert loaded.card.image_aspect == "pad"
    assert (tmp_path / "out" / "tokenizer.model").is_file()
    assert set(loaded.card.source_digests) == {"source", "vision"}


def test_an_imported_folder_loads_in_transformers(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """Transformers' own class loads the folder without a missing or unexpected weight, and gives the same logits."""
    run_import(tmp_path / "out", source=write_original(), vision=clip_folder, dtype="float32")
    loading: Any = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    model, report = loading
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.tensor([[1, 40, *[WORDS] * 9, 41, 42]])
    pixels = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels).logits
    loaded = load_model_folder(tmp_path / "out")
    torch.testing.assert_close(logits(loaded, ids, pixels), expected, atol=1e-5, rtol=0)


def test_a_stage_1_projector_is_joined_with_its_base(
    tmp_path: Path, vicuna_folder: Path, clip_folder: Path
) -> None:
    """config.json and mm_projector.bin are imported with the base's weights and tokenizer."""
    folder = tmp_path / "stage1"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(original_config()))
    torch.save(random_projector(), folder / "mm_projector.bin")

    with pytest.raises(UsageError, match="give its folder with --base"):
        run_import(tmp_path / "out", source=folder, vision=clip_folder)
    report = run_import(
        tmp_path / "out", source=folder, base=vicuna_folder, vision=clip_folder, template="plain"
    )

    assert report.layout == "projector"
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in {**random_projector(), **read_torch_files(vicuna_folder)}.items():
        assert torch.equal(written[hf_name(name)][: len(weight)], weight), name
    assert load_model_folder(tmp_path / "out").card.template == "plain"


LAYER = "model.layers.1.mlp.down_proj"


def write_adapter(folder: Path, rank: int = 3, **settings: object) -> Weights:
    """Write an adapter as LLaVA's own code does, and return its factors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(original_config()))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(15)
    stem = f"base_model.model.{LAYER}"
    factors = {
        f"{stem}.lora_A.weight": torch.randn(rank, 22),
        f"{stem}.lora_B.weight": torch.randn(12, rank),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    torch.save(
        random_projector("base_model.model.model.mm_projector."),
        folder / "non_lora_trainables.bin",
    )
    return factors


def test_an_adapter_is_merged_into_its_base(
    tmp_path: Path, vicuna_folder: Path, clip_folder: Path
) -> None:
    """The layer is W + alpha / r * B A, rounded once; other weights are the base's, the projector the adapter's."""
    folder = tmp_path / "adapter"
    down, up = write_adapter(folder).values()

    report = run_import(tmp_path / "out", source=folder, base=vicuna_folder, vision=clip_folder)

    assert report.layout == "lora"
    written = load_file(tmp_path / "out" / "model.safetensors")
    base = read_torch_files(vicuna_folder)
    expected = (base[f"{LAYER}.weight"].double() + 2 * up.double() @ down.double()).half()
    torch.testing.assert_close(written[f"language_model.{LAYER}.weight"], expected)
    other = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(written[f"language_model.{other}"], base[other])
    for name, weight in random_projector().items():
        assert torch.equal(written[hf_name(name)], weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "has use_dora True, which cannot be merged"),
        ({"bias": "all"}, "has bias 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa_niter_16"}, "has init_lora_weights 'pissa_niter_16'"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"r": 5}, r"factors of shapes .* for model.layers.1.mlp.down_proj; rank 5"),
        ({"r": 0}, "they must be numbers"),
    ],
)
def test_an_adapter_of_another_kind_is_rejected(
    tmp_path: Path,
    vicuna_folder: Path,
    clip_folder: Path,
    settings: dict[str, object],
    message: str,
) -> None:
    """The message names the setting, and nothing is written."""
    write_adapter(tmp_path / "adapter", **{"rank": 3, **settings})  # type: ignore[arg-type]
    with pytest.raises(ModelFormatError, match=message):
        run_import(
            tmp_path / "out",
            source=tmp_path / "adapter",
            base=vicuna_folder,
            vision=clip_folder,
        )
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_its_projector_is_rejected(
    tmp_path: Path, vicuna_folder: Path, clip_folder: Path
) -> None:
    """A checkpoint from the middle of a LoRA run lacks the file that is written at its end."""
    write_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "non_lora_trainables.bin").unlink()
    with pytest.raises(ModelFormatError, match=r"has no non_lora_trainables\.bin"):
        run_import(
            tmp_path / "out", source=tmp_path / "adapter", base=vicuna_folder, vision=clip_folder
        )


def test_a_delta_is_added_to_its_base(
    tmp_path: Path, write_original: Write, vicuna_folder: Path, clip_folder: Path
) -> None:
    """The weights of both are added, a longer table where both have rows; the projector is the delta's."""
    base = read_torch_files(vicuna_folder)
    longer = {
        name: torch.cat([base[name], base[name][:5]]) for name in base if len(base[name]) == WORDS
    }
    folder = write_original(longer, vocab_size=WORDS + 5)

    report = run_import(
        tmp_path / "out", source=folder, base=vicuna_folder, vision=clip_folder, layout="delta"
    )

    assert report.layout == "delta"
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in base.items():
        assert torch.equal(written[hf_name(name)][: len(weight)], weight + weight), name
    for name, weight in longer.items():
        assert torch.equal(written[hf_name(name)][WORDS : WORDS + 5], weight[WORDS:])
    for name, weight in random_projector().items():
        assert torch.equal(written[hf_name(name)], weight)
    with pytest.raises(UsageError, match=r"remove --base .*--delta"):
        run_import(tmp_path / "other", source=folder, base=vicuna_folder, vision=clip_folder)


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear", "file"])
def test_two_towers_are_joined(
    tmp_path: Path, vicuna_folder: Path, clip_folder: Path, projector: str
) -> None:
    """The projector is fresh or a file's; a note says if transformers cannot express it."""
    chosen = projector
    if projector == "file":
        chosen = str(tmp_path / "mm_projector.bin")
        torch.save(random_projector(), chosen)

    report = run_import(
        tmp_path / "out", vision=clip_folder, language=vicuna_folder, projector=chosen
    )

    metadata = load_model_folder(tmp_path / "out").card
    assert metadata.projector == ("linear" if projector == "linear" else "mlp2x_gelu")
    noted = any("cannot express a single linear projector" in note for note in report.notes)
    assert noted == (projector == "linear")
    if projector == "file":
        written = load_file(tmp_path / "out" / "model.safetensors")
        for name, weight in random_projector().items():
            assert torch.equal(written[hf_name(name)], weight)


def test_the_linear_projector_of_llava_v1_is_imported(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """A folder without mm_projector_type has one linear layer, the default of LLaVA v1's code."""
    folder = write_original()
    for file in folder.glob("*.bin"):
        weights = torch.load(file, weights_only=True)
        torch.save({k: v for k, v in weights.items() if "mm_projector" not in k}, file)
    config = original_config(model_type="llava", image_aspect_ratio=None)
    del config["mm_projector_type"]
    (folder / "config.json").write_text(json.dumps(config))
    extra = {
        "model.mm_projector.weight": torch.ones(12, 10),
        "model.mm_projector.bias": torch.ones(12),
    }
    index = folder / "pytorch_model.bin.index.json"
    weight_map = {
        k: v for k, v in json.loads(index.read_text())["weight_map"].items() if "mm_" not in k
    }
    last = max(weight_map.values())
    torch.save({**torch.load(folder / last, weights_only=True), **extra}, folder / last)
    index.write_text(json.dumps({"weight_map": {**weight_map, **dict.fromkeys(extra, last)}}))

    report = run_import(tmp_path / "out", source=folder, vision=clip_folder)

    assert load_model_folder(tmp_path / "out").card.projector == "linear"
    assert any("cannot express" in note for note in report.notes)


@pytest.mark.parametrize(("multiple", "rows"), [(None, 384), (1, WORDS + 2), (8, 336)])
@pytest.mark.parametrize("joined", [True, False])
def test_the_padding_of_the_vocabulary_is_optional(
    tmp_path: Path,
    write_original: Write,
    clip_folder: Path,
    vicuna_folder: Path,
    multiple: int | None,
    rows: int,
    joined: bool,
) -> None:
    """Tables grow to a multiple of 64 by default, by two rows with 1; the rows of the old tokens stay."""
    towers = {"vision": clip_folder, "language": vicuna_folder}
    original = {"source": write_original(), "vision": clip_folder}
    settings = towers if joined else original
    run_import(tmp_path / "out", vocab_multiple=multiple, **settings)
    language = load_model_folder(tmp_path / "out").model.language
    source = torch.load(vicuna_folder / "pytorch_model.bin", weights_only=True)
    assert language.config.vocab_size == rows
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table = language.state_dict()[name]  # (tokens, width)
        assert len(table) == rows
        assert torch.equal(table[:WORDS], source[name].float())


def test_the_padding_of_a_complete_vocabulary_is_not_changed(
    tmp_path: Path, llava_hf: Path
) -> None:
    """A llava-hf folder has its rows already; a multiple below 1 is none."""
    with pytest.raises(UsageError, match="remove --vocab-multiple"):
        run_import(tmp_path / "out", source=llava_hf, vocab_multiple=1)
    with pytest.raises(UsageError, match="--vocab-multiple is 0; it must be from 1 to 65,536"):
        run_import(tmp_path / "out", source=llava_hf, vocab_multiple=0)


def test_the_tower_of_a_classifier_is_joined(tmp_path: Path, vicuna_folder: Path) -> None:
    """A published ResNet has a head, and its tower's weights have a prefix; the projector has its features' width."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 14, 16], depths=[1] * 4)
    classifier = ResNetForImageClassification(config)
    classifier.save_pretrained(tmp_path / "resnet")
    ConvNextImageProcessorPil(size={"shortest_edge": 64}).save_pretrained(tmp_path / "resnet")
    run_import(
        tmp_path / "out", vision=tmp_path / "resnet", language=vicuna_folder, dtype="float32"
    )
    vision = load_model_folder(tmp_path / "out").model.vision
    assert (vision.patches, vision.width) == (16, 14)
    own = classifier.resnet.state_dict()
    for name, tensor in vision.tower.state_dict().items():
        assert tensor.dtype == own[name].dtype
        assert torch.equal(tensor, own[name])


def test_the_shipped_towers_are_joined_by_name(tmp_path: Path) -> None:
    """A tied head is stored once, and for an unknown name the message suggests the nearest."""
    run_import(tmp_path / "out", vision=Path("scenes-vit"), language=Path("scenes-llama"))
    assert load_model_folder(tmp_path / "out").model.vision.patches > 9
    with pytest.raises(UsageError, match="did you mean 'scenes-llama'"):
        run_import(tmp_path / "b", vision=Path("scenes-vit"), language=Path("scenes-lama"))


def test_a_tied_head_is_stored_once(
    tmp_path: Path, write_original: Write, clip_folder: Path, vicuna_folder: Path
) -> None:
    """A head that the config ties to the embeddings, and that equals them, is omitted on disk and tied when loaded."""
    table = read_torch_files(vicuna_folder)["model.embed_tokens.weight"]
    folder = write_original({"lm_head.weight": table}, tie_word_embeddings=True)
    run_import(tmp_path / "out", source=folder, vision=clip_folder)
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    language = load_model_folder(tmp_path / "out").model.language
    assert torch.equal(language.lm_head.weight, language.model.embed_tokens.weight)
