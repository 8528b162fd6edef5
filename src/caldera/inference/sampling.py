"""Logits in, the next token of each row out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from caldera.errors import UsageError

MAX_TOP_LOGPROBS = 20
"""Likeliest tokens that can be told of at each place."""

_SEEDS = 1 << 63


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the next token is chosen, what is told of it, and when to stop."""

    temperature: float = 0.0
    """0 takes the likeliest token; over 0 draws one, the more freely the higher."""

    top_p: float = 1.0
    """Draw only from the likeliest tokens that together have this probability."""

    top_k: int = 0
    """Draw only from so many of the likeliest tokens; 0 from all."""

    max_new_tokens: int = 256
    """Longest answer."""

    seed: int = 0
    """Of the draws."""

    stop: tuple[str, ...] = ()
    """An answer ends before the first of these texts."""

    logprobs: bool = False
    """Whether the logarithm of each token's probability is told."""

    top_logprobs: int = 0
    """Likeliest tokens that are told of beside each."""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            UsageError: One is out of its range.
        """
        ranges = (
            ("temperature", 0 <= self.temperature <= 10, "lie in [0, 10]"),
            ("top_p", 0 < self.top_p <= 1, "lie in (0, 1]"),
            ("top_k", self.top_k >= 0, "be at least 0"),
            ("max_new_tokens", self.max_new_tokens >= 1, "be at least 1"),
            ("seed", 0 <= self.seed < _SEEDS, f"lie in [0, {_SEEDS})"),
            ("top_logprobs", 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS, f"lie in [0, {MAX_TOP_LOGPROBS}]"),
        )  # fmt: skip
        for name, good, needed in ranges:
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)}; it must {needed}")
        if "" in self.stop:
            raise UsageError("stop holds an empty text, which every answer begins with; remove it")
        if self.top_logprobs and not self.logprobs:
            raise UsageError("top_logprobs is given without logprobs; ask for both or neither")


def sample_tokens(logits: Tensor, sampling: SamplingParams, generator: torch.Generator) -> Tensor:
    """Choose a token for each row of `logits`, (rows, vocabulary); return ids, (rows,)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    chances = (logits.float() / sampling.temperature).softmax(dim=-1)  # (rows, vocabulary)
    if sampling.top_k and sampling.top_k < chances.shape[-1]:
        ordered, ids = chances.topk(sampling.top_k, dim=-1)  # (rows, top_k)
        ordered = ordered / ordered.sum(dim=-1, keepdim=True)
    else:
        ordered, ids = chances.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # probability of all likelier tokens
    ordered[before >= sampling.top_p] = 0
    drawn = torch.multinomial(ordered, 1, generator=generator)  # (rows, 1)
    return ids.gather(-1, drawn).squeeze(-1)  # (rows,)
