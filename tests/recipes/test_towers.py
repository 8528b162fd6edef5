"""Towers are found by exact name."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from caldera.errors import UnknownNameError, UsageError
from caldera.formats.config import build_on_meta_device
from caldera.model.projector import PROJECTORS, build_projector
from caldera.recipes.towers import (
    HUB_TOWERS,
    num_language_parameters,
    num_projector_parameters,
    num_vision_parameters,
    resolve_tower,
    tower_config,
)
from caldera.scenes.backbones import BACKBONES


def test_towers_are_found_by_exact_name(tmp_path: Path) -> None:
    """For a typo the message suggests the nearest name; a delta is no language model, and is not downloaded."""
    with pytest.raises(UnknownNameError, match="did you mean 'scenes-vit'"):
        resolve_tower("scenes-vitt", tmp_path)
    with pytest.raises(UnknownNameError, match=r"or ORG/NAME on the Hugging Face Hub is called"):
        resolve_tower("clip", tmp_path)
    with pytest.raises(UsageError, match="differences to the first LLaMA"):
        resolve_tower("lmsys/vicuna-7b-delta-v0@main", tmp_path)


@pytest.mark.parametrize("name", [*HUB_TOWERS, *BACKBONES])
def test_sizes_are_those_of_transformers(name: str) -> None:
    """The parameters of each tower, computed from its shape, are those that transformers builds."""
    shape = tower_config(name)
    assert shape is not None
    config, is_vision = AutoConfig.for_model(**shape), shape["model_type"] == "clip_vision_model"
    size = num_vision_parameters(name) if is_vision else num_language_parameters(name)
    model = build_on_meta_device(AutoModel if is_vision else AutoModelForCausalLM, config)
    assert size == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("projector", PROJECTORS)
def test_projector_sizes_are_those_that_are_built(projector: str) -> None:
    """Between CLIP and Vicuna 7B; that of an unknown tower is unknown."""
    clip, vicuna = "openai/clip-vit-large-patch14", "lmsys/vicuna-7b-v1.5"
    with torch.device("meta"):
        module = build_projector(projector, 1024, 4096)
    size = sum(parameter.numel() for parameter in module.parameters())
    assert num_projector_parameters(projector, clip, vicuna) == size
    assert num_projector_parameters(projector, clip, "another") is None
