"""Linear layers for inference on a CPU, with weights packed for oneDNN, as stored or in int8.

oneDNN reads packed weights two to three times as fast as `F.linear` reads rows, for one token as for hundreds, with the
same rounding. int8 has a scale for each row of the weights and for each token; both sides of the product are integers,
accumulated in 32 bits.
"""

from collections.abc import Sequence
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from caldera.devices import has_packed_weights, release_file_pages

Quantization = Literal["as stored", "int8"]

_INT8_MAX = 127

_MIN_STEPS = 16
"""Steps in the root mean square of a token, below which one rounding loses more than 2 %."""


class LinearOp(Protocol):
    """A linear layer as a function."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return (rows, outputs) of (rows, inputs)."""
        ...


class PlainLinear:
    """Linear layer as PyTorch computes it, for devices that need no other layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Hold weights, (outputs, inputs)."""
        self._weight, self._bias = weight, bias

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return (rows, outputs) of (rows, inputs)."""
        return functional.linear(inputs, self._weight, self._bias)


class OneDnnLinear:
    """Linear layer whose weights are packed by oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Pack weights, (outputs, inputs)."""
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return (rows, outputs) of (rows, inputs)."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")


class Int8:
    """Linear layer with 8-bit weights; its inputs are rounded to 8 bits, again where that is too coarse.

    Language models have tokens with a few values a thousand times as large as the others (Sun et al. 2024, Massive
    Activations, arXiv 2402.17762); 127 steps of the largest value leave nothing of the rest. For such tokens the
    rounding error is rounded again and multiplied as another row: 15 bits in total. A CPU that takes 7 bits rounds it
    twice more.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Round weights, (outputs, inputs), to 127 steps of each row's maximum."""
        weight = weight.float()
        self._scales = weight.abs().amax(dim=1).clamp(min=1e-12) / _INT8_MAX  # (outputs,)
        steps = (weight / self._scales.unsqueeze(1)).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(steps, None)
        self._max_step = _max_input_step()
        self._bias = None if bias is None else bias.float()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return (rows, outputs) of (rows, inputs)."""
        exact = inputs.float()
        maximum = torch.linalg.vector_norm(exact, torch.inf, dim=1, keepdim=True)  # (rows, 1)
        norm = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
        scales = maximum.clamp(min=1e-12) / self._max_step
        steps = (exact / scales).round_()  # (rows, inputs)
        coarse = (_MIN_STEPS * scales * inputs.shape[1] ** 0.5 > norm).squeeze(1)
        if not bool(coarse.any()):
            outputs = self._multiply(steps).mul_(scales)  # (rows, outputs)
        else:
            rest, scale = exact[coarse] - steps[coarse] * scales[coarse], scales[coarse]
            errors, error_scales = [], []
            for _ in range(1 if self._max_step == _INT8_MAX else 2):
                scale = scale / (2 * self._max_step)  # the rounding error is at most half a step
                errors.append((rest / scale).round_())
                error_scales.append(scale)
                rest = rest - errors[-1] * scale
            product = self._multiply(torch.cat([steps, *errors]))
            outputs = product[: len(inputs)] * scales
            products = product[len(inputs) :].chunk(len(errors))
            outputs[coarse] += sum(map(torch.mul, products, error_scales))
        return (outputs if self._bias is None else outputs.add_(self._bias)).to(inputs.dtype)

    def _multiply(self, steps: Tensor) -> Tensor:
        """Multiply integers up to the largest step, (rows, inputs); return (rows, outputs)."""
        return _multiply(steps, self._max_step, self._weight, self._scales)


def _multiply(steps: Tensor, max_step: int, weight: Tensor, scales: Tensor) -> Tensor:
    """Multiply integers from -max_step to max_step, (rows, inputs), by packed weights; return (rows, outputs)."""
    zero = max_step + 1  # oneDNN is fast with unsigned integers
    unsigned = (steps + zero).to(torch.uint8)
    # output scale 1 and zero point 0: the product stays in fp32
    return torch.ops.onednn.qlinear_pointwise(
        *(unsigned, 1.0, zero, weight, scales, torch.zeros(1, dtype=torch.int32), None, 1.0, 0),
        *(torch.float32, "none", [], "none"),
    )


@cache
def _max_input_step() -> int:
    """Return the largest integer of inputs whose products this CPU adds exactly.

    Without VNNI, two products are added in 16 bits, which overflow unless the inputs have 7 bits.
    """
    weight = torch.full((16, 64), _INT8_MAX, dtype=torch.int8)
    largest = torch.full((1, 64), _INT8_MAX)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    product = _multiply(largest, _INT8_MAX, packed, torch.ones(16))
    return _INT8_MAX if bool((product == 64 * _INT8_MAX**2).all()) else _INT8_MAX // 2


def build_linear(layers: Sequence[nn.Linear], quantization: Quantization = "as stored") -> LinearOp:
    """Return one layer that concatenates the outputs of layers with the same input.

    The pages of packed weights are released as far as a file holds them.
    """
    weights = [layer.weight.detach() for layer in layers]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]  # (outputs, inputs)
    bias = _concat_biases([layer.bias for layer in layers], weights)
    if quantization == "as stored" and not can_pack(weight):
        return PlainLinear(weight, bias)
    packed = Int8(weight, bias) if quantization == "int8" else OneDnnLinear(weight, bias)
    for original in weights:
        release_file_pages(original)
    return packed


def _concat_biases(biases: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor | None:
    """Concatenate biases, with zeros for missing ones; None if all are missing."""
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            weight.new_zeros(len(weight)) if bias is None else bias.detach()
            for bias, weight in zip(biases, weights, strict=True)
        ]
    )


def can_pack(weight: Tensor) -> bool:
    """Return whether oneDNN can pack these weights."""
    has_packed = has_packed_weights(weight.device)
    if weight.dtype == torch.bfloat16:
        return has_packed and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return has_packed and weight.dtype == torch.float32


class PackedLinear(nn.Module):
    """Packed replacement of an `nn.Linear`."""

    def __init__(self, layer: nn.Linear) -> None:
        """Replace `layer`; its parameters are held unchanged, too."""
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self._linear = build_linear([layer])
        self._outputs = layer.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (..., outputs) of (..., inputs)."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        return self._linear(rows).view(*inputs.shape[:-1], self._outputs)


def pack_layers(module: nn.Module) -> None:
    """Replace all linear layers of a module that can be packed."""
    for name, child in module.named_children():
        if type(child) is nn.Linear and can_pack(child.weight):
            setattr(module, name, PackedLinear(child))
        else:
            pack_layers(child)
