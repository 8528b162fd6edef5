"""An original folder that is imported and exported again is unchanged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPImageProcessor,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

from caldera.errors import UsageError
from caldera.formats.assemble import assemble, with_image_aspect
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.formats.original.config import LLAVA_CLASSES
from caldera.formats.original.export import write_original as export_original
from caldera.formats.tokenizer import load_tokenizer
from caldera.images.anyres import ASPECTS, ImageAspect
from caldera.model.bundle import LlavaBundle
from caldera.model.projector import PROJECTORS
from tests.formats.conftest import WORDS, Write, read_torch_files, run_import, tower_inside
from tests.tiny_languages import WIDTHS

Language = Callable[..., Path]


@pytest.fixture
def write_language(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Language:
    """Write a random language model of a kind in LLAVA_CLASSES."""

    def write(kind: str, **settings: object) -> Path:
        folder = tmp_path / kind
        torch.manual_seed(5)
        shape = AutoConfig.for_model(kind, **{**WIDTHS, "vocab_size": len(tokenizer), **settings})
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


def test_a_round_trip_keeps_every_number(
    tmp_path: Path, write_original: Write, clip_folder: Path, words_folder: Path
) -> None:
    """Import and export keep names, shapes, numbers, settings and tokenizer."""
    inside = tower_inside(clip_folder, factor=2)
    source = write_original(inside, unfreeze_mm_vision_tower=True)
    run_import(tmp_path / "caldera", source=source, vision=clip_folder)

    notes = export_original(tmp_path / "caldera", tmp_path / "original")

    exported = load_file(tmp_path / "original" / "model.safetensors")
    expected = read_torch_files(source)
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)
    before, after = (
        json.loads((folder / "config.json").read_text())
        for folder in (source, tmp_path / "original")
    )
    same = [name for name in before if name.startswith("mm_") and name != "mm_vision_tower"]
    assert len(same) > 5
    for name in (
        *same,
        "rope_theta",
        "rope_scaling",
        "torch_dtype",
        "model_type",
        "image_aspect_ratio",
        "vocab_size",
        "hidden_size",
        "architectures",
    ):
        assert after[name] == before[name], name
    tokenizer, first = load_tokenizer(tmp_path / "original"), load_tokenizer(words_folder)
    assert tokenizer.get_vocab() == first.get_vocab()
    assert len(tokenizer) == WORDS
    assert tokenizer.pad_token == "<unk>"
    assert (tmp_path / "original" / "tokenizer.model").read_bytes() == (
        words_folder / "tokenizer.model"
    ).read_bytes()
    assert any("by its path" in note for note in notes)


def test_the_exported_tower_loads_in_transformers(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """A tower without a hub name is written to a folder of its own, which transformers' CLIP classes load."""
    run_import(tmp_path / "caldera", source=write_original(), vision=clip_folder)
    export_original(tmp_path / "caldera", tmp_path / "original")

    tower_path = json.loads((tmp_path / "original" / "config.json").read_text())["mm_vision_tower"]
    tower: Any = CLIPVisionModel.from_pretrained(tower_path, output_loading_info=True)
    model, report = tower
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert CLIPImageProcessor.from_pretrained(tower_path).crop_size == {"height": 6, "width": 6}
    expected = load_model_folder(tmp_path / "caldera").model.vision.tower.state_dict()
    assert all(torch.equal(expected[name], weight) for name, weight in model.state_dict().items())


def test_an_exported_folder_is_imported_again(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """An exported folder is imported with its own tower, and gives the same weights."""
    run_import(tmp_path / "caldera", source=write_original(), vision=clip_folder)
    export_original(tmp_path / "caldera", tmp_path / "original")
    exported = tmp_path / "original"
    run_import(tmp_path / "again", source=exported, vision=exported / "vision_tower")
    first, second = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("caldera", "again")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_trained_folder_survives_export_and_import(
    tmp_path: Path, assistant: LlavaBundle
) -> None:
    """A folder that caldera assembled, with its own tokenizer, keeps its weights and tokens."""
    save_model_folder(tmp_path / "caldera", assistant)

    notes = export_original(tmp_path / "caldera", tmp_path / "original")

    assert any("not a SentencePiece model" in note for note in notes)
    exported = tmp_path / "original"
    run_import(tmp_path / "again", source=exported)
    loaded = load_model_folder(tmp_path / "again")
    assert loaded.tokenizer.get_vocab() == assistant.tokenizer.get_vocab()
    state = assistant.model.state_dict()
    vocab_size = len(assistant.tokenizer)
    for name, weight in loaded.model.state_dict().items():
        rows = slice(None if state[name].shape[0] < vocab_size else vocab_size - 2)
        assert torch.equal(weight[rows], state[name][rows]), name


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("kind", LLAVA_CLASSES)
def test_every_kind_survives_export_and_import(
    tmp_path: Path,
    vision_folder: Path,
    write_language: Language,
    kind: str,
    projector: str,
    aspect: ImageAspect,
) -> None:
    """Language model, projector and image aspect are read back, pixels and image tokens are equal."""
    language = write_language(kind)
    before = assemble(vision_folder, language, projector=projector, aspect=aspect, seed=4)
    save_model_folder(tmp_path / "caldera", before)
    exported = tmp_path / "llava"
    export_original(tmp_path / "caldera", exported)
    run_import(tmp_path / "again", source=exported)

    after = load_model_folder(tmp_path / "again")
    ignored: dict[str, Any] = {"source_digests": {}, "sources": {}}
    assert after.card.model_copy(update=ignored) == before.card.model_copy(update=ignored)
    assert after.processor == before.processor
    assert after.model.language.config.model_type == kind
    image = Image.effect_noise((17, 11), 90).convert("RGB")
    pixels = before.processor(image)
    assert torch.equal(after.processor(image), pixels)
    with torch.no_grad():
        tokens, expected = (
            model.projector(model.patch_features(pixels)) for model in (after.model, before.model)
        )
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "llama",
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "no rope_parameters .*yarn.* for llama",
        ),
        (
            "mistral",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "linear.* for mistral",
        ),
        ("llama", {"head_dim": 8}, "no head_dim 8"),
        ("llama", {"mlp_bias": True}, "no mlp_bias"),
    ],
)
def test_what_transformers_4_37_would_compute_otherwise_is_rejected(
    tmp_path: Path,
    vision_folder: Path,
    write_language: Language,
    kind: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    """The setting is named, and nothing is written."""
    language = write_language(kind, **settings)
    save_model_folder(tmp_path / "caldera", assemble(vision_folder, language))
    with pytest.raises(UsageError, match=message):
        export_original(tmp_path / "caldera", tmp_path / "original")
    assert not (tmp_path / "original").exists()


def test_a_limit_of_tiles_is_rejected(
    tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """LLaVA's own code has no limit; LLaVA-OneVision's code is another."""
    bundle = assemble(vision_folder, language_folder)
    save_model_folder(tmp_path / "caldera", with_image_aspect(bundle, "anyres", anyres_max=9))
    with pytest.raises(UsageError, match=r"no limit of tiles \(anyres_max\) for llama"):
        export_original(tmp_path / "caldera", tmp_path / "original")


def test_scaled_positions_are_written_as_transformers_4_37_reads_them(
    tmp_path: Path, vision_folder: Path, write_language: Language
) -> None:
    """A factor is a float beside its type; settings of later releases are left out."""
    language = write_language("llama", rope_scaling={"rope_type": "linear", "factor": 2})
    save_model_folder(tmp_path / "caldera", assemble(vision_folder, language))
    export_original(tmp_path / "caldera", tmp_path / "original")
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    assert config["rope_scaling"] == {"type": "linear", "factor": 2.0}
    assert isinstance(config["rope_scaling"]["factor"], float)
    assert not config.keys() & {"rope_parameters", "dtype", "head_dim", "mlp_bias"}


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        ("llama", "LLaVA-tiny", ""),
        ("llama", "tiny", "to a name with 'llava'"),
        ("llama", "llava-mistral", "to a name without 'mistral'"),
        ("mistral", "llava-tiny", "to a name with 'mistral'"),
        ("mistral", "my-mistral-llava", ""),
        ("mistral", "prompt", "with 'llava', with 'mistral', without 'mpt'"),
    ],
)
def test_a_name_that_llavas_code_reads_otherwise_is_reported(
    tmp_path: Path, vision_folder: Path, write_language: Language, kind: str, name: str, advice: str
) -> None:
    """LLaVA's own code finds the class in the folder's name; the conversation mode is named in any case."""
    bundle = assemble(vision_folder, write_language(kind), template="llava_v1")
    save_model_folder(tmp_path / "caldera", bundle)
    notes = export_original(tmp_path / "caldera", tmp_path / name)
    assert ("rename" in " ".join(notes)) == bool(advice)
    assert advice in " ".join(notes)
    assert any(note.endswith("--conv-mode llava_v1") for note in notes)


def test_a_model_without_a_class_in_llavas_code_is_rejected(
    tmp_path: Path, vision_folder: Path, gpt2_folder: Path
) -> None:
    """LLaVA's own code cannot load GPT-2 with CLIP."""
    save_model_folder(tmp_path / "caldera", assemble(vision_folder, gpt2_folder))
    with pytest.raises(UsageError, match=r"joins CLIP with llama or mistral, not .* with gpt2"):
        export_original(tmp_path / "caldera", tmp_path / "original")
    assert not (tmp_path / "original").exists()
