"""What a benchmark is: items to ask, and a score for the answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from caldera.conversation import Conversation
from caldera.errors import InputError
from caldera.evaluation.official_files import join_names


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to ask, with what is right."""

    id: str
    category: str
    """What it tests; scores are also given by kind."""

    question_type: str
    """Which question it is, whatever it is asked about."""

    conversation: Conversation
    """Ends with the question; its image paths start from the benchmark's folder."""

    references: tuple[str, ...]
    """The right answer, or several that a free answer is compared with."""

    choices: tuple[str, ...] = ()
    """The options of a multiple-choice question, in the order shown; `references` then holds the letter."""

    slices: tuple[str, ...] = ()
    """More groups that it counts in, such as "grade: 1-6"; `kind` is always one."""

    group: str = ""
    """What it is scored with, such as the image of MME's two questions: all items of a unit are scored, or none.
    Empty where it is scored alone."""


@dataclass(frozen=True, slots=True)
class BootstrapStatistic:
    """A figure made of sums over items, so that samples of them can be drawn again; in the figure's own unit."""

    per_item: Mapping[str, tuple[float, ...]]
    """What each item adds to each sum, by item id."""

    from_sums: Callable[[np.ndarray], np.ndarray]
    """Sums, (draws, sums), to the figure of each draw, (draws,)."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the answers came to; fractions between 0 and 1 unless a benchmark says otherwise."""

    overall: float
    by_kind: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Items of each kind."""

    metrics: dict[str, Any] = field(default_factory=dict)
    """The scores as the benchmark's authors print them, by their names, mostly times 100; JSON."""

    item_scores: dict[str, float] = field(default_factory=dict)
    """What each item's answer was worth, by item id, between 0 and 1; for intervals and lists of what was wrong."""

    unparsed: dict[str, str] = field(default_factory=dict)
    """Items whose answer could not be read as what was asked for, with the reason; they are never scored in silence."""

    sums: BootstrapStatistic | None = None
    """What the headline is made of, where that is no mean of marks."""

    parsed_answers: dict[str, str] = field(default_factory=dict)
    """What was read out of an item's answer and compared, where that is not the answer itself, such as a letter."""


class Benchmark(Protocol):
    """A set of items and its way of scoring."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def items(self) -> Sequence[Item]:
        """What is asked, always in the same order."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Longest answer that is asked for."""
        ...

    def score(self, answers: Mapping[str, str]) -> Score:
        """Score answers by item id.

        Raises:
            InputError: Answers are missing, or belong to no item.
        """
        ...


def check_answers(items: Sequence[Item], answers: Mapping[str, str]) -> None:
    """Refuse answers that do not belong to the items one by one.

    Raises:
        InputError: Some are missing or unknown; the message lists them.
    """
    wanted = {item.id for item in items}
    missing, unknown = wanted - answers.keys(), answers.keys() - wanted
    faults = []
    if missing:
        faults.append(
            f"{len(missing)} of {len(wanted)} items have no answer: {join_names(missing)}"
        )
    if unknown:
        faults.append(f"{len(unknown)} answers belong to no item: {join_names(unknown)}")
    if faults:
        raise InputError(f"{'; '.join(faults)}; is this the right split?")
