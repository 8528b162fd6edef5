"""Exports in LLaVA's own layout load with transformers 4.37.2, and give caldera's logits there and in its own code."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from caldera.export.export import ParityConfig, compare_model
from caldera.export.parity.compare import COMPARED
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import save_model_folder
from caldera.formats.original.config import LLAVA_CLASSES
from caldera.formats.original.export import write_original
from caldera.images.anyres import ASPECTS, ImageAspect
from caldera.model.bundle import LlavaBundle
from caldera.model.projector import PROJECTORS
from caldera.progress import NoProgress
from tests.tiny_languages import WIDTHS

pytestmark = pytest.mark.reference

LOADER = '''
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPImageProcessor, CLIPVisionModel, GenerationConfig, LlamaConfig, LlamaForCausalLM, MistralConfig,
    MistralForCausalLM,
)

CLASSES = {"llava_llama": (LlamaConfig, LlamaForCausalLM), "llava_mistral": (MistralConfig, MistralForCausalLM)}


def main(folder, image, ids):
    """Build LLaVA's modules from the config, load the weights, and run an image of one view before token ids."""
    settings = json.loads((Path(folder) / "config.json").read_text())
    config_class, model_class = CLASSES[settings["model_type"]]
    config = config_class.from_dict(settings)
    model = model_class(config)
    tower, info = CLIPVisionModel.from_pretrained(settings["mm_vision_tower"], output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model.model.vision_tower = nn.Module()
    model.model.vision_tower.vision_tower = tower
    width = settings["mm_hidden_size"]
    layers = [nn.Linear(width, config.hidden_size)]
    if settings["mm_projector_type"] == "mlp2x_gelu":
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    model.model.mm_projector = nn.Sequential(*layers) if len(layers) > 1 else layers[0]
    if "unpad" in settings["mm_patch_merge_type"]:
        model.model.image_newline = nn.Parameter(torch.empty(config.hidden_size))
    weights = load_file(Path(folder) / "model.safetensors")
    model.load_state_dict(weights)
    same = tower.state_dict()
    tower_names = [name for name in weights if "vision_tower" in name]
    assert all(torch.equal(same[name.split("vision_tower.")[2]], weights[name]) for name in tower_names)
    processor = CLIPImageProcessor.from_pretrained(settings["mm_vision_tower"])
    with torch.no_grad():
        pixels = processor(Image.open(image), return_tensors="pt")["pixel_values"]
        states = tower(pixels, output_hidden_states=True).hidden_states
        features = states[settings["mm_vision_select_layer"]][:, 1:]
        words = model.get_input_embeddings()(torch.tensor([ids]))
        embedded = torch.cat([model.model.mm_projector(features), words], dim=1)
        logits = model.eval()(inputs_embeds=embedded).logits[0]
    generation = GenerationConfig.from_pretrained(folder)
    return {
        "pixels": pixels[0].tolist(),
        "features": features[0].tolist(),
        "logits": logits.tolist(),
        "torch_dtype": str(config.torch_dtype),
        "rope": [config.rope_theta, getattr(config, "rope_scaling", None)],
        "ends": generation.eos_token_id,
        "pinpoints": config.image_grid_pinpoints,
    }
'''


def write_export(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    vision: Path,
    kind: str,
    **settings: Any,  # noqa: ANN401 - of `assemble`
) -> LlavaBundle:
    """Write a random model and its export, `llava`; return the model."""
    torch.manual_seed(5)
    rope = {"rope_theta": 5e4, "rope_type": "default"}
    if kind == "llama":
        rope |= {"rope_type": "linear", "factor": 2}
    shape = AutoConfig.for_model(
        kind, **{**WIDTHS, "vocab_size": len(tokenizer), "rope_parameters": rope}
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    bundle = assemble(vision, folder / "language", seed=3, **settings)
    save_model_folder(folder / "m", bundle)
    write_original(folder / "m", folder / "llava")
    return bundle


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("kind", LLAVA_CLASSES)
def test_llavas_modules_take_an_export(
    run_437: Callable[..., Any],
    tmp_path: Path,
    vision_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    kind: str,
    projector: str,
    aspect: ImageAspect,
) -> None:
    """Every weight has its name and shape, no other is there; pixels, features and logits equal caldera's."""
    bundle = write_export(
        tmp_path, tokenizer, vision_folder, kind, projector=projector, aspect=aspect
    )
    image = Image.effect_noise((16, 11), 90).convert("RGB")
    image.save(tmp_path / "image.png")
    ids = [1, 40, 50, 60, 70]

    result = run_437(LOADER, str(tmp_path / "llava"), str(tmp_path / "image.png"), ids)

    model = bundle.model
    pixels = bundle.processor.with_aspect("square")(image)  # (1, channels, side, side)
    with torch.no_grad():
        features = model.patch_features(pixels)  # (1, patches, vision width)
        words = model.language.get_input_embeddings()(torch.tensor([ids]))
        embedded = torch.cat([model.projector(features), words], dim=1)
        logits = model.language(inputs_embeds=embedded).logits[0, :, : len(tokenizer)]
    torch.testing.assert_close(torch.tensor(result["pixels"]), pixels[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(result["features"]), features[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(result["logits"]), logits, atol=1e-5, rtol=0)
    assert result["torch_dtype"] == "torch.float32"
    scaling = {"type": "linear", "factor": 2.0} if kind == "llama" else None
    assert result["rope"] == [5e4, scaling]
    assert result["ends"] == tokenizer.eos_token_id
    pinpoints = [list(size) for size in bundle.card.pinpoints] or None
    assert result["pinpoints"] == pinpoints
    for file in (tmp_path / "llava").rglob("*.safetensors"):
        with safe_open(file, "pt") as stream:
            assert stream.metadata() == {"format": "pt"}


@pytest.mark.parametrize("aspect", ASPECTS)
def test_llavas_own_code_agrees(
    tmp_path: Path,
    vision_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    photos: Path,
    aspect: ImageAspect,
) -> None:
    """All stages of its own code are equal: pixels exactly, the prompt's ids, the logits, and greedy answers."""
    python = os.environ.get("CALDERA_LLAVA_PYTHON")
    if not python:
        pytest.skip("set CALDERA_LLAVA_PYTHON to a Python that has LLaVA's package llava")
    write_export(
        tmp_path, tokenizer, vision_folder, "mistral", template="mistral_instruct", aspect=aspect
    )
    config = ParityConfig(
        folder=tmp_path / "m",
        against="original",
        original=tmp_path / "llava",
        python=Path(python),
        images=sorted(photos.glob("*.png")),
    )
    parity = compare_model(config, NoProgress())
    assert {stage.stage: stage.good for stage in parity.stages} == dict.fromkeys(
        ("file", *COMPARED), True
    )
    assert {stage.max_difference for stage in parity.stages if stage.stage == "pixels"} == {0.0}
