"""Sampling parameters, and the choice of the next token."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from caldera.errors import UnknownNameError, UsageError, check_ranges, shorten_value

MAX_TOP_LOGPROBS = 20
"""Maximum of `top_logprobs`."""

_SYNONYMS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_output_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "temp": "temperature",
    "do_sample": "temperature",
    "random_state": "seed",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "stop_words": "stop",
}
"""Names in OpenAI's API, transformers and llama.cpp; an error suggests the name here."""

_TYPES: Mapping[type, tuple[type, str]] = {
    float: (Real, "a number"),
    int: (Integral, "a whole number"),
    bool: (bool, "True or False"),
}
"""Types of values that a field of a type takes, and their name."""


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
        """Check every setting; `stop` may be a single text."""
        for field in fields(self):
            value = getattr(self, field.name)
            checked = (
                _to_texts(value)
                if field.name == "stop"
                else _to_number(field.name, value, field.type)
            )
            object.__setattr__(self, field.name, checked)
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


def _to_number(name: str, value: object, kind: Any) -> Any:  # noqa: ANN401 - a field's type
    """Return the value of a field as its own type, also from NumPy's numbers."""
    accepted, description = _TYPES[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{name} is {shorten_value(value)}; it must be {description}")
    return kind(value)


def _to_texts(value: object) -> tuple[str, ...]:
    """Return one or several texts as a tuple."""
    texts = (value,) if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        return tuple(texts)
    raise UsageError(f"stop is {shorten_value(value)}; it must be a text or a list of texts")


def sampling_from(settings: Mapping[str, Any]) -> SamplingParams:
    """Return sampling parameters from keyword arguments; None leaves a default.

    Raises:
        UnknownNameError: There is no such setting; the message suggests the right name.
        UsageError: A value has the wrong type or is out of range.
    """
    names = [field.name for field in fields(SamplingParams)]
    for name in settings:
        if name in _SYNONYMS:
            raise UsageError(f"no setting is called {name!r}; did you mean {_SYNONYMS[name]!r}?")
        if name not in names:
            raise UnknownNameError("setting", name, names)
    return SamplingParams(**{name: value for name, value in settings.items() if value is not None})


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
