"""Last hidden states where a label is in, their summed cross entropy out, with logits of a few positions at a time.

A vocabulary of 262,144 words makes a megabyte of logits for each learned token, twice with their gradient. So each
chunk's gradient is taken as soon as its logits are there, and they are let go: forward leaves the gradients of the
hidden states and of the head behind, which backward only scales. The mathematics is that of one chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

MAX_LOGIT_BYTES = 2**28
"""Of a chunk's logits in fp32."""

LogitsFn = Callable[[Tensor], Tensor]
"""Hidden states, (positions, width), to logits, (positions, vocabulary)."""


def chunked_cross_entropy(
    to_logits: LogitsFn, hidden: Tensor, wanted: Tensor, *, vocabulary: int, head: Sequence[Tensor]
) -> Tensor:
    """Return the cross entropy summed over positions, in nats; a scalar in fp32.

    Args:
        to_logits: The model's head, and what it does behind it.
        hidden: (positions, width).
        wanted: The token each position should give, (positions,).
        vocabulary: Width of the logits.
        head: Weights in `to_logits`; those that are trained get their gradient.
    """
    trained = [weight for weight in head if weight.requires_grad]
    if torch.is_grad_enabled() and (hidden.requires_grad or trained):
        total: Tensor = _ChunkedCrossEntropy.apply(
            to_logits, _positions(vocabulary), hidden, wanted, *trained
        )  # type: ignore[no-untyped-call]
        return total
    total = hidden.new_zeros((), dtype=torch.float32)
    for chunk in _chunks(len(wanted), _positions(vocabulary)):
        total = total + cross_entropy(to_logits(hidden[chunk]), wanted[chunk], reduction="sum")
    return total


def _positions(vocabulary: int) -> int:
    """Return how many positions' logits are held at once."""
    return max(1, MAX_LOGIT_BYTES // (4 * vocabulary))


def _chunks(count: int, size: int) -> Iterator[slice]:
    """Yield the slices that cut `count` positions into chunks."""
    for start in range(0, count, size):
        yield slice(start, start + size)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The loss with its gradients taken chunk by chunk in forward."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's, which has no type
        to_logits: LogitsFn,
        size: int,
        hidden: Tensor,
        wanted: Tensor,
        *trained: Tensor,
    ) -> Tensor:
        """Sum the loss, and keep the gradients."""
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weights = [torch.zeros_like(weight) for weight in trained]
        for chunk in _chunks(len(wanted), size):
            with torch.enable_grad():
                part = hidden[chunk].detach().requires_grad_()
                loss = cross_entropy(to_logits(part), wanted[chunk], reduction="sum")
                of_part, *of_weights = torch.autograd.grad(loss, (part, *trained))
            total += loss.detach()
            grad_hidden[chunk] = of_part
            for summed, one in zip(grad_weights, of_weights, strict=True):
                summed += one
        ctx.save_for_backward(grad_hidden, *grad_weights)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        """Scale what forward kept."""
        grad_hidden, *grad_weights = ctx.saved_tensors
        scaled = (gradient * one for one in grad_weights)
        return None, None, gradient.to(grad_hidden.dtype) * grad_hidden, None, *scaled
