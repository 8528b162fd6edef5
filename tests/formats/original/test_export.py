"""What comes in from LLaVA's own layout goes out again as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPVisionModel

from caldera.errors import UsageError
from caldera.formats.assemble import assemble
from caldera.formats.importing.import_model import import_model
from caldera.formats.importing.request import ImportRequest
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.formats.original.export import write_original as write_out
from caldera.formats.tokenizer import load_tokenizer
from caldera.model.assistant import LlavaBundle
from caldera.progress import NoProgress
from tests.recipes.conftest import WORDS, Weights, Write, tower_inside


def read_torch(folder: Path) -> Weights:
    """Read all torch files of a folder by torch's own reader."""
    found: Weights = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        found |= torch.load(file, weights_only=True)
    return {name: each for name, each in found.items() if "inv_freq" not in name}


def bring(source: Path, out: Path, vision: Path) -> None:
    """Import an original folder."""
    import_model(
        ImportRequest(source=source, vision=vision, template="vicuna_v1"), out, NoProgress()
    )


def test_a_round_trip_gives_back_every_number(
    tmp_path: Path, write_original: Write, clip_folder: Path, words_folder: Path
) -> None:
    """Original, caldera, original: names, shapes, numbers, settings and tokenizer are those of the beginning."""
    inside = tower_inside(clip_folder, factor=2)
    source = write_original(inside, unfreeze_mm_vision_tower=True)
    bring(source, tmp_path / "ours", clip_folder)

    notes = write_out(tmp_path / "ours", tmp_path / "theirs")

    written, given = load_file(tmp_path / "theirs" / "model.safetensors"), read_torch(source)
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], given[name]) for name in given)
    before, after = (
        json.loads((each / "config.json").read_text()) for each in (source, tmp_path / "theirs")
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
    tokenizer, first = load_tokenizer(tmp_path / "theirs"), load_tokenizer(words_folder)
    assert tokenizer.get_vocab() == first.get_vocab()
    assert len(tokenizer) == WORDS
    assert tokenizer.pad_token == "<unk>"
    assert (tmp_path / "theirs" / "tokenizer.model").read_bytes() == (
        words_folder / "tokenizer.model"
    ).read_bytes()
    assert any("by its path" in note for note in notes)


def test_the_tower_is_where_the_config_says(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """A tower without a hub name stands in a folder of its own, which transformers' CLIP classes load."""
    bring(write_original(), tmp_path / "ours", clip_folder)
    write_out(tmp_path / "ours", tmp_path / "theirs")

    place = json.loads((tmp_path / "theirs" / "config.json").read_text())["mm_vision_tower"]
    tower: Any = CLIPVisionModel.from_pretrained(place, output_loading_info=True)
    model, report = tower
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert CLIPImageProcessor.from_pretrained(place).crop_size == {"height": 6, "width": 6}
    ours = load_model_folder(tmp_path / "ours").model.vision.tower.state_dict()
    assert all(torch.equal(ours[name], each) for name, each in model.state_dict().items())


def test_it_comes_in_again(tmp_path: Path, write_original: Write, clip_folder: Path) -> None:
    """What was written out is imported with its own tower, and is the model that it was."""
    bring(write_original(), tmp_path / "ours", clip_folder)
    write_out(tmp_path / "ours", tmp_path / "theirs")
    bring(tmp_path / "theirs", tmp_path / "again", tmp_path / "theirs" / "vision_tower")
    first, second = (load_file(tmp_path / each / "model.safetensors") for each in ("ours", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_caldera_trained_goes_out_and_comes_in(tmp_path: Path, assistant: LlavaBundle) -> None:
    """A folder that caldera joined itself, with a tokenizer of its own, survives the way there and back."""
    save_model_folder(tmp_path / "ours", assistant)

    notes = write_out(tmp_path / "ours", tmp_path / "theirs")

    assert any("tokenizer.model" in note for note in notes)
    bring(tmp_path / "theirs", tmp_path / "again", tmp_path / "theirs" / "vision_tower")
    loaded = load_model_folder(tmp_path / "again")
    assert loaded.tokenizer.get_vocab() == assistant.tokenizer.get_vocab()
    state = assistant.model.state_dict()
    words = len(assistant.tokenizer)
    for name, each in loaded.model.state_dict().items():
        rows = slice(None if state[name].shape[0] < words else words - 2)
        assert torch.equal(each[rows], state[name][rows]), name


def test_what_their_code_has_no_class_for_is_refused(
    tmp_path: Path, vision_folder: Path, gpt2_folder: Path
) -> None:
    """GPT-2 behind CLIP is nothing that LLaVA's own code can load."""
    save_model_folder(tmp_path / "ours", assemble(vision_folder, gpt2_folder))
    with pytest.raises(UsageError, match=r"joins CLIP with llama or mistral, not .* with gpt2"):
        write_out(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
