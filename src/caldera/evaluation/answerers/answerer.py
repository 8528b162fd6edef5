"""What answers a benchmark's items is to its run, and how it is asked."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from caldera.errors import UsageError
from caldera.evaluation.answer_parsing import LETTERS
from caldera.evaluation.benchmark import Item

ChooseBy = Literal["generation", "letter", "option", "option-mean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerConfig:
    """How items are asked."""

    temperature: float = 0.0
    """0 takes the likeliest token; over 0 draws, and then no answer is kept for another start."""

    top_p: float = 1.0
    seed: int = 0
    """Of the draws."""

    max_new_tokens: int | None = None
    """Longest answer; the task's own length if None."""

    choice_method: ChooseBy = "generation"
    """How an option is chosen where there are some: the model writes its answer, or the likeliest is taken: of the
    options' letters, of their words, or of their words by the token. Only a model folder tells how likely they are."""

    batch_size: int = 32
    """Items that a model folder answers together."""

    concurrency: int = 16
    """Requests under way at a server at a time."""

    requests_per_minute: int | None = None
    timeout: float = 180.0
    """Seconds for one request."""

    retries: int = 5
    max_consecutive_failures: int = 20
    """Items that fail in a row before a server is asked no more."""

    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What a server calls the longest answer."""

    def __post_init__(self) -> None:
        """Check what nothing else checks.

        Raises:
            UsageError: A setting cannot be.
        """
        if self.choice_method not in (known := ("generation", "letter", "option", "option-mean")):
            raise UsageError(
                f"choose_by is {self.choice_method!r}; write one of {', '.join(known)}"
            )
        for name in ("batch_size", "max_consecutive_failures"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one item."""

    id: str
    text: str = ""
    error: str = ""
    """Why there is no answer; empty where there is one. A failed item is never scored."""

    option_log_likelihoods: tuple[tuple[float, int], ...] = ()
    """Of each option, in the order shown: its log-likelihood in nats, and its tokens."""

    model: str = ""
    """The model as a server names it; empty where a model folder answered."""


OnAnswers = Callable[[Sequence[Answer]], None]
"""Is given answers as they come."""


class Answerer(Protocol):
    """Answers items."""

    @property
    def identity(self) -> Mapping[str, str]:
        """All that answers depend on beside the prompt, the images and the longest answer."""
        ...

    @property
    def model_info(self) -> Mapping[str, str]:
        """What else a reader of the scores wants to know of it."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether the same question gets the same answer every time, so that it may be kept."""
        ...

    @property
    def batched(self) -> bool:
        """Whether items are answered together by one's own sums, so that what else is asked decides how these round."""
        ...

    def prompt(self, item: Item, images: Sequence[str]) -> str:
        """Return exactly what is asked, given the digests of the item's images.

        Raises:
            CalderaError: It cannot be asked.
        """
        ...

    def ask(
        self,
        items: Sequence[Item],
        done: Collection[str],
        on_answers: OnAnswers,
        *,
        folder: Path,
        max_new_tokens: int,
    ) -> None:
        """Ask all items but those that are done, and hand over answers as they come.

        Args:
            items: All items of the run, also those that are done: what is answered together is chosen among all, so
                that a run that goes on does as one that was never interrupted.
            done: Ids of items that need no answer.
            took: Is given answers.
            folder: Folder that image paths start from.
            max_new_tokens: Longest answer.

        Raises:
            CalderaError: No item can be answered any more.
        """
        ...


def option_letter(item: Item, option: int) -> str:
    """Return the letter of an item's option.

    Raises:
        UsageError: It has more options than letters.
    """
    if option >= len(LETTERS):
        raise UsageError(f"item {item.id} has more options than there are letters")
    return LETTERS[option]
