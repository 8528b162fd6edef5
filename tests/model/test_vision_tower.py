"""Vision towers of every family are joined, trained, saved, loaded, and compared with transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LevitConfig,
    LevitModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PvtConfig,
    PvtModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from caldera.batches.image_sources import DecodedImages
from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import DeviceConfig
from caldera.errors import ModelFormatError
from caldera.formats.assemble import assemble
from caldera.formats.image_processor import load_processor
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle
from caldera.model.vision_tower import VisionTower
from caldera.templates.registry import VICUNA_SYSTEM, find_template
from caldera.training.step import training_step
from tests.engine_answers import generate
from tests.laying import batch_of

SHAPE: dict[str, Any] = {
    "hidden_size": 10, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 6, "patch_size": 2,
}  # fmt: skip
WIDE: dict[str, Any] = {**SHAPE, "intermediate_size": 14}
CROPPED: dict[str, Any] = {"size": {"shortest_edge": 6}, "crop_size": {"height": 6, "width": 6}}
SQUASHED: dict[str, Any] = {"size": {"height": 6, "width": 6}}
MARGIN: dict[str, Any] = {"size": {"shortest_edge": 8}, "crop_size": {"height": 6, "width": 6}}


@dataclass(frozen=True)
class Family:
    """A family of towers with its processor, both as published except for their size."""

    tower: PreTrainedModel
    processor: Any
    num_prefix_tokens: int
    transformers_error: str | None = None
    """Error of transformers where it does not support the tower in LLaVA."""


def families() -> dict[str, Family]:
    """Build a tiny random tower of each family, with 3 x 3 patches."""
    torch.manual_seed(1)
    with_registers = Dinov2WithRegistersConfig(**{**SHAPE, "image_size": 14}, num_register_tokens=4)
    return {
        "clip": Family(CLIPVisionModel(CLIPVisionConfig(**WIDE)), CLIPImageProcessorPil(**CROPPED), 1),
        "siglip": Family(SiglipVisionModel(SiglipVisionConfig(**WIDE)), SiglipImageProcessorPil(**SQUASHED), 0),
        "vit": Family(ViTModel(ViTConfig(**WIDE)), CLIPImageProcessorPil(**CROPPED), 1),
        "dinov2": Family(Dinov2Model(Dinov2Config(**{**SHAPE, "image_size": 14})), BitImageProcessorPil(**MARGIN), 1),
        "dinov2_with_registers": Family(
            Dinov2WithRegistersModel(with_registers), BitImageProcessorPil(**MARGIN), 5, "5 positions before its"
        ),
    }  # fmt: skip


NAMES = ["clip", "siglip", "vit", "dinov2", "dinov2_with_registers"]


def folder_of(family: Family, folder: Path) -> Path:
    """Write a tower in its published format."""
    family.tower.save_pretrained(folder)
    family.processor.save_pretrained(folder)
    return folder


def samples(assistant: LlavaBundle, photos: Path) -> list[Sample]:
    """Return a dialogue with an image and one with two."""
    builder = SampleBuilder(
        tokenizer=assistant.tokenizer,
        template=find_template("vicuna_v1"),
        image_token_id=assistant.model.image_token_id,
        layouts=assistant.processor.layouts,
        count_tokens=assistant.model.count_tokens,
        max_length=500,
    )
    images = (ImageRef("1.png"), ImageRef("4.png"))
    return [
        builder.build(
            Conversation(
                "c", (Turn("user", (*images[:count], "what?")), Turn("assistant", ("a cat",)))
            ),
            photos,
        )
        for count in (1, 2)
    ]


def step(assistant: LlavaBundle, photos: Path) -> float:
    """Take a step of training and return its loss."""
    rows = samples(assistant, photos)
    report = training_step(
        assistant.model,
        [batch_of(assistant, rows)],
        torch.optim.SGD(assistant.model.parameters(), 0.1),
        max_grad_norm=1.0,
        compute=DeviceConfig(torch.device("cpu"), torch.float32),
    )
    return report.loss


@torch.no_grad()
def logits(assistant: LlavaBundle, photos: Path) -> torch.Tensor:
    """Return caldera's logits for the sample with two images."""
    sample = samples(assistant, photos)[1]
    images = DecodedImages(assistant.processor)(sample.images)
    embedded = assistant.model.embed(torch.tensor([sample.ids]), images, sample.layouts)
    return assistant.model.language(inputs_embeds=embedded).logits[0]


@torch.no_grad()
def transformers_logits(folder: Path, photos: Path) -> torch.Tensor:
    """Return the logits of LLaVA's class in transformers for the same text and image files."""
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = LlavaProcessor.from_pretrained(folder)
    prompt = f"{VICUNA_SYSTEM} USER: <image><image>what? ASSISTANT: a cat</s>"
    images = [Image.open(photos / f"{number}.png") for number in (1, 4)]
    return model(**processor(images=images, text=prompt, return_tensors="pt")).logits[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_tower_of_any_family_can_be_trained_and_saved(
    tmp_path: Path, photos: Path, language_folder: Path, name: str
) -> None:
    """Nine image tokens whatever the prefix tokens; the saved model has the same logits here and in transformers."""
    family = families()[name]
    assistant = assemble(folder_of(family, tmp_path / "tower"), language_folder, seed=3)
    assert assistant.model.vision.num_prefix_tokens == family.num_prefix_tokens
    assert assistant.model.vision.tokens_per_view == 9

    first = step(assistant, photos)
    assistant.model.eval()

    assert first > 0
    question = Conversation("q", (Turn("user", (ImageRef("2.png"), "what?")),))
    assert generate(assistant, [question], photos, SamplingParams(max_new_tokens=5))[0]
    save_model_folder(tmp_path / "m", assistant)
    loaded = load_model_folder(tmp_path / "m")
    assert loaded.processor == assistant.processor
    assert torch.equal(logits(loaded, photos), logits(assistant, photos))
    if family.transformers_error:
        with pytest.raises(KeyError, match=family.transformers_error):
            LlavaForConditionalGeneration.from_pretrained(tmp_path / "m")
        with pytest.raises(ValueError, match="caldera_llava"):
            AutoModelForImageTextToText.from_pretrained(tmp_path / "m")
    else:
        expected = transformers_logits(tmp_path / "m", photos)
        torch.testing.assert_close(logits(loaded, photos), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_images_come_out_as_the_towers_own_processor_makes_them(tmp_path: Path, name: str) -> None:
    """Cropped, cropped with a margin, or resized to a square: the pixels are those of the tower's own processor."""
    family = families()[name]
    processor = load_processor(folder_of(family, tmp_path / "tower"))
    rng = np.random.default_rng(0)
    for width, height in ((30, 17), (11, 23), (6, 6), (5, 40)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = torch.as_tensor(np.array(family.processor(image)["pixel_values"][0]))
        torch.testing.assert_close(processor(image)[0], expected, atol=1e-6, rtol=0)


def test_every_position_can_be_used(tmp_path: Path, language_folder: Path) -> None:
    """With `cls_patch` the class token and registers are image tokens too."""
    family = families()["dinov2_with_registers"]
    vision = assemble(folder_of(family, tmp_path / "tower"), language_folder).model.vision
    vision.select = "cls_patch"
    assert vision.tokens_per_view == 14
    assert vision(torch.zeros(2, 3, 6, 6)).shape == (2, 14, 10)


def unfit(kind: str) -> PreTrainedModel:
    """Return a tower that cannot give one position for each patch of an image of 32 pixels."""
    match kind:
        case "size":
            return CLIPVisionModel(CLIPVisionConfig(**WIDE))
        case "levit":
            stages: dict[str, Any] = {
                "hidden_sizes": [16, 24, 32],
                "num_attention_heads": [2, 2, 2],
            }
            return LevitModel(LevitConfig(image_size=32, depths=[1] * 3, key_dim=[4] * 3, **stages))
        case _:
            stages = {"hidden_sizes": [2, 4, 6, 8], "num_attention_heads": [1] * 4}
            return PvtModel(PvtConfig(image_size=32, depths=[1] * 4, **stages))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "size",
            r"does not accept the 32 x 32 pixels of its preprocessor_config\.json: Input",
        ),
        ("levit", "gives 1 positions for the 4 patches"),
        ("pvt", "does not cut images into square patches"),
    ],
)
def test_an_unsupported_tower_is_rejected(
    tmp_path: Path, language_folder: Path, kind: str, message: str
) -> None:
    """The error is raised before training, in one line."""
    size: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    folder = folder_of(Family(unfit(kind), CLIPImageProcessorPil(**size), 0), tmp_path / "tower")
    with pytest.raises(ModelFormatError, match=message) as caught:
        assemble(folder, language_folder)
    assert "\n" not in str(caught.value)


def test_a_side_without_pixels_is_rejected() -> None:
    """As any other side that the tower does not take."""
    tower = CLIPVisionModel(CLIPVisionConfig(**WIDE))
    with pytest.raises(ModelFormatError, match="does not accept the -5 x -5 pixels"):
        VisionTower(tower, -5)


@pytest.mark.parametrize(
    "sizes",
    [
        {"size": {"height": 6, "width": 8}},
        {"size": {"shortest_edge": 6}, "do_center_crop": False},
        {"size": {"shortest_edge": 6}, "crop_size": {"height": 8, "width": 8}},
    ],
)
def test_a_processor_without_square_output_is_rejected(
    tmp_path: Path, sizes: dict[str, object]
) -> None:
    """Its crop is not guessed."""
    content = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **sizes}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ModelFormatError, match="square"):
        load_processor(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_normalize": False}, "do_normalize is false"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"do_resize": False}, "do_resize is false"),
        ({"rescale_factor": 1 / 127.5}, "only 1 / 255 is supported"),
        ({"image_mean": [0.5]}, "three finite numbers each"),
        ({"image_mean": ["grey"] * 3}, "could not convert"),
        ({"image_mean": [float("nan")] * 3}, "is not a finite number"),
        ({"image_std": [0.5, 0.5, 0.0]}, "std over 0"),
        ({"resample": 99}, "99 is not a valid Resampling"),
    ],
)
def test_a_processor_with_unsupported_settings_is_rejected(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    """Pixels are never normalized in another way than the processor's, and no invalid number fails later."""
    size: dict[str, Any] = {"size": {"shortest_edge": 6}, "crop_size": {"height": 6, "width": 6}}
    content = {**size, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ModelFormatError, match=message):
        load_processor(tmp_path)
