"""Towers whose hidden states are maps: convolutional and hierarchical ones of every family give patches in order."""

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    BitConfig,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextV2Config,
    CvtConfig,
    DINOv3ConvNextConfig,
    EfficientNetConfig,
    EfficientNetImageProcessorPil,
    FocalNetConfig,
    HieraConfig,
    LlavaForConditionalGeneration,
    MobileNetV1Config,
    MobileNetV2Config,
    MobileViTConfig,
    PoolFormerConfig,
    PretrainedConfig,
    PreTrainedModel,
    PvtV2Config,
    RegNetConfig,
    ResNetConfig,
    SamVisionConfig,
    SegformerConfig,
    SwiftFormerConfig,
    SwinConfig,
    Swinv2Config,
    TextNetConfig,
    VitDetConfig,
    ViTImageProcessorPil,
)

from caldera.errors import ModelFormatError, UsageError
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.images.anyres import ImageAspect
from caldera.inference.attention_maps import token_boxes
from caldera.model.vision_tower import VisionTower
from caldera.training.parameters import set_trainable
from tests.model.test_vision_tower import logits, step, transformers_logits

SIDE = 64

STAGES: dict[str, Any] = {"hidden_sizes": [5, 6, 7, 11], "depths": [1] * 4}
EVEN_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}
WINDOWS: dict[str, Any] = {
    "embed_dim": 6,
    "depths": [1] * 3,
    "num_heads": [1] * 3,
    "window_size": 4,
    "patch_size": 4,
}
VIT: dict[str, Any] = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "bit": lambda: BitConfig(embedding_size=32, hidden_sizes=[32, 32, 64, 64], depths=[1] * 4, num_groups=4),
    "convnext": lambda: ConvNextConfig(**STAGES),
    "convnextv2": lambda: ConvNextV2Config(**STAGES),
    "cvt": lambda: CvtConfig(embed_dim=[4, 6, 8], num_heads=[1, 2, 2], depth=[1, 2, 3]),
    "dinov3_convnext": lambda: DINOv3ConvNextConfig(**STAGES),
    "efficientnet": lambda: EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320),
    "focalnet": lambda: FocalNetConfig(image_size=SIDE, embed_dim=6, depths=[1] * 4),
    "hiera": lambda: HieraConfig(image_size=[SIDE, SIDE], embed_dim=8, depths=[1] * 4, num_heads=[1] * 4),
    "mobilenet_v1": lambda: MobileNetV1Config(depth_multiplier=0.25),
    "mobilenet_v2": lambda: MobileNetV2Config(depth_multiplier=0.25),
    "mobilevit": lambda: MobileViTConfig(hidden_sizes=[12, 16, 20], neck_hidden_sizes=[4, 6, 8, 10, 12, 14, 32]),
    "poolformer": lambda: PoolFormerConfig(**STAGES),
    "pvt_v2": lambda: PvtV2Config(image_size=SIDE, num_attention_heads=[1, 1, 2, 2], **EVEN_STAGES),
    "regnet": lambda: RegNetConfig(embedding_size=8, groups_width=8, **EVEN_STAGES),
    "resnet": lambda: ResNetConfig(embedding_size=8, **EVEN_STAGES),
    "sam_vision_model": lambda: SamVisionConfig(image_size=SIDE, output_channels=8, window_size=2, **VIT),
    "segformer": lambda: SegformerConfig(num_attention_heads=[1, 2, 2, 2], **EVEN_STAGES),
    "swiftformer": lambda: SwiftFormerConfig(depths=[1] * 4, embed_dims=[8, 12, 16, 20]),
    "swin": lambda: SwinConfig(image_size=SIDE, **WINDOWS),
    "swinv2": lambda: Swinv2Config(image_size=SIDE, **WINDOWS),
    "textnet": lambda: TextNetConfig(),
    "vitdet": lambda: VitDetConfig(image_size=SIDE, **VIT),
}  # fmt: skip
"""Tiny shape of each family."""

LAYERS = {
    "bit": [(16, 32), (16, 32), (8, 32), (4, 64), (2, 64)],
    "convnext": [(16, 5), (16, 5), (8, 6), (4, 7), (2, 11)],
    "convnextv2": [(16, 5), (16, 5), (8, 6), (4, 7), (2, 11)],
    "cvt": [(16, 4), (8, 6), (4, 8)],
    "dinov3_convnext": [(64, 3), (16, 5), (8, 6), (4, 7), (2, 11)],
    "efficientnet": [
        (32, 8),
        (32, 8),
        (16, 8),
        (8, 16),
        (4, 24),
        (4, 32),
        (2, 48),
        (2, 48),
        (2, 80),
        (2, 320),
    ],
    "focalnet": [(16, 6), (8, 12), (4, 24), (2, 48), (2, 48)],
    "hiera": [(16, 8), (16, 8), (8, 16), (4, 32), (2, 64)],
    "mobilenet_v1": [
        (32, 8), (16, 32), (8, 32), (8, 64), (4, 128), (4, 128), (4, 128), (4, 128), (2, 256), (2, 256)
    ],
    "mobilenet_v2": [(16, 8), (8, 8), (8, 8), (4, 16), (4, 16), (4, 24), (2, 40), (2, 40), (2, 1280)],
    "mobilevit": [(32, 6), (16, 8), (8, 10), (4, 12), (2, 14), (2, 32)],
    "poolformer": [(16, 5), (8, 6), (4, 7), (2, 11)],
    "pvt_v2": [(16, 8), (8, 16), (4, 24), (2, 32)],
    "regnet": [(32, 8), (16, 8), (8, 16), (4, 24), (2, 32)],
    "resnet": [(16, 8), (16, 8), (8, 16), (4, 24), (2, 32)],
    "sam_vision_model": [(4, 12), (4, 12), (4, 12), (4, 8)],
    "segformer": [(16, 8), (8, 16), (4, 24), (2, 32)],
    "swiftformer": [(16, 8), (16, 8), (8, 12), (8, 12), (4, 16), (4, 16), (2, 20), (2, 20)],
    "swin": [(16, 6), (8, 12), (4, 24), (4, 24)],
    "swinv2": [(16, 6), (8, 12), (4, 24), (4, 24)],
    "textnet": [(32, 64), (16, 64), (8, 128), (4, 256), (2, 512)],
    "vitdet": [(4, 12), (4, 12), (4, 12)],
}  # fmt: skip
"""Patches along each side and width of every layer; of every second or third one where there are many."""

ADDED_LAST = {"efficientnet", "mobilenet_v2", "mobilevit", "sam_vision_model"}
"""Families whose last map is none of transformers' hidden states."""

PROCESSORS: dict[str, Any] = {
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": SIDE}),
    "efficientnet": EfficientNetImageProcessorPil(**SQUARE, include_top=True, rescale_offset=True),
    "resnet": ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.95),
}
"""Image processors as published; the others have ViT's."""


def tower_of(name: str) -> PreTrainedModel:
    """Build a random tower whose signal does not vanish; its batch norms have statistics as after some training."""
    torch.manual_seed(1)
    tower = AutoModel.from_config(CONFIGS[name]()).eval()
    for module in tower.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return tower


def folder_of(name: str, folder: Path) -> Path:
    """Write a tower with its processor."""
    tower_of(name).save_pretrained(folder)
    PROCESSORS.get(name, ViTImageProcessorPil(**SQUARE)).save_pretrained(folder)
    return folder


def statistics(model: torch.nn.Module) -> list[Tensor]:
    """Return copies of all buffers of batch norms."""
    return [
        buffer.clone()
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers()
    ]


def own_maps(tower: PreTrainedModel, name: str, pixels: Tensor) -> list[Tensor]:
    """Return transformers' hidden states as (views, patches, width), each by its family's documented layout."""
    outputs = tower(pixel_values=pixels, output_hidden_states=True)
    if name == "hiera":
        return [state.flatten(1, 2) for state in outputs.reshaped_hidden_states]
    if name in ("swin", "swinv2", "focalnet"):
        return list(outputs.hidden_states)
    if name == "sam_vision_model":
        states = [state.flatten(1, 2) for state in outputs.hidden_states]
    else:
        states = [state.flatten(2).mT for state in outputs.hidden_states]
    return states + [outputs.last_hidden_state.flatten(2).mT] * (name in ADDED_LAST)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_patches_of_every_layer_are_transformers_hidden_states(name: str) -> None:
    """Grid, width and numbers of each layer, counted from both ends; the tower itself is as before."""
    tower = tower_of(name)
    before = statistics(tower)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    expected = own_maps(tower, name, pixels)
    shapes = {}
    for layer in sorted({*range(0, len(expected), 1 + len(expected) // 11), len(expected) - 1}):
        states = expected[layer]
        vision = VisionTower(tower.train(), SIDE, layer).eval()
        assert torch.equal(vision(pixels), states)
        vision.select_layer = layer - len(expected)
        assert torch.equal(vision(pixels), states)
        assert vision.patch_size * vision.patches_per_side == SIDE
        assert vision.tokens_per_view == vision.patches_per_side**2 == states.shape[1]
        shapes[layer] = vision.patches_per_side, vision.width
    assert [*shapes.values()] == LAYERS[name]
    assert all(map(torch.equal, statistics(tower), before))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_patches_are_in_row_major_order(name: str) -> None:
    """A change in a quadrant of the image changes the patches of that quadrant most."""
    tower, image = tower_of(name), torch.randn(1, 3, SIDE, SIDE)
    sizes = [state.shape[1] for state in own_maps(tower, name, image)]
    vision = VisionTower(tower, SIDE, next(i for i, size in enumerate(sizes) if size <= 8 * 8))
    half = SIDE // 2
    for row, column in ((0, 1), (1, 0), (1, 1)):
        changed = image.clone()
        changed[..., row * half :, column * half :][..., :half, :half] += torch.randn(3, half, half)
        change = (vision(changed) - vision(image))[0].norm(dim=-1)  # (patches,)
        quadrants = change.unflatten(0, (2, vision.patches_per_side // 2, 2, -1)).sum(dim=(1, 3))
        assert divmod(int(quadrants.argmax()), 2) == (row, column)


@pytest.mark.parametrize("name", ["convnext", "efficientnet", "resnet", "swin"])
def test_a_tower_is_trained_saved_and_loaded(
    tmp_path: Path, photos: Path, language_folder: Path, name: str
) -> None:
    """Frozen or trained, its batch norms keep their statistics; the loaded model has the same logits."""
    assistant = assemble(folder_of(name, tmp_path / "tower"), language_folder, seed=3)
    model, pixels = assistant.model, torch.randn(2, 3, SIDE, SIDE)
    set_trainable(model, ["projector"])
    before, features = statistics(model), model.vision(pixels)
    assert step(assistant, photos) > 0
    assert torch.equal(model.train().vision(pixels), features)
    set_trainable(model, ["vision", "projector"])
    step(assistant, photos)
    model.eval()
    assert not torch.equal(model.vision(pixels), features)
    assert all(map(torch.equal, statistics(model), before))
    save_model_folder(tmp_path / "m", assistant)
    loaded = load_model_folder(tmp_path / "m")
    assert loaded.processor == assistant.processor
    # The sums of a convolution depend on the place of its weights in memory.
    torch.testing.assert_close(logits(loaded, photos), logits(assistant, photos), atol=1e-5, rtol=0)
    in_bf16 = load_model_folder(tmp_path / "m", torch.bfloat16)
    assert in_bf16.model.vision(pixels).dtype == torch.bfloat16
    for stored, original in zip(statistics(in_bf16.model), before, strict=True):
        assert stored.is_floating_point() == original.is_floating_point()


@pytest.mark.parametrize(
    ("name", "layer", "aspect", "reason"),
    [
        ("resnet", -1, "square", "whose hidden states are maps"),
        ("swin", -3, "square", "hidden state -3 has another width"),
        ("swin", -1, "anyres", "tiles for a vision tower that merges its patches"),
        ("focalnet", -1, "square", "hidden state -1 has another width"),
        ("swin", -2, "square", None),
        ("swinv2", -1, "square", None),
        ("hiera", -1, "square", None),
    ],
)
def test_what_transformers_cannot_express_it_rejects(
    tmp_path: Path, photos: Path, language_folder: Path, name: str, layer: int, aspect: ImageAspect, reason: str | None
) -> None:  # fmt: skip
    """Its LLaVA projects sequences as wide as the config says: those of the last stage of Swin and Hiera."""
    tower = folder_of(name, tmp_path / "tower")
    assistant = assemble(tower, language_folder, vision_feature_layer=layer, aspect=aspect, seed=3)
    save_model_folder(tmp_path / "m", assistant)
    if reason is None:
        expected = transformers_logits(tmp_path / "m", photos)
        torch.testing.assert_close(logits(assistant, photos), expected, atol=1e-5, rtol=0)
        return
    with pytest.raises(
        (KeyError, AttributeError), match=f"{reason}|has no attribute 'hidden_size'"
    ):
        LlavaForConditionalGeneration.from_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="caldera_llava"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("name", ["efficientnet", "swin"])
def test_tiles_and_attention_maps(
    tmp_path: Path, photos: Path, language_folder: Path, name: str
) -> None:
    """Tiles have the tower's grid, and each patch of the base view has its part of the image as its box."""
    assistant = assemble(
        folder_of(name, tmp_path / "tower"),
        language_folder,
        aspect="anyres",
        pinpoints=((2 * SIDE, SIDE), (SIDE, 2 * SIDE)),
        vision_feature_layer=3,
        seed=3,
    )
    assert step(assistant, photos) > 0
    image = Image.new("RGB", (120, 60))
    layout = assistant.processor.layout(image.size)
    vision = assistant.model.vision
    grid = vision.patches_per_side
    boxes = token_boxes(image.size, layout, assistant.processor, vision)
    assert len(boxes) == assistant.model.count_tokens(layout) == grid**2 + grid * (2 * grid + 1)
    assert boxes[1].tolist() == pytest.approx([1 / grid, 0, 2 / grid, 1 / grid])
    assert boxes[grid**2 - 1].tolist() == pytest.approx([1 - 1 / grid, 1 - 1 / grid, 1, 1])


@pytest.mark.parametrize("side", [63, 70])
@pytest.mark.parametrize(("name", "rounded"), [("resnet", "up"), ("convnext", "down")])
def test_sides_that_strides_do_not_divide(name: str, rounded: str, side: int) -> None:
    """The grid is what the tower gives, and its patches are spread over the full side."""
    vision = VisionTower(tower_of(name), side, -1)
    cells = side / 32
    assert vision.patches_per_side == (math.ceil(cells) if rounded == "up" else int(cells))
    assert vision.patch_size * vision.patches_per_side == pytest.approx(side)
    assert vision(torch.zeros(1, 3, side, side)).shape[1] == vision.patches_per_side**2


@pytest.mark.parametrize("name", ["resnet", "efficientnet", "swin", "segformer"])
def test_gradient_checkpointing_changes_no_gradient(
    tmp_path: Path, language_folder: Path, name: str
) -> None:
    """Layer by layer where transformers can, else the tower as a whole, whose activations are not kept."""
    model = assemble(folder_of(name, tmp_path / "tower"), language_folder, seed=3).model
    model.train()
    pixels, gradients, saved_bytes = torch.randn(2, 3, SIDE, SIDE), [], []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        torch.manual_seed(1)
        saved = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model.vision(pixels).square().mean()
        loss.backward()
        saved_bytes.append(saved)
        gradients.append([w.grad.clone() for w in model.vision.parameters() if w.grad is not None])
    assert saved_bytes[1] < saved_bytes[0] / 2
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_a_layer_that_does_not_exist_is_rejected_with_the_list(
    tmp_path: Path, language_folder: Path
) -> None:
    """The message tells the grid and width of each."""
    folder = folder_of("convnext", tmp_path / "tower")
    with pytest.raises(
        ModelFormatError,
        match=r"\(convnext\) has no hidden state 5; it has 0 to 4, from the end -1 to -5: 0 has 16 x 16 patches of "
        r"width 5, .*, 4 has 2 x 2 patches of width 11$",
    ):
        assemble(folder, language_folder, vision_feature_layer=5)


def test_weights_of_another_dtype_are_rejected(tmp_path: Path, language_folder: Path) -> None:
    """The counter of a batch norm is an integer; its statistics are not."""
    save_model_folder(
        tmp_path / "m", assemble(folder_of("resnet", tmp_path / "tower"), language_folder)
    )
    weights = load_file(tmp_path / "m" / "model.safetensors")
    name = next(name for name in weights if name.endswith("running_mean"))
    save_file({**weights, name: weights[name].long()}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ModelFormatError, match=r"running_mean .* holds torch\.int64"):
        load_model_folder(tmp_path / "m")


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_a_tower_of_timm_without_timm_names_the_package(
    tmp_path: Path, language_folder: Path
) -> None:
    """With the command that installs it."""
    timm = {
        "input_size": [3, SIDE, SIDE],
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    content = {"model_type": "timm_wrapper", "architecture": "resnet18", "pretrained_cfg": timm}
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"requires the timm library .*`pip install timm`"):
        assemble(tmp_path, language_folder)
