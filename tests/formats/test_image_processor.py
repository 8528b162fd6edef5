"""The pixels are those of transformers' own processor, whatever its file says or omits, and a written folder's too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BitImageProcessorPil,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    MobileNetV2ImageProcessorPil,
    PoolFormerImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)
from transformers.models.auto.image_processing_auto import (  # type: ignore[attr-defined]
    IMAGE_PROCESSOR_MAPPING_NAMES,
)

from caldera.errors import ModelFormatError
from caldera.formats.image_processor import (
    CLASS_OF_TOWER,
    PROCESSOR_CLASSES,
    describe_pixels,
    load_processor,
)
from caldera.formats.transformers_config import to_image_processor

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
GRIDS = [[14, 28], [28, 14], [28, 28]]

SQUARE = {"height": 14, "width": 14}

KINDS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "CLIP of 2021: numbers for sizes": (
        CLIPImageProcessorPil,
        {
            "feature_extractor_type": "CLIPFeatureExtractor",
            "size": 14,
            "crop_size": 14,
            "do_center_crop": True,
            "do_resize": True,
            "image_mean": CLIP_MEAN,
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
        },
        "resized to 14 along the shorter side, cropped to the center of 14 x 14",
    ),
    "CLIP without a setting": (
        CLIPImageProcessorPil,
        {"image_processor_type": "CLIPImageProcessor"},
        "resized to 224 along the shorter side, cropped to the center of 224 x 224",
    ),
    "CLIP, fast, with a margin": (
        CLIPImageProcessorPil,
        {
            "image_processor_type": "CLIPImageProcessorFast",
            "size": {"shortest_edge": 17},
            "crop_size": SQUARE,
        },
        "resized to 17 along the shorter side, cropped to the center of 14 x 14",
    ),
    "CLIP that squeezes, with a crop that crops nothing": (
        CLIPImageProcessorPil,
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": SQUARE,
            "crop_size": SQUARE,
            "do_center_crop": True,
        },
        "resized to 14 x 14 without keeping their proportions",
    ),
    "SigLIP": (
        SiglipImageProcessorPil,
        {"image_processor_type": "SiglipImageProcessor", "size": SQUARE},
        "resized to 14 x 14 without keeping their proportions",
    ),
    "SigLIP with a crop size that it does not use": (
        SiglipImageProcessorPil,
        {
            "image_processor_type": "SiglipImageProcessor",
            "size": SQUARE,
            "crop_size": {"height": 9, "width": 9},
        },
        "resized to 14 x 14 without keeping their proportions",
    ),
    "DINOv2": (
        BitImageProcessorPil,
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 16},
            "crop_size": SQUARE,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
        "resized to 16 along the shorter side, cropped to the center of 14 x 14",
    ),
    "ViT: bilinear by default, a number is a square": (
        ViTImageProcessorPil,
        {"image_processor_type": "ViTImageProcessor", "size": 14},
        "resized to 14 x 14 without keeping their proportions",
    ),
    "ConvNeXt and ResNet below 384: the center of a larger image": (
        ConvNextImageProcessorPil,
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 14, "crop_pct": 0.75},
        "resized to 18 along the shorter side, cropped to the center of 14 x 14",
    ),
    "ConvNeXt at 384: the whole image": (
        ConvNextImageProcessorPil,
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
        "resized to 384 x 384 without keeping their proportions",
    ),
    "PoolFormer: the center of a larger image": (
        PoolFormerImageProcessorPil,
        {
            "image_processor_type": "PoolFormerImageProcessor",
            "size": 14,
            "crop_size": SQUARE,
            "crop_pct": 0.8,
        },
        "resized to 17 along the shorter side, cropped to the center of 14 x 14",
    ),
    "EfficientNet, whose classifier divides by the standard deviation twice": (
        EfficientNetImageProcessorPil,
        {
            "image_processor_type": "EfficientNetImageProcessor",
            "size": SQUARE,
            "image_std": [0.47, 0.48, 0.5],
            "resample": 0,
            "include_top": True,
        },
        "resized to 14 x 14 without keeping their proportions",
    ),
    "EfficientNet with pixels from -1 to 1": (
        EfficientNetImageProcessorPil,
        {
            "image_processor_type": "EfficientNetImageProcessor",
            "size": SQUARE,
            "rescale_factor": 1 / 127.5,
            "rescale_offset": True,
            "include_top": False,
        },
        "resized to 14 x 14 without keeping their proportions",
    ),
    "MobileNetV2, bilinear by default": (
        MobileNetV2ImageProcessorPil,
        {
            "image_processor_type": "MobileNetV2ImageProcessor",
            "size": {"shortest_edge": 16},
            "crop_size": SQUARE,
        },
        "resized to 16 along the shorter side, cropped to the center of 14 x 14",
    ),
    "BLIP": (
        BlipImageProcessorPil,
        {"image_processor_type": "BlipImageProcessor", "size": SQUARE},
        "resized to 14 x 14 without keeping their proportions",
    ),
    "LLaVA, padded": (
        LlavaImageProcessorPil,
        {
            "image_processor_type": "LlavaImageProcessor",
            "size": {"shortest_edge": 14},
            "crop_size": SQUARE,
            "do_pad": True,
        },
        "padded to a square with the mean color, resized to 14 x 14",
    ),
    "LLaVA, padded without a crop": (
        LlavaImageProcessorPil,
        {
            "image_processor_type": "LlavaImageProcessorFast",
            "size": {"shortest_edge": 14},
            "do_center_crop": False,
            "do_pad": True,
        },
        "padded to a square with the mean color, resized to 14 x 14",
    ),
    "LLaVA-NeXT, which pads the number of tiles": (
        LlavaNextImageProcessorPil,
        {
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": 14},
            "crop_size": SQUARE,
            "do_pad": True,
            "image_grid_pinpoints": GRIDS,
            "aspect_ratio_setting": "anyres",
        },
        "resized to 14 x 14, and tiles of that size on the best of 28 x 14, 14 x 28, 28 x 28",
    ),
    "LLaVA-OneVision": (
        LlavaOnevisionImageProcessorPil,
        {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": SQUARE,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "image_grid_pinpoints": GRIDS,
        },
        "resized to 14 x 14, and tiles of that size on the best of 28 x 14, 14 x 28, 28 x 28",
    ),
}


def views(processor: Any, image: Image.Image) -> Tensor:  # noqa: ANN401 - transformers' processors share no type
    """Return the pixels of transformers' processor, (views, channels, side, side)."""
    pixels = torch.as_tensor(np.array(processor(image)["pixel_values"]))
    return pixels.flatten(0, -4)


def images() -> list[Image.Image]:
    """Return images of various shapes."""
    rng = np.random.default_rng(3)
    sizes = ((31, 17), (11, 23), (14, 14), (40, 12))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_those_of_the_files_own_class(tmp_path: Path, name: str) -> None:
    """What a file omits is its class's default; the description tells what is done, and the written file does it."""
    factory, content, description = KINDS[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    processor = load_processor(tmp_path)
    own, written = factory(**content), to_image_processor(processor)
    assert describe_pixels(processor) == description
    for image in images():
        pixels = processor(image)
        torch.testing.assert_close(pixels, views(own, image), atol=1e-6, rtol=0)
        torch.testing.assert_close(pixels, views(written, image), atol=1e-6, rtol=0)


# LLaVA-NeXT's default grids are of 336 pixels, its default tiles of 224.
@pytest.mark.parametrize("name", sorted(PROCESSOR_CLASSES.keys() - {"LlavaNextImageProcessor"}))
def test_every_class_is_read_back_from_its_own_file(tmp_path: Path, name: str) -> None:
    """The defaults of a class, written by transformers, give its own pixels."""
    own = PROCESSOR_CLASSES[name]()
    own.save_pretrained(tmp_path)
    processor, image = load_processor(tmp_path), images()[0]
    torch.testing.assert_close(processor(image), views(own, image), atol=1e-6, rtol=0)


TIMM = {
    "input_size": [3, 14, 14], "crop_pct": 0.8, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3,
}  # fmt: skip


def timm_folder(folder: Path, changes: dict[str, object]) -> Path:
    """Write the config of a timm tower."""
    content = {"model_type": "timm_wrapper", "pretrained_cfg": {**TIMM, **changes}}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("changes", "resample", "description"),
    [
        ({}, 2, "resized to 17 along the shorter side, cropped to the center of 14 x 14"),
        (
            {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic"},
            3,
            "resized to 14 x 14 without keeping their proportions",
        ),
    ],
)
def test_the_evaluation_pixels_of_timm(
    tmp_path: Path, changes: dict[str, object], resample: int, description: str
) -> None:
    """The settings of a timm tower are in its config."""
    processor = load_processor(timm_folder(tmp_path, changes))
    assert describe_pixels(processor) == description
    assert (processor.resample, processor.mean, processor.std) == (
        resample,
        (0.5,) * 3,
        (0.25,) * 3,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_mode": "squash"}, "crop_mode 'squash' with crop_pct 0.8 .*is not supported"),
        ({"crop_mode": "border"}, "crop_mode 'border' .*is not supported"),
        ({"input_size": [3, 14, 16]}, r"input_size \[3, 14, 16\] is not supported"),
        ({"interpolation": "random"}, "RANDOM.* is missing"),
    ],
)
def test_other_pixels_of_timm_are_rejected(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """They are not guessed."""
    with pytest.raises(ModelFormatError, match=message):
        load_processor(timm_folder(tmp_path, changes))


def test_every_towers_class_is_transformers() -> None:
    """A file that names no class gets the class that transformers finds for the tower."""
    for tower, name in CLASS_OF_TOWER.items():
        model_type = tower.removesuffix("_vision_model")
        assert IMAGE_PROCESSOR_MAPPING_NAMES[model_type]["pil"] == f"{name}Pil"


@pytest.mark.parametrize(
    ("tower", "mean"), [("siglip", 0.5), ("clip_vision_model", CLIP_MEAN[0]), ("vit", 0.5)]
)
def test_a_file_without_a_class_has_its_towers(tmp_path: Path, tower: str, mean: float) -> None:
    """As transformers finds the class by the config's model type."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": tower}))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": SQUARE, "crop_size": SQUARE})
    )
    assert load_processor(tmp_path).mean[0] == mean


def test_settings_of_text_and_image_in_two_files(tmp_path: Path) -> None:
    """Older folders of llava-hf have the text's settings in one file and the image's in another."""
    text = {"processor_class": "LlavaProcessor", "patch_size": 14, "image_token": "<image>"}
    (tmp_path / "processor_config.json").write_text(json.dumps(text))
    content = {"image_processor_type": "CLIPImageProcessor", "size": SQUARE, "crop_size": SQUARE}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert load_processor(tmp_path).side == 14


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor is not one of"),
        (
            {"image_processor_type": "MobileViTImageProcessor", "size": SQUARE},
            "MobileViTImage.* is not one of",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": 8, "do_center_crop": True},
            "do_center_crop is true",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": 8, "crop_pct": 0.0},
            "division by zero",
        ),
        (
            {
                "image_processor_type": "PoolFormerImageProcessor",
                "size": {"height": 8, "width": 9},
            },
            "does not give a square",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": SQUARE},
            "crop_size .*224.* is not a plain resize",
        ),
        ({"image_processor_type": "CLIPImageProcessor", "do_resize": False}, "do_resize is false"),
        ({"image_processor_type": "CLIPImageProcessor", "do_rescale": 0}, "do_rescale is 0"),
        (
            {"image_processor_type": "CLIPImageProcessor", "rescale_factor": 0},
            "rescale_factor is 0",
        ),
        ({"image_processor_type": "CLIPImageProcessor", "size": [14]}, "no usable image processor"),
        ({"image_processor_type": "CLIPImageProcessor", "crop_size": 0}, "0 pixels; a length must"),
        ({"image_processor_type": "CLIPImageProcessor", "size": 10**9}, "from 1 to 16,384"),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224.5}},
            "224.5 pixels; a length must",
        ),
        (
            {
                "image_processor_type": "LlavaNextImageProcessor",
                "size": {"shortest_edge": 14},
                "crop_size": SQUARE,
                "image_grid_pinpoints": [[14.0, 28.0]],
            },
            "28.0 pixels; a length must",
        ),
        ({"image_mean": [0.5] * 3}, "'size' is missing"),
        (
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": 14, "longest_edge": 20},
            },
            "does not give a square",
        ),
        (
            {
                "image_processor_type": "LlavaNextImageProcessor",
                "size": {"shortest_edge": 16},
                "crop_size": SQUARE,
                "image_grid_pinpoints": GRIDS,
            },
            "crops every tile, which is not supported",
        ),
    ],
)
def test_other_pixels_are_rejected(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    """A class or a setting that would give other pixels is named, never read halfway."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ModelFormatError, match=message):
        load_processor(tmp_path)
