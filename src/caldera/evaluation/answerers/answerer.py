"""Answerer protocol: what a run needs of a model that answers a benchmark's items."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from caldera.errors import UsageError, check_ranges
from caldera.evaluation.answer_parsing import LETTERS
from caldera.evaluation.benchmark import Item
from caldera.inference.prompts import FilePrompt

ChoiceMethod = Literal["generation", "letter", "option", "option-mean"]
MaxTokensField = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerConfig:
    """Settings for answering items."""

    temperature: float = 0.0
    """0 takes the most likely token; above 0 samples, and then no answer is cached for the next start."""

    top_p: float = 1.0
    seed: int = 0
    """Seed of the sampling."""

    max_new_tokens: int | None = None
    """Maximum length of an answer; the benchmark's own if None."""

    choice_method: ChoiceMethod = "generation"
    """Choice among the options of an item: the model generates its answer, or the most likely one is taken, by the
    likelihood of the options' letters, of their text, or of their text per token. Likelihoods need a model folder."""

    batch_size: int = 32
    """Items that a model folder answers together."""

    concurrency: int = 16
    """Parallel requests to a server."""

    requests_per_minute: int | None = None
    timeout: float = 180.0
    """Seconds for one request."""

    retries: int = 5
    max_consecutive_failures: int = 20
    """Consecutive items that may fail before a run at a server stops."""

    max_tokens_field: MaxTokensField = "max_tokens"
    """Name that a server has for the maximum length of an answer."""

    def __post_init__(self) -> None:
        """Check all settings, before a model is loaded."""
        for name, choices in (
            ("choice_method", get_args(ChoiceMethod)),
            ("max_tokens_field", get_args(MaxTokensField)),
        ):
            if (value := getattr(self, name)) not in choices:
                raise UsageError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
        counts = ("max_new_tokens", "batch_size", "concurrency", "requests_per_minute")
        check_ranges(
            self,
            {
                "temperature": "[0, 10]",
                "top_p": "(0, 1]",
                "seed": f"[0, {1 << 63})",
                **dict.fromkeys((*counts, "max_consecutive_failures"), "[1, inf]"),
                "timeout": "[0.001, inf]",
                "retries": "[0, inf]",
            },
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to one item, or why there is none."""

    id: str
    text: str = ""
    error: str = ""
    """Why there is no answer; empty if there is one. A failed item is never scored."""

    option_log_likelihoods: tuple[tuple[float, int], ...] = ()
    """Log likelihood in nats and number of tokens of each option, in the item's order."""

    model: str = ""
    """The model as a server names it; empty for a model folder."""


@dataclass(frozen=True, slots=True)
class PreparedItem:
    """An item with its prompt, which is rendered and tokenized once."""

    item: Item
    folder: Path
    """Folder that the item's image paths are relative to."""

    text: str
    """Exact prompt, as a model reads it or a server receives it."""

    prompt: FilePrompt | None = None
    """The same as token ids, for a model folder."""


OnAnswers = Callable[[Sequence[Answer]], None]
"""Called with answers as they arrive."""


class Answerer(Protocol):
    """Answers items."""

    @property
    def identity(self) -> Mapping[str, str]:
        """All settings that answers depend on, except the prompt, the images and the maximum length."""
        ...

    @property
    def model_info(self) -> Mapping[str, str]:
        """Further facts for readers of the scores."""
        ...

    @property
    def deterministic(self) -> bool:
        """True if the same question always gets the same answer, so that answers can be cached."""
        ...

    @property
    def batched(self) -> bool:
        """True if items are answered in batches, whose composition decides how sums are rounded."""
        ...

    def prepare(self, item: Item, folder: Path, image_digests: Sequence[str]) -> PreparedItem:
        """Build the prompt of an item.

        Args:
            item: A benchmark's item.
            folder: Folder that image paths are relative to.
            image_digests: sha256 of each of its image files.

        Raises:
            CalderaError: The item cannot be asked.
        """
        ...

    def ask(
        self,
        items: Sequence[PreparedItem],
        answered: Collection[str],
        on_answers: OnAnswers,
        *,
        max_new_tokens: int,
    ) -> None:
        """Answer all items that have no answer yet.

        Args:
            items: All items of the run. Batches are planned over all of them, so that a resumed run answers in the same
                batches as one that was never interrupted.
            answered: Ids of items that have an answer.
            on_answers: Called with answers as they arrive.
            max_new_tokens: Maximum length of an answer.

        Raises:
            CalderaError: No more items can be answered.
        """
        ...


def option_letter(item: Item, option: int) -> str:
    """Return the letter of an item's option.

    Raises:
        UsageError: The item has more options than letters.
    """
    if option >= len(LETTERS):
        raise UsageError(f"item {item.id} has more options than there are letters")
    return LETTERS[option]
