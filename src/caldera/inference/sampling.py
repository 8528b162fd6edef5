"""Logits in, the next token of each row out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from caldera.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen, and when to stop."""

    temperature: float = 0.0
    """0 takes the likeliest token; over 0 draws one, the more freely the higher."""

    top_p: float = 1.0
    """Draw only from the likeliest tokens that together have this probability."""

    max_new_tokens: int = 256
    """Longest answer."""

    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            UsageError: One is out of its range.
        """
        if not 0 <= self.temperature <= 10:
            raise UsageError(f"temperature is {self.temperature}; it must lie in [0, 10]")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Choose a token for each row of `logits`, (rows, vocabulary); return ids, (rows,)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    chances = (logits.float() / sampling.temperature).softmax(dim=-1)  # (rows, vocabulary)
    ordered, ids = chances.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # probability of all likelier tokens
    ordered[before >= sampling.top_p] = 0
    drawn = torch.multinomial(ordered, 1, generator=generator)  # (rows, 1)
    return ids.gather(-1, drawn).squeeze(-1)  # (rows,)
