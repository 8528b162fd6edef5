"""Item, Score, BenchmarkSpec, Sources; group means."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from caldera.conversation import Conversation
from caldera.errors import InputError, UsageError
from caldera.evaluation.files import join_names, read_answers
from caldera.evaluation.judging.protocols import JudgeCase, JudgingProtocol
from caldera.evaluation.judging.verdicts import Verdict


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
    by_category: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Items of each kind."""

    metrics: dict[str, Any] = field(default_factory=dict)
    """The scores as the benchmark's authors print them, by their names, mostly times 100; JSON."""

    item_scores: dict[str, float] = field(default_factory=dict)
    """What each item's answer was worth, by item id, between 0 and 1; for intervals and lists of what was wrong."""

    unparsed: dict[str, str] = field(default_factory=dict)
    """Items whose answer could not be read as what was asked for, with the reason; they are never scored in silence."""

    statistic: BootstrapStatistic | None = None
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """The files that a user has of a benchmark; None where none was given."""

    questions: Path | None = None
    """What is asked, in the official layout."""

    annotations: Path | None = None
    """What is right, where the official layout keeps it apart."""

    images: Path | None = None
    """Folder that the questions' image paths start from; the questions' own folder where None."""

    captions: Path | None = None
    """What is in the images, in words, for a judge that does not see them."""

    prompt_layout: str = ""
    """How questions are put, where a benchmark has several ways, such as ScienceQA's "LEPA"; empty: the usual."""

    def require_questions(self, wanted: str) -> Path:
        """Return the file of questions; `wanted` says which official file it is.

        Raises:
            UsageError: It was not given.
        """
        if self.questions is None:
            raise UsageError(f"this task needs --questions, {wanted}")
        return self.questions

    def require_annotations(self, wanted: str) -> Path:
        """Return the file of what is right; `wanted` says which official file it is.

        Raises:
            UsageError: It was not given.
        """
        if self.annotations is None:
            raise UsageError(f"this task needs --truth, {wanted}")
        return self.annotations

    def require_captions(self, wanted: str) -> Path:
        """Return the file of what is in the images; `wanted` says which official file it is.

        Raises:
            UsageError: It was not given.
        """
        if self.captions is None:
            raise UsageError(f"this task needs --context, {wanted}")
        return self.captions


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSpec:
    """How the answers of a task are judged."""

    protocols: Mapping[str, JudgingProtocol]
    """Ways to ask a judge, by exact name; the first is the usual one."""

    build_cases: Callable[[Sources, Mapping[str, str]], list[JudgeCase]]
    """Official files and answers by id in, what a judge is asked about out; raises InputError where they do not fit."""

    score: Callable[[Sequence[Verdict]], Score]
    """Scores one run's verdicts."""

    files: Callable[[Sequence[Sequence[Verdict]], str], Mapping[str, str]]
    """Writes verdicts by run, of the judge of that digest, as official files: texts by file name."""

    needs_judge: Callable[[Item], bool] = lambda item: True
    """Whether a judge has to read the answer to an item."""

    settled_verdicts: Callable[[Sources, Mapping[str, str]], list[Verdict]] = (
        lambda sources, answers: []
    )
    """Verdicts on the answers that no judge has to read; they count in every run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkSpec:
    """One published benchmark."""

    name: str
    """As the command line has it, such as "scienceqa"."""

    title: str
    measures: str
    """What it tells about a model, in a sentence."""

    description: str
    """Questions of the official split, and where to get them."""

    chance: Mapping[str, float]
    """What blind guessing gives, by figure, in the figure's own unit."""

    primary_metric: str
    """The figure that papers quote."""

    required_files: str
    """What `score` needs beside the answers."""

    load: Callable[[Sources], Benchmark]
    """Official files in, items out; the benchmark scores answer texts."""

    score_answer_files: Callable[[Sources, Path], Score]
    """Scores an official answer file, or a folder of them, without a model."""

    default_files: Sources = Sources()
    """Where its official files lie below one folder, under their official names, for `--data`."""

    extract_images: Callable[[Sources, Path], bool] | None = None
    """Writes images that the file of questions holds into a folder, where such a file may; tells whether it did."""

    judging: JudgeSpec | None = None
    """How a judge reads the answers, where one has to; `read` then gives a benchmark that scores a judge's replies."""

    def needs_judge(self, items: Sequence[Item]) -> bool:
        """Tell whether a judge has to read the answers to some of these items."""
        return self.judging is not None and any(map(self.judging.needs_judge, items))


def score_by_item_id(read: Callable[[Sources], Benchmark]) -> Callable[[Sources, Path], Score]:
    """Return a way to score answer files whose texts go by the ids of the items that `read` gives."""

    def score_files(sources: Sources, answers: Path) -> Score:
        return read(sources).score(read_answers(answers))

    return score_files


def mean(marks: Iterable[float]) -> float:
    """Return the mean of marks, of which there is at least one."""
    values = list(marks)
    return sum(values) / len(values)


def to_percent(share: float) -> float:
    """Return a share times 100, without the dust that division leaves."""
    return round(100 * share, 6)


def scores_by_group(
    items: Iterable[Item], marks: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return the marks of each kind and slice by item id, groups in the order that they were met."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for item in items:
        for group in (item.category, *item.slices):
            groups[group][item.id] = marks[item.id]
    return dict(groups)
