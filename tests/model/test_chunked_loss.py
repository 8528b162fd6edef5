"""The loss in chunks is the loss at once, its gradients are the same, and memory does not grow with the positions."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from caldera.model import llava
from caldera.model.llava import chunked_cross_entropy

POSITIONS, WIDTH, VOCABULARY = 13, 5, 11


def both(
    head: nn.Linear, dtype: torch.dtype = torch.float32, scale: float = 3.0
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return loss and gradients of hidden states and head, in chunks and at once."""
    torch.manual_seed(7)
    states = torch.randn(POSITIONS, WIDTH)
    wanted = torch.randint(VOCABULARY, (POSITIONS,))

    def to_logits(hidden: Tensor) -> Tensor:
        return 2 * torch.tanh(head(hidden).float() / 2)

    results = []
    for chunked in (True, False):
        hidden = states.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = (
                chunked_cross_entropy(to_logits, hidden, wanted, vocabulary=VOCABULARY, head=[*head.parameters()])
                if chunked
                else cross_entropy(to_logits(hidden), wanted, reduction="sum")
            )  # fmt: skip
        trained = [weight for weight in head.parameters() if weight.requires_grad]
        results.append((loss.detach(), *torch.autograd.grad(loss / scale, (hidden, *trained))))
    return results[0], results[1]


@pytest.mark.parametrize("positions_at_once", [1, 4, 13, 50])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_change_nothing(
    positions_at_once: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, and gradients of the hidden states, the head and its bias, whatever the size of a chunk."""
    monkeypatch.setattr(llava, "MAX_LOGIT_BYTES", 4 * VOCABULARY * positions_at_once)
    torch.manual_seed(3)
    chunked, whole = both(nn.Linear(WIDTH, VOCABULARY, bias=bias))
    assert len(chunked) == 3 + bias
    for mine, other in zip(chunked, whole, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in stage 1: the hidden states alone have one."""
    monkeypatch.setattr(llava, "MAX_LOGIT_BYTES", 4 * VOCABULARY * 4)
    torch.manual_seed(3)
    head = nn.Linear(WIDTH, VOCABULARY).requires_grad_(False)
    chunked, whole = both(head)
    assert len(chunked) == 2
    torch.testing.assert_close(chunked[1], whole[1], rtol=1e-5, atol=1e-6)
    assert head.weight.grad is None


def test_bf16_is_as_exact_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, with several chunks that share the head's cast weights."""
    monkeypatch.setattr(llava, "MAX_LOGIT_BYTES", 4 * VOCABULARY * 4)
    torch.manual_seed(3)
    chunked, whole = both(nn.Linear(WIDTH, VOCABULARY), torch.bfloat16)
    for mine, other in zip(chunked, whole, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-2, atol=2e-2)
    assert all(bool(one.abs().sum() > 0) for one in chunked)


def test_without_gradients_it_only_sums() -> None:
    """In validation nothing is kept."""
    head = nn.Linear(WIDTH, VOCABULARY)
    hidden, wanted = torch.randn(POSITIONS, WIDTH), torch.randint(VOCABULARY, (POSITIONS,))
    with torch.no_grad():
        loss = chunked_cross_entropy(
            head, hidden, wanted, vocabulary=VOCABULARY, head=[*head.parameters()]
        )
        expected = cross_entropy(head(hidden), wanted, reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert not loss.requires_grad


BIG = """
import resource, sys, torch
from torch import nn
from caldera.model.llava import chunked_cross_entropy
torch.set_num_threads(1)
head = nn.Linear(8, 262_144, bias=False)
hidden = torch.randn(int(sys.argv[1]), 8, requires_grad=True)
wanted = torch.zeros(len(hidden), dtype=torch.long)
chunked_cross_entropy(head, hidden, wanted, vocabulary=262_144, head=[head.weight]).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_learned_tokens() -> None:
    """Eight times as many labels of a vocabulary of 262,144 take as much; at once they would take 4 GB more."""
    peaks = [
        int(subprocess.run([sys.executable, "-c", BIG, str(count)], check=True, capture_output=True, text=True).stdout)
        for count in (512, 4096)
    ]  # fmt: skip
    assert peaks[1] - peaks[0] < 300_000  # kilobytes
