"""Norms that cost less in training, with the same numbers but for rounding.

Under autocast a norm puts out fp32, which each linear layer behind it casts anew; here it is cast once. And a root mean
square norm, as transformers writes it, keeps three tensors in fp32 for backward; here it keeps what comes in, which
others keep too, and one number for each token. The norm itself still computes in fp32.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

_EPSILONS = ("variance_epsilon", "eps", "epsilon")
"""What transformers' norms call the number that keeps them from dividing by zero."""


def replace_norms(language: PreTrainedModel) -> None:
    """Exchange what the norms of a language model's width do for what costs less.

    Norms of other widths, such as those of single heads, feed no linear layer and stay as they are.
    """
    width = language.config.get_text_config().hidden_size
    for module in language.modules():
        if not type(module).__name__.endswith("Norm") or _cast in module._forward_hooks.values():
            continue
        if all(weight.shape == (width,) for weight in module.parameters()):
            epsilon = _rms_norm_epsilon(module, width)
            if epsilon is not None:
                module.forward = partial(_fast_rms_norm, module, epsilon)
            module.register_forward_hook(_cast)


@torch.no_grad()
def _rms_norm_epsilon(module: nn.Module, width: int) -> float | None:
    """Return the epsilon of a plain root mean square norm; None if the module does something else."""
    weight = getattr(
        module, "weight", None
    )  # defaults: norms share no type that says what they have
    epsilon = next((getattr(module, name) for name in _EPSILONS if hasattr(module, name)), None)
    if epsilon is None or not isinstance(weight, Tensor) or len([*module.parameters()]) != 1:
        return None
    tried = torch.linspace(-2, 3, 2 * width, device=weight.device).view(2, width).to(weight.dtype)
    wanted, given = module(tried), _fast_rms_norm(module, epsilon, tried)
    close = torch.allclose(wanted.float(), given.float(), rtol=1e-2, atol=1e-3)
    return epsilon if close else None


def _fast_rms_norm(module: nn.Module, epsilon: float, hidden: Tensor) -> Tensor:
    """Normalize hidden states, (..., width), as transformers' own norm does."""
    out: Tensor = _RMSNorm.apply(hidden, module.weight, epsilon)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    """Root mean square norm (arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # noqa: ANN401 - torch's
        """Return hidden states over the root of their mean square, times the weight."""
        exact = hidden.float()
        scale = (exact.square().mean(dim=-1, keepdim=True) + epsilon).rsqrt()
        ctx.save_for_backward(hidden, weight, scale)
        return weight * (exact * scale).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:  # noqa: ANN401 - torch's
        """Normalize again, and from that the gradients."""
        hidden, weight, scale = ctx.saved_tensors
        normal = hidden.float() * scale
        incoming = gradient.float()
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = (incoming * normal).flatten(0, -2).sum(dim=0).to(weight.dtype)
        weighted = incoming * weight
        along = (weighted * normal).mean(dim=-1, keepdim=True)
        by_hidden = weighted.sub_(normal.mul_(along)).mul_(scale)
        return by_hidden.to(hidden.dtype), by_weight, None


def _cast(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ANN401 - torch's
    """Cast what a norm puts out."""
    del module, inputs
    device = output.device.type
    if torch.is_autocast_enabled(device):
        return output.to(torch.get_autocast_dtype(device))
    return output
