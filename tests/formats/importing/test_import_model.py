"""Models of every layout come in as they are, or not at all: what does not fit is named, and nothing is written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from caldera.errors import CalderaError, ModelFormatError, UsageError
from caldera.formats.importing.import_model import ModelImportReport, import_model
from caldera.formats.importing.request import ImportRequest
from caldera.formats.model_folder import load_model_folder
from caldera.formats.tokenizer import load_tokenizer
from caldera.images.anyres import SINGLE_VIEW
from caldera.model.assistant import LlavaBundle
from caldera.progress import NoProgress
from tests.recipes.conftest import (
    WORDS,
    Weights,
    Write,
    original_config,
    random_projector,
    tower_inside,
)

LARGE_FOLDER = Path(__file__).parents[2] / "benchmarks" / "large_folder.py"


def bring(out: Path, **what: Any) -> ModelImportReport:  # noqa: ANN401 - fields of Import
    """Import a model, with LLaVA-1.5's template where none is named."""
    return import_model(ImportRequest(**{"template": "vicuna_v1", **what}), out, NoProgress())


def theirs(name: str) -> str:
    """Return llava-hf's name of an original weight, by the table of spec 8.2."""
    for old, new in {
        "model.mm_projector.0.": "multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "multi_modal_projector.linear_2.",
        "model.vision_tower.vision_tower.": "vision_tower.",
    }.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return f"language_model.{name}"


def original_weights(folder: Path) -> Weights:
    """Read all torch files of a folder by torch's own reader."""
    found: Weights = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        found |= torch.load(file, weights_only=True)
    return {name: each for name, each in found.items() if "inv_freq" not in name}


@torch.no_grad()
def logits(assistant: LlavaBundle, ids: Tensor, pixels: Tensor) -> Tensor:
    """Return our model's logits."""
    embedded = assistant.model.embed(ids, pixels, [SINGLE_VIEW] * len(pixels))
    return assistant.model.language(inputs_embeds=embedded).logits


@pytest.mark.parametrize("names", ["as written", "classic", "in memory"])
def test_a_llava_hf_folder_gives_transformers_own_logits(
    tmp_path: Path, llava_hf: Path, names: str
) -> None:
    """Under all three sets of names, the model that comes in says what transformers' own does, to 1e-5."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(llava_hf)
    slot = model.config.image_token_index
    ids = torch.tensor([[1, 40, *[slot] * 9, 41, 42]])
    pixels = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels).logits
    file = llava_hf / "model.safetensors"
    if names == "in memory":
        state = {name: each.contiguous() for name, each in model.state_dict().items()}
        assert "model.language_model.norm.weight" in state
        save_file(state, file)
    if names == "classic":
        save_file({_classic(name): each for name, each in load_file(file).items()}, file)

    bring(tmp_path / "out", source=llava_hf)

    loaded = load_model_folder(tmp_path / "out")
    torch.testing.assert_close(logits(loaded, ids, pixels), expected, atol=1e-5, rtol=0)
    assert loaded.card.template == "vicuna_v1"
    assert loaded.card.image_aspect == "square"


def _classic(name: str) -> str:
    """Return a name as llava-hf's folders of 2023 have it."""
    rest = name.removeprefix("vision_tower.").removeprefix("vision_model.")
    return f"vision_tower.vision_model.{rest}" if name.startswith("vision_tower.") else name


def test_a_template_of_a_folder_is_neither_run_nor_kept(tmp_path: Path, llava_hf: Path) -> None:
    """The program in its chat template is in no file of the new folder."""
    assert any("cycler" in each.read_text() for each in llava_hf.glob("*.jinja"))
    bring(tmp_path / "out", source=llava_hf)
    there = [each.read_bytes() for each in (tmp_path / "out").iterdir()]
    assert not any(b"cycler" in each for each in there)


def test_a_whole_original_comes_in_number_for_number(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """Every weight is there under its new name; tables of words have grown by the mean of their rows, to 64s."""
    folder = write_original()

    done = bring(tmp_path / "out", source=folder, vision=clip_folder)

    written = load_file(tmp_path / "out" / "model.safetensors")
    given = original_weights(folder)
    for name, each in given.items():
        found = written[theirs(name)]
        assert torch.equal(found[: len(each)], each), name
        assert found.dtype == torch.float16
    table = written["language_model.model.embed_tokens.weight"]
    assert len(table) == 384
    mean = given["model.embed_tokens.weight"].float().mean(dim=0)
    torch.testing.assert_close(table[WORDS:], mean.half().expand(384 - WORDS, -1))
    tower = load_file(clip_folder / "model.safetensors")
    assert {name for name in written if name.startswith("vision_tower.")} == {
        f"vision_tower.{name}" for name in tower if "position_ids" not in name
    }
    assert done.kind == "full"
    loaded = load_model_folder(tmp_path / "out")
    assert loaded.tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [WORDS, WORDS + 1]
    assert loaded.card.image_aspect == "pad"
    assert (tmp_path / "out" / "tokenizer.model").is_file()
    assert set(loaded.card.source_digests) == {"source", "vision"}


def test_what_came_in_loads_in_transformers(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """Transformers' own class takes the folder without a missing or surplus weight, and says the same."""
    bring(tmp_path / "out", source=write_original(), vision=clip_folder, dtype="float32")
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


def test_the_fast_tokenizer_says_what_sentencepiece_says(
    tmp_path: Path, write_original: Write, clip_folder: Path, words_folder: Path
) -> None:
    """Ids of the new tokenizer are those of SentencePiece's own, behind the start mark."""
    import sentencepiece

    bring(tmp_path / "out", source=write_original(), vision=clip_folder)
    own = sentencepiece.SentencePieceProcessor(model_file=str(words_folder / "tokenizer.model"))
    tokenizer = load_model_folder(tmp_path / "out").tokenizer
    for text in ("USER: what is there? ASSISTANT: a dog", "the user's\n\ncat é 12", "\na"):
        assert tokenizer(text)["input_ids"] == [1, *own.encode(text)]
        assert tokenizer.decode(own.encode(text)) == text


@pytest.mark.parametrize("trained", [True, False])
def test_the_folders_own_tower_is_used_only_if_it_was_trained(
    tmp_path: Path, write_original: Write, clip_folder: Path, trained: bool
) -> None:
    """With unfreeze_mm_vision_tower the tower is the folder's, else that of --vision; either is said."""
    inside = tower_inside(clip_folder, factor=3)
    folder = write_original(inside, unfreeze_mm_vision_tower=trained)

    done = bring(tmp_path / "out", source=folder, vision=clip_folder)

    name = "vision_tower.vision_model.embeddings.class_embedding"
    written = load_file(tmp_path / "out" / "model.safetensors")[name]
    own = load_file(clip_folder / "model.safetensors")[name.removeprefix("vision_tower.")]
    assert torch.equal(written, own * (3 if trained else 1))
    assert any(("own, which were" if trained else "are not used") in note for note in done.notes)
    with pytest.raises(UsageError, match="give --vision"):
        bring(tmp_path / "other", source=folder)


def test_what_stage_1_left_is_joined_with_its_base(
    tmp_path: Path, vicuna_folder: Path, clip_folder: Path
) -> None:
    """config.json and mm_projector.bin come in with the base's weights and tokenizer."""
    folder = tmp_path / "stage1"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(original_config()))
    torch.save(random_projector(), folder / "mm_projector.bin")

    with pytest.raises(UsageError, match="give its folder with --base"):
        bring(tmp_path / "out", source=folder, vision=clip_folder)
    done = bring(
        tmp_path / "out", source=folder, base=vicuna_folder, vision=clip_folder, template="plain"
    )

    assert done.kind == "projector"
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, each in {**random_projector(), **original_weights(vicuna_folder)}.items():
        assert torch.equal(written[theirs(name)][: len(each)], each), name
    assert load_model_folder(tmp_path / "out").card.template == "plain"


LAYER = "model.layers.1.mlp.down_proj"


def write_adapter(folder: Path, rank: int = 3, **settings: object) -> Weights:
    """Write an adapter as LLaVA's own code leaves it, and return its factors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(original_config()))
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(said))
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


def test_an_adapter_is_folded_into_its_base(
    tmp_path: Path, vicuna_folder: Path, clip_folder: Path
) -> None:
    """The layer becomes W + alpha / r * B A, rounded once; all else is the base's, the projector the adapter's."""
    folder = tmp_path / "adapter"
    down, up = write_adapter(folder).values()

    done = bring(tmp_path / "out", source=folder, base=vicuna_folder, vision=clip_folder)

    assert done.kind == "lora"
    written = load_file(tmp_path / "out" / "model.safetensors")
    base = original_weights(vicuna_folder)
    expected = (base[f"{LAYER}.weight"].double() + 2 * up.double() @ down.double()).half()
    torch.testing.assert_close(written[f"language_model.{LAYER}.weight"], expected)
    other = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(written[f"language_model.{other}"], base[other])
    for name, each in random_projector().items():
        assert torch.equal(written[theirs(name)], each)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "has use_dora True, which is not merged"),
        ({"bias": "all"}, "has bias 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa_niter_16"}, "has init_lora_weights 'pissa_niter_16'"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"r": 5}, r"factors of shapes .* for model.layers.1.mlp.down_proj; rank 5"),
        ({"r": 0}, "they must be numbers"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    tmp_path: Path,
    vicuna_folder: Path,
    clip_folder: Path,
    settings: dict[str, object],
    message: str,
) -> None:
    """The setting is named, and nothing is written."""
    write_adapter(tmp_path / "adapter", **{"rank": 3, **settings})  # type: ignore[arg-type]
    with pytest.raises(ModelFormatError, match=message):
        bring(
            tmp_path / "out",
            source=tmp_path / "adapter",
            base=vicuna_folder,
            vision=clip_folder,
        )
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_its_projector_is_refused(
    tmp_path: Path, vicuna_folder: Path, clip_folder: Path
) -> None:
    """A checkpoint from the middle of a LoRA run lacks the file that is written at its end."""
    write_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "non_lora_trainables.bin").unlink()
    with pytest.raises(ModelFormatError, match=r"has no non_lora_trainables\.bin"):
        bring(tmp_path / "out", source=tmp_path / "adapter", base=vicuna_folder, vision=clip_folder)


def test_a_delta_is_added_to_its_base(
    tmp_path: Path, write_original: Write, vicuna_folder: Path, clip_folder: Path
) -> None:
    """Weights of both are added, a longer table where both have rows; the projector is the delta's own (spec 3.6)."""
    base = original_weights(vicuna_folder)
    longer = {
        name: torch.cat([base[name], base[name][:5]]) for name in base if len(base[name]) == WORDS
    }
    folder = write_original(longer, vocab_size=WORDS + 5)

    done = bring(
        tmp_path / "out", source=folder, base=vicuna_folder, vision=clip_folder, kind="delta"
    )

    assert done.kind == "delta"
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, each in base.items():
        assert torch.equal(written[theirs(name)][: len(each)], each + each), name
    for name, each in longer.items():
        assert torch.equal(written[theirs(name)][WORDS : WORDS + 5], each[WORDS:])
    for name, each in random_projector().items():
        assert torch.equal(written[theirs(name)], each)
    with pytest.raises(UsageError, match=r"--base would not be used.* --delta"):
        bring(tmp_path / "other", source=folder, base=vicuna_folder, vision=clip_folder)


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear", "file"])
def test_two_towers_are_joined(
    tmp_path: Path, vicuna_folder: Path, clip_folder: Path, projector: str
) -> None:
    """By a fresh projector or a file's; what transformers cannot express is said."""
    chosen = projector
    if projector == "file":
        chosen = str(tmp_path / "mm_projector.bin")
        torch.save(random_projector(), chosen)

    done = bring(tmp_path / "out", vision=clip_folder, language=vicuna_folder, projector=chosen)

    card = load_model_folder(tmp_path / "out").card
    assert card.projector == ("linear" if projector == "linear" else "mlp2x_gelu")
    said = any("cannot express a single linear projector" in note for note in done.notes)
    assert said == (projector == "linear")
    if projector == "file":
        written = load_file(tmp_path / "out" / "model.safetensors")
        for name, each in random_projector().items():
            assert torch.equal(written[theirs(name)], each)


def test_the_first_llavas_linear_projector_comes_in(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """A folder without mm_projector_type has one linear layer, as LLaVA-1's code has by default."""
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
    where = {k: v for k, v in json.loads(index.read_text())["weight_map"].items() if "mm_" not in k}
    last = max(where.values())
    torch.save({**torch.load(folder / last, weights_only=True), **extra}, folder / last)
    index.write_text(json.dumps({"weight_map": {**where, **dict.fromkeys(extra, last)}}))

    done = bring(tmp_path / "out", source=folder, vision=clip_folder)

    assert load_model_folder(tmp_path / "out").card.projector == "linear"
    assert any("cannot express" in note for note in done.notes)


def test_the_release_with_stage_1s_file_beside_it_is_whole(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """LLaVA-1.5's folders hold mm_projector.bin beside whole weights, whose own projector counts."""
    folder = write_original()
    torch.save({k: v * 7 for k, v in random_projector().items()}, folder / "mm_projector.bin")
    assert bring(tmp_path / "out", source=folder, vision=clip_folder).kind == "full"
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, each in random_projector().items():
        assert torch.equal(written[theirs(name)], each)


def test_what_could_be_several_things_is_asked_for(
    tmp_path: Path, write_original: Write, clip_folder: Path, vicuna_folder: Path
) -> None:
    """An adapter beside whole weights is ambiguous until the user says which is meant."""
    folder = write_original()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        UsageError, match="could be several things: full, lora; say which with --as"
    ):
        bring(tmp_path / "out", source=folder, vision=clip_folder)
    assert bring(tmp_path / "out", source=folder, vision=clip_folder, kind="full").kind == "full"
    with pytest.raises(UsageError, match="is not 'projector': its files are of delta, full, lora"):
        bring(tmp_path / "b", source=folder, base=vicuna_folder, kind="projector")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava_mpt"}, "model_type 'llava_mpt'.* cannot run its MPT"),
        ({"model_type": "llava_qwen"}, "'llava_qwen', which is not imported"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu'"),
        ({"mm_projector_type": "identity"}, "mm_projector_type 'identity'"),
        ({"s2": True}, "has s2 True"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio 'anyres_max_9'"),
        ({"image_aspect_ratio": "anyres"}, "mm_patch_merge_type 'flat'; only spatial_unpad"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer None"),
        ({"mm_hidden_size": None, "text_config": {}}, "layout .text_config."),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "would run code"),
        ({"hidden_size": -12}, "has hidden_size -12; sizes are whole numbers from 1"),
        ({"num_hidden_layers": 10**9}, "has num_hidden_layers 1000000000"),
        ({"n_layer": 10**9}, "has n_layer 1000000000; sizes are whole numbers"),
        ({"num_local_experts": 10**9}, "has num_local_experts 1000000000"),
        ({"vocab_size": 1e30}, "has vocab_size 1e[+]30"),
        ({"rope_theta": float("nan")}, "has rope_theta nan, which is no finite number"),
        (
            {"intermediate_size": 23},
            r"mlp.gate_proj.weight .* shape \(22, 12\); it needs \(23, 12\)",
        ),
        ({"num_attention_heads": 5}, "num_attention_heads|heads"),
        ({"num_hidden_layers": 1}, r"unexpected \['model.layers.1."),
        ({"num_hidden_layers": 3}, r"missing \['model.layers.2."),
        ({"tie_word_embeddings": True}, "differs from them"),
        (
            {"vocab_size": WORDS + 3},
            rf"has shape \({WORDS}, 12\); the config needs {WORDS + 3} rows",
        ),
        (
            {"mm_vision_tower": "openai/clip-vit-large-patch14-336"},
            "is not openai/clip-vit-large-patch14-336: it differs in hidden_size",
        ),
    ],
)
def test_a_config_that_means_something_else_is_refused(
    tmp_path: Path,
    write_original: Write,
    clip_folder: Path,
    changes: dict[str, object],
    message: str,
) -> None:
    """The setting, or the weight it does not fit, is named in one line, and nothing is written (faults E2, E3)."""
    folder = write_original(**changes)
    refused(tmp_path, message, source=folder, vision=clip_folder)


def refused(tmp_path: Path, message: str, **what: Any) -> None:  # noqa: ANN401 - fields of Import
    """Check that a model is refused in one line, with an exit code for it, and nothing is left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CalderaError, match=message) as caught:
        bring(tmp_path / "out", **what)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    assert sorted(tmp_path.iterdir()) == before


def damage(folder: Path, how: str) -> None:
    """Damage an original folder in one way."""
    first, second = sorted(folder.glob("pytorch_model-*.bin"))
    index = folder / "pytorch_model.bin.index.json"
    said = json.loads(index.read_text())
    weights = torch.load(first, weights_only=True)
    match how:
        case "a shard less":
            second.unlink()
        case "a shard cut":
            second.write_bytes(second.read_bytes()[:-400])
        case "outside":
            said["weight_map"]["lm_head.weight"] = "../stolen.bin"
        case "absolute":
            said["weight_map"]["lm_head.weight"] = "/etc/passwd"
        case "link":
            second.replace(folder.parent / "elsewhere.bin")
            second.symlink_to(folder.parent / "elsewhere.bin")
        case "twice":
            torch.save({**torch.load(second, weights_only=True), **weights}, second)
        case "no index of theirs":
            said["weight_map"]["lm_head.weight"] = second.name
    index.write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("a shard less", r"pytorch_model-00002-of-00002\.bin is missing"),
        ("a shard cut", r"pytorch_model-00002-of-00002\.bin is broken or cut"),
        ("outside", r"names '\.\./stolen\.bin', outside the folder; refused"),
        ("absolute", "names '/etc/passwd', outside the folder; refused"),
        ("link", "is a link to .*elsewhere.bin, outside the folder; refused"),
        (
            "twice",
            r"pytorch_model-00002-of-00002\.bin holds lm_head.weight, which pytorch_model-00001",
        ),
        (
            "no index of theirs",
            "has lm_head.weight in pytorch_model-00002.*, but it is in pytorch_model-00001",
        ),
    ],
)
def test_a_damaged_folder_is_refused(
    tmp_path: Path, write_original: Write, clip_folder: Path, how: str, message: str
) -> None:
    """The file or the weight is named (faults E2, E5, E6)."""
    folder = write_original()
    damage(folder, how)
    refused(tmp_path, message, source=folder, vision=clip_folder)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"model.mm_projector.0.weight": torch.zeros(12, 9)},
            r"linear_1.weight of the projector .* \(12, 9\)",
        ),
        (
            {"model.mm_projector.4.weight": torch.zeros(2)},
            r"projector: missing \[\], unexpected \['4.weight'\]",
        ),
        ({"model.image_newline": torch.zeros(12)}, "image_newline"),
        ({"model.extra": torch.zeros(2)}, r"unexpected \['model.extra'\]"),
        ({"optimizer": torch.zeros(2)}, r"hold \['optimizer'\], which belong to no part"),
        (
            {"model.norm.weight": torch.zeros(12, dtype=torch.int8)},
            "norm.weight .* holds torch.int8",
        ),
    ],
)
def test_weights_of_another_model_are_refused(
    tmp_path: Path,
    write_original: Write,
    clip_folder: Path,
    extra: Weights,
    message: str,
) -> None:
    """A surplus weight, another model's projector, quantized numbers: the weight is named (faults E2, E7)."""
    refused(tmp_path, message, source=write_original(extra), vision=clip_folder)


def test_the_hubs_cache_is_read_through_its_links(tmp_path: Path, llava_hf: Path) -> None:
    """Files of a Hugging Face cache are links to blobs beside the snapshot; those are followed, no others."""
    snapshot = tmp_path / "cache" / "snapshots" / "1a2b"
    blobs = tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(llava_hf.iterdir())):
        shutil.copy(file, blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{number:040x}"))
    bring(tmp_path / "out", source=snapshot)
    assert load_model_folder(tmp_path / "out").card.source_digests.keys() == {"source"}


def test_a_linked_tokenizer_is_not_copied(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """A folder that links its `tokenizer.model` to a file of the user's does not get that into what is written."""
    folder = write_original()
    load_tokenizer(folder).save_pretrained(folder)  # what is read stands beside the link
    secret = tmp_path / "secret"
    secret.write_text("not for others")
    (folder / "tokenizer.model").unlink(missing_ok=True)
    (folder / "tokenizer.model").symlink_to(secret)
    refused(
        tmp_path, "is a link to .*secret, outside the folder", source=folder, vision=clip_folder
    )


def test_a_pickle_by_another_name_is_not_opened(tmp_path: Path, llava_hf: Path) -> None:
    """What torch.save wrote is not read as safetensors, whatever its suffix (fault E1)."""
    torch.save({"a": torch.zeros(2)}, llava_hf / "model.safetensors")
    refused(tmp_path, "is a zip archive, as torch.save writes, by another name", source=llava_hf)


def test_nothing_is_replaced(tmp_path: Path, llava_hf: Path) -> None:
    """A folder that stands at --out is left alone."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="exists; choose another --out"):
        bring(tmp_path / "out", source=llava_hf)
    assert os.listdir(tmp_path / "out") == ["mine"]  # noqa: PTH208 - shorter


def test_what_no_folder_says_is_asked_for(
    tmp_path: Path, llava_hf: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Without --template the message lists the names; a wrong name gets the nearest."""
    with pytest.raises(UsageError, match=r"give --template, one of .*plain.*vicuna_v1"):
        bring(tmp_path / "out", source=llava_hf, template=None)
    with pytest.raises(UsageError, match="did you mean 'vicuna_v1'"):
        bring(tmp_path / "out", source=llava_hf, template="vicuna_v2")
    bring(tmp_path / "out", source=llava_hf)
    with pytest.raises(UsageError, match="is a caldera model folder already"):
        bring(tmp_path / "again", source=tmp_path / "out")


def test_a_folders_name_says_nothing(tmp_path: Path, vicuna_folder: Path) -> None:
    """A language model in a folder called llava-lora is a language model."""
    vicuna_folder.replace(tmp_path / "llava-lora")
    with pytest.raises(ModelFormatError, match="has model_type 'llama'; caldera imports"):
        bring(tmp_path / "out", source=tmp_path / "llava-lora")


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run caldera in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "caldera", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_the_command_brings_in_a_model_that_answers(
    tmp_path: Path, write_original: Write, clip_folder: Path, photos: Path
) -> None:
    """Import by the command line, then ask what came in; both end well, the folder's name is all of stdout."""
    done = command(
        "import", write_original(), "--vision", clip_folder, "--template", "vicuna_v1",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert "full: 80 weights" in done.stderr
    for dtype in ("auto", "float32"):
        asked = command(
            "chat", tmp_path / "out", "--image", photos / "1.png", "--prompt", "what is there?",
            "--max-new-tokens", 8, "--dtype", dtype,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr


def test_the_command_refuses_in_one_line(tmp_path: Path, write_original: Write) -> None:
    """Bad input ends with 3 and wrong usage with 2, a line each, and nothing is written."""
    folder = write_original()
    missing = command("import", folder, "--template", "vicuna_v1", "--out", tmp_path / "out")
    assert missing.returncode == 2
    assert "give --vision" in missing.stderr
    damage(folder, "a shard less")
    broken = command("import", folder, "--template", "vicuna_v1", "--out", tmp_path / "out")
    assert broken.returncode == 3
    assert broken.stderr.count("\n") == 1
    assert "Traceback" not in broken.stderr
    assert not (tmp_path / "out").exists()
    assert command("import", "--out", tmp_path / "out").returncode == 2
    assert command("import", folder).returncode == 2


def test_the_shipped_towers_are_joined_by_name(tmp_path: Path) -> None:
    """A tied head is not stored twice, and a name that is no folder gets the nearest."""
    bring(tmp_path / "out", vision=Path("scenes-vit"), language=Path("scenes-llama"))
    assert load_model_folder(tmp_path / "out").model.vision.patches > 9
    with pytest.raises(UsageError, match="did you mean 'scenes-llama'"):
        bring(tmp_path / "b", vision=Path("scenes-vit"), language=Path("scenes-lama"))


def test_a_tied_head_is_stored_once(
    tmp_path: Path, write_original: Write, clip_folder: Path, vicuna_folder: Path
) -> None:
    """A head that its config ties to the embeddings, and that equals them, is left away, and tied again when loaded."""
    table = original_weights(vicuna_folder)["model.embed_tokens.weight"]
    folder = write_original({"lm_head.weight": table}, tie_word_embeddings=True)
    bring(tmp_path / "out", source=folder, vision=clip_folder)
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    language = load_model_folder(tmp_path / "out").model.language
    assert torch.equal(language.lm_head.weight, language.model.embed_tokens.weight)


def test_llava_next_comes_in(tmp_path: Path, llava_next: Path) -> None:
    """Its grids are (height, width) there and (width, height) here; its newline comes along."""
    bring(tmp_path / "out", source=llava_next)
    card = load_model_folder(tmp_path / "out").card
    assert str(card.image_aspect) == "anyres"
    assert card.model_dump()["pinpoints"] == ((12, 6), (6, 18))
    given = load_file(llava_next / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["image_newline"], given["image_newline"])


def test_an_original_with_tiles_comes_in(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """Its grids keep their order, (width, height), and its newline is a weight like others."""
    newline = torch.arange(12).half()
    folder = write_original(
        {"model.image_newline": newline},
        image_aspect_ratio="anyres",
        mm_patch_merge_type="spatial_unpad",
        image_grid_pinpoints=[[12, 6], [6, 18]],
    )
    bring(tmp_path / "out", source=folder, vision=clip_folder)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["image_newline"], newline)
    assert load_model_folder(tmp_path / "out").card.model_dump()["pinpoints"] == ((12, 6), (6, 18))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_grid_pinpoints": [[12, 7]]}, r"\(12, 7\) does not cut into tiles of 6 x 6"),
        ({"image_grid_pinpoints": [[66, 60]]}, r"\(66, 60\) has 110 tiles, over the limit of 100"),
        ({"mm_vision_select_feature": "cls_patch"}, "config.json: .*select must be 'patch'"),
        ({"mm_vision_select_layer": 9}, "has no hidden state 9; it has 0 to 3"),
    ],
)
def test_tiles_that_cannot_be_are_refused(
    tmp_path: Path,
    write_original: Write,
    clip_folder: Path,
    changes: dict[str, object],
    message: str,
) -> None:
    """Grids that the tower's tiles do not fill, or that would take any amount of memory, are named in one line."""
    tiled = {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[12, 6], [6, 18]],
    }
    newline = {"model.image_newline": torch.arange(12).half()}
    folder = write_original(newline, **{**tiled, **changes})
    refused(tmp_path, message, source=folder, vision=clip_folder)


def test_class_tokens_of_tiles_are_refused(tmp_path: Path, llava_next: Path) -> None:
    """A llava-hf folder that keeps every tile's class token has no layout here; its own config is named."""
    file = llava_next / "config.json"
    said = json.loads(file.read_text()) | {"vision_feature_select_strategy": "full"}
    file.write_text(json.dumps(said))
    refused(tmp_path, f"^{file} has vision_feature_select_strategy 'full'", source=llava_next)


def test_tiles_are_neither_asked_for_nor_left_away(
    tmp_path: Path, llava_next: Path, llava_hf: Path, clip_folder: Path, vicuna_folder: Path
) -> None:
    """--aspect chooses between square and pad: weights for tiles are there or they are not."""
    out = tmp_path / "out"
    for aspect, what in (
        ("pad", {"source": llava_next}),
        ("anyres", {"source": llava_hf}),
        ("anyres", {"vision": clip_folder, "language": vicuna_folder}),
    ):
        with pytest.raises(UsageError, match="--aspect can only choose between square and pad"):
            bring(out, aspect=aspect, **what)
    assert not out.exists()
    bring(out, source=llava_next, aspect="anyres")


@pytest.mark.slow
def test_a_large_model_comes_in_and_answers_in_little_memory(tmp_path: Path) -> None:
    """A 2 GB model is imported within half of its bytes, and answers within them and what Python and torch take."""
    done = subprocess.run(
        [sys.executable, LARGE_FOLDER, "--scale", "0.5", "--work", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = re.findall(r"peak +([\d.]+) GiB", done.stdout)
    [weights] = re.findall(r"weights +([\d.]+) GiB", done.stdout)
    imported, asked = map(float, peaks)
    assert imported < 0.5 * float(weights)
    assert asked < float(weights) + 0.8
    assert list(tmp_path.iterdir()) == []


def test_a_broken_tokenizer_is_refused(
    tmp_path: Path, write_original: Write, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are no SentencePiece model, and a package that is missing, get a line each."""
    folder = write_original()
    monkeypatch.setattr("caldera.formats.tokenizer.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"tokenizer\.model needs the package sentencepiece; pip"):
        bring(tmp_path / "out", source=folder, vision=clip_folder)
    monkeypatch.undo()
    (folder / "tokenizer.model").write_bytes(b"hello" * 9)
    refused(
        tmp_path, "has no tokenizer that transformers can load", source=folder, vision=clip_folder
    )


def test_a_model_with_fewer_rows_than_words_is_refused(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """Another model's tokenizer, with more words than the tables have rows, is told."""
    short = {name: torch.zeros(299, 12) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    folder = write_original(short, vocab_size=299)
    message = f"has {WORDS} words, its model only 299 rows"
    refused(tmp_path, message, source=folder, vision=clip_folder)
