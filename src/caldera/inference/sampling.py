"""Sampling parameters, and the choice of the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from caldera.errors import UsageError, check_ranges

MAX_TOP_LOGPROBS = 20
"""Maximum of `top_logprobs`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Sampling parameters, logprobs, and stop conditions."""

    temperature: float = 0.0
    """0 takes the most likely token (greedy); above 0 samples, more randomly the higher it is."""

    top_p: float = 1.0
    """Sample only from the most likely tokens that together have this probability."""

    top_k: int = 0
    """Sample only from this number of the most likely tokens; 0 means all."""

    max_new_tokens: int = 256
    """Maximum length of the answer."""

    seed: int = 0
    """Seed of the sampling."""

    stop: tuple[str, ...] = ()
    """Texts before which the answer ends, in addition to the template's own."""

    ignore_template_stop: bool = False
    """Do not end the answer at the template's stop text; end tokens still end it."""

    logprobs: bool = False
    """Return the log probability of each token."""

    top_logprobs: int = 0
    """Number of most likely alternatives to return for each token."""

    def __post_init__(self) -> None:
        """Check every setting."""
        check_ranges(
            self,
            {
                "temperature": "[0, 10]",
                "top_p": "(0, 1]",
                "top_k": "[0, inf]",
                "max_new_tokens": "[1, inf]",
                "seed": f"[0, {1 << 63})",
                "top_logprobs": f"[0, {MAX_TOP_LOGPROBS}]",
            },
        )
        if "" in self.stop:
            raise UsageError("stop holds an empty text, which every answer begins with; remove it")
        if self.top_logprobs and not self.logprobs:
            raise UsageError("top_logprobs needs logprobs; set both or neither")


def sample_tokens(logits: Tensor, sampling: SamplingParams, generator: torch.Generator) -> Tensor:
    """Choose a token for each row of `logits`, (rows, vocabulary); return ids, (rows,)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / sampling.temperature).softmax(dim=-1)  # (rows, vocabulary)
    if sampling.top_k and sampling.top_k < probabilities.shape[-1]:
        ordered, ids = probabilities.topk(sampling.top_k, dim=-1)  # (rows, top_k)
        ordered = ordered / ordered.sum(dim=-1, keepdim=True)
    else:
        ordered, ids = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # probability of all more likely tokens
    ordered[before >= sampling.top_p] = 0
    columns = torch.multinomial(ordered, 1, generator=generator)  # (rows, 1)
    return ids.gather(-1, columns).squeeze(-1)  # (rows,)
