"""Linear layers in, the same layers out for inference on a processor: weights laid out for its matrix units.

oneDNN reads weights that were laid out for it two to three times as fast as `F.linear` reads them from rows, for one
token as for hundreds, and rounds as it does. int8 has a scale for each row of the weights and for each token: both
sides of the product are whole numbers, added up in 32 bits.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from caldera.devices import release_file_pages

Quantization = Literal["as stored", "int8"]

_LARGEST = 127
"""Of a whole number in 8 bits, with the sign aside."""

_ZERO = 128
"""Stands for 0 where tokens are kept in 8 bits without a sign, which is what oneDNN is fast at."""


_OUTLIER_RATIO = 8
"""Times the root of the mean square: a token whose largest value is larger loses over 2 % by rounding it once."""


class LinearOp(Protocol):
    """What stands for a linear layer."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return (rows, outputs) of (rows, inputs)."""
        ...


class PlainLinear:
    """The layer as PyTorch has it; on devices that need no other layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take weights, (outputs, inputs)."""
        self._weight, self._bias = weight, bias

    def __call__(self, inputs: Tensor) -> Tensor:
        """Multiply."""
        return functional.linear(inputs, self._weight, self._bias)


class OneDnnLinear:
    """A layer whose weights oneDNN has laid out."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Lay out weights, (outputs, inputs)."""
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias

    def __call__(self, inputs: Tensor) -> Tensor:
        """Multiply."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")


class Int8:
    """A layer whose weights are whole numbers of 8 bits; what goes in becomes such numbers, twice where once is coarse.

    Language models have tokens with a few values a thousand times as large as the others (Sun et al. 2024, Massive
    Activations, arXiv 2402.17762); 127 steps of the largest leave nothing of the rest. What the first rounding leaves
    is rounded again, and multiplied beside the first, for the tokens that have such values: together 15 bits.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Round weights, (outputs, inputs), to 127 steps of each row's largest."""
        weight = weight.float()
        self._scales = weight.abs().amax(dim=1).clamp(min=1e-12) / _LARGEST  # (outputs,)
        steps = (weight / self._scales.unsqueeze(1)).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(steps, None)
        self._zero = torch.zeros(1, dtype=torch.int32)
        self._bias = None if bias is None else bias.float()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Round tokens, and multiply."""
        wide = inputs.float()
        largest = torch.linalg.vector_norm(wide, torch.inf, dim=1, keepdim=True)  # (rows, 1)
        size = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        scales = largest.clamp(min=1e-12) / _LARGEST
        steps = (wide / scales).round_()  # (rows, inputs)
        coarse = (largest * inputs.shape[1] ** 0.5 > _OUTLIER_RATIO * size).squeeze(1)
        if not bool(coarse.any()):
            found = self._multiplied(steps).mul_(scales)  # (rows, outputs)
        else:
            finer = scales[coarse] / (2 * _LARGEST)  # a rest is at most half a step
            rest = ((wide[coarse] - steps[coarse] * scales[coarse]) / finer).round_()
            product = self._multiplied(torch.cat([steps, rest]))
            found = product[: len(inputs)] * scales
            found[coarse] += product[len(inputs) :] * finer
        return (found if self._bias is None else found.add_(self._bias)).to(inputs.dtype)

    def _multiplied(self, steps: Tensor) -> Tensor:
        """Multiply whole numbers, (rows, inputs), from -127 to 127; return (rows, outputs)."""
        return torch.ops.onednn.qlinear_pointwise(
            (steps + _ZERO).to(torch.uint8), 1.0, _ZERO, self._weight, self._scales, self._zero, None, 1.0, 0,
            torch.float32, "none", [], "none",
        )  # fmt: skip


def build_linear(layers: Sequence[nn.Linear], bits: Quantization = "as stored") -> LinearOp:
    """Return one product for layers with the same input; their outputs stand side by side.

    Where the weights are laid out anew, those in the layers are let go of as far as a file holds them.
    """
    weights = [layer.weight.detach() for layer in layers]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]  # (outputs, inputs)
    bias = _concat_biases([layer.bias for layer in layers], weights)
    if bits == "as stored" and not can_pack(weight):
        return PlainLinear(weight, bias)
    product = Int8(weight, bias) if bits == "int8" else OneDnnLinear(weight, bias)
    for one in weights:
        release_file_pages(one)
    return product


def _concat_biases(biases: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor | None:
    """Join biases, zeros where there is none; None if there is none at all."""
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            weight.new_zeros(len(weight)) if bias is None else bias.detach()
            for bias, weight in zip(biases, weights, strict=True)
        ]
    )


def can_pack(weight: Tensor) -> bool:
    """Tell whether oneDNN can lay out these weights."""
    on_processor = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if weight.dtype == torch.bfloat16:
        return on_processor and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return on_processor and weight.dtype == torch.float32


class PackedLinear(nn.Module):
    """A packed layer in the place of an `nn.Linear`."""

    def __init__(self, layer: nn.Linear) -> None:
        """Stand for `layer`, whose weights are kept as they are, too."""
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self._product = build_linear([layer])
        self._outputs = layer.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (..., outputs) of (..., inputs)."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        return self._product(rows).view(*inputs.shape[:-1], self._outputs)


def pack_layers(module: nn.Module) -> None:
    """Put packed layers in the place of all linear layers of a module that can be packed."""
    for name, child in module.named_children():
        if type(child) is nn.Linear and can_pack(child.weight):
            setattr(module, name, PackedLinear(child))
        else:
            pack_layers(child)
