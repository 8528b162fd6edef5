"""Tests of the shipped backbones: small, in transformers' format, trained on other scenes than the demo's."""

import json

import pytest
import torch
from transformers import AutoTokenizer, CLIPVisionModel, LlamaForCausalLM

from backbones.language_settings import LanguagePretraining
from backbones.vision_pretraining import SIDE, VisionPretraining
from caldera.errors import UnknownNameError
from caldera.recipes.demo import demo
from caldera.scenes.backbones import BACKBONES, find_backbone
from caldera.scenes.scene import BACKGROUNDS, COLORS, OBJECT_KINDS

MAX_BYTES = 16 * 2**20
"""Total size of both."""


def test_both_are_small_and_in_half_precision() -> None:
    """They take at most 16 MiB in total, and each folder has the files that transformers needs."""
    files = [file for folder in BACKBONES.values() for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    for folder in BACKBONES.values():
        assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
        assert (folder / "model.safetensors").is_file()


def test_the_vision_tower_loads_in_transformers() -> None:
    """CLIPVisionModel encodes an image as 8 x 8 patches and a class token."""
    tower = CLIPVisionModel.from_pretrained(find_backbone("scenes-vit"), dtype=torch.float32)
    features = tower(torch.zeros(1, 3, SIDE, SIDE)).last_hidden_state
    assert tuple(features.shape) == (1, 65, tower.config.hidden_size)
    assert bool(torch.isfinite(features).all())


def test_the_language_model_loads_in_transformers_and_answers() -> None:
    """Every word of the scenes is one token, and the model answers a question about a described scene."""
    folder = find_backbone("scenes-llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for word in (*OBJECT_KINDS, *COLORS, *BACKGROUNDS):
        assert len(tokenizer.tokenize(f" {word}")) == 1
    text = "USER: A red car at the top left and a dog, in a meadow.\nWhat colour is the car?\nAnswer the question using a single word or phrase. ASSISTANT:"  # noqa: E501
    ids = tokenizer(text, return_tensors="pt").input_ids
    answer = int(model(input_ids=ids).logits[0, -1].argmax())
    assert tokenizer.convert_ids_to_tokens(answer) == tokenizer.tokenize(" red")[0]


def test_backbones_were_trained_on_other_scenes_than_the_demos() -> None:
    """Training and evaluation scenes of both backbones and the demo's scenes have different seeds."""
    scenes = demo().scenes
    vision, language = VisionPretraining().seed, LanguagePretraining().seed
    seeds = [scenes.seed, vision, vision + 1, language, language + 1]
    assert len(set(seeds)) == len(seeds)


def test_an_unknown_name_suggests_the_nearest() -> None:
    """Backbones are looked up by exact name."""
    with pytest.raises(UnknownNameError, match="did you mean 'scenes-vit'"):
        find_backbone("scene-vit")
