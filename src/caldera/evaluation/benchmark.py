"""Benchmark definitions, their items and their scores."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from caldera.conversation import Conversation
from caldera.errors import InputError, UsageError
from caldera.evaluation.answer_files import AnswerOptions, AnswerRecord, read_answer_list
from caldera.evaluation.answer_matching import (
    extract_question,
    match_answers,
    normalize_words,
)
from caldera.evaluation.files import join_names
from caldera.evaluation.judging.protocols import JudgeCase, JudgingProtocol
from caldera.evaluation.judging.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its correct answer."""

    id: str
    category: str
    """The skill it tests; scores are also given by category."""

    question_type: str
    """The kind of question, independent of its image."""

    conversation: Conversation
    """Ends with the question; image paths are relative to the benchmark's image folder."""

    references: tuple[str, ...]
    """The correct answer, or several to compare a free answer with."""

    choices: tuple[str, ...] = ()
    """Options of a multiple-choice question, in the order of the prompt; `references` then holds the letter."""

    slices: tuple[str, ...] = ()
    """Further groups that the item counts in, such as "grade: 1-6"."""

    group: str = ""
    """Name of the items that are only scored together, such as the image of MME's question pairs; empty if alone."""


@dataclass(frozen=True, slots=True)
class BootstrapStatistic:
    """A metric computed from sums over items, so that the bootstrap can resample it; in the metric's own unit."""

    per_item: Mapping[str, tuple[float, ...]]
    """Each item's summands, by item id."""

    from_sums: Callable[[np.ndarray], np.ndarray]
    """Maps sums, (resamples, sums), to the metric of each resample, (resamples,)."""


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of a benchmark's answers; fractions between 0 and 1 unless a benchmark documents another range."""

    overall: float
    by_category: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Number of items by category."""

    metrics: dict[str, Any] = field(default_factory=dict)
    """The authors' metrics under the authors' names, mostly times 100; JSON."""

    item_scores: dict[str, float] = field(default_factory=dict)
    """Each answer's score by item id, between 0 and 1; for intervals and lists of wrong answers."""

    unparsed: dict[str, str] = field(default_factory=dict)
    """Reason by item id for answers that could not be parsed; they are never scored silently."""

    statistic: BootstrapStatistic | None = None
    """The primary metric as a function of sums, if it is not the mean of the item scores."""

    parsed_answers: dict[str, str] = field(default_factory=dict)
    """The parsed answer that was compared, such as a letter, if it is not the answer text itself."""


class Benchmark(Protocol):
    """A set of items with a scoring rule."""

    @property
    def name(self) -> str:
        """Name of the benchmark."""
        ...

    @property
    def items(self) -> Sequence[Item]:
        """The items, always in the same order."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Maximum length of an answer."""
        ...

    def score(self, answers: Mapping[str, str]) -> Score:
        """Score answers by item id.

        Raises:
            InputError: Answers are missing, or belong to no item.
        """
        ...


@dataclass(frozen=True, slots=True)
class ScoredItems:
    """A benchmark whose score is a function of its items and their answers."""

    name: str
    items: Sequence[Item]
    score_answers: Callable[[Sequence[Item], Mapping[str, str]], Score]
    """Scores answers by item id; each item has one."""

    max_new_tokens: int = 128
    """The default is that of LLaVA's model_vqa_loader.py."""

    def score(self, answers: Mapping[str, str]) -> Score:
        """Check that the answers are those to the items, and score them."""
        check_answers(self.items, answers)
        return self.score_answers(self.items, answers)


def check_answers(items: Sequence[Item], answers: Mapping[str, str]) -> None:
    """Check that every item has an answer and every answer an item."""
    expected = {item.id for item in items}
    missing, unknown = expected - answers.keys(), answers.keys() - expected
    faults = []
    if missing:
        faults.append(
            f"{len(missing)} of {len(expected)} items have no answer: {join_names(missing)}"
        )
    if unknown:
        faults.append(f"{len(unknown)} answers belong to no item: {join_names(unknown)}")
    if faults:
        raise InputError(f"{'; '.join(faults)}; is this the right split?")
    if items and all(_repeats_question(item, answers[item.id]) for item in items):
        raise InputError("the answers are the questions; give the file of the model's answers")


def _repeats_question(item: Item, answer: str) -> bool:
    turns = item.conversation.turns
    question = normalize_words(extract_question(turns[-1].text.strip())) if turns else ""
    return question != "" and normalize_words(answer) == question


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """A benchmark's files on the user's disk; None if not given."""

    questions: Path | None = None
    """The questions, in the official layout."""

    annotations: Path | None = None
    """The correct answers, if the official layout has them in a file of their own."""

    images: Path | None = None
    """Folder that image paths are relative to; None: the folder of the questions."""

    captions: Path | None = None
    """Descriptions of the images, for a judge that cannot see them."""

    prompt_layout: str = ""
    """Name of the prompt layout, such as ScienceQA's "LEPA"; empty: the default."""

    answer_options: AnswerOptions = field(default_factory=AnswerOptions)
    """How to read an answer file."""

    @property
    def has_official_files(self) -> bool:
        """True if questions or correct answers are given."""
        return self.questions is not None or self.annotations is not None

    def read_answers(self, answers: Path) -> list[AnswerRecord]:
        """Return the answers of a file, or of a folder of them."""
        return read_answer_list(answers, self.answer_options)

    def require_questions(self, description: str) -> Path:
        """Return the question file, or raise UsageError that names the official file by `description`."""
        return _require(self.questions, "--questions", description)

    def require_annotations(self, description: str) -> Path:
        """Return the file of correct answers, or raise as `require_questions` does."""
        return _require(self.annotations, "--annotations", description)

    def require_captions(self, description: str) -> Path:
        """Return the file of image descriptions, or raise as `require_questions` does."""
        return _require(self.captions, "--context", description)


def _require(path: Path | None, option: str, description: str) -> Path:
    if path is None:
        raise UsageError(f"this benchmark needs {option}, {description}")
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSpec:
    """Definition of how a judge scores a benchmark's answers."""

    protocols: Mapping[str, JudgingProtocol]
    """Judging protocols by name; the first is the default."""

    build_cases: Callable[[Sources, Mapping[str, str]], list[JudgeCase]]
    """Maps official files and answers by id to judge cases; raises InputError if they do not match."""

    score: Callable[[Sequence[Verdict]], Score]
    """Scores the verdicts of one run."""

    files: Callable[[Sequence[Sequence[Verdict]], str], Mapping[str, str]]
    """Formats verdicts by run, and the judge's digest, as official files: text by file name."""

    needs_judge: Callable[[Item], bool] = lambda item: True
    settled_verdicts: Callable[[Sources, Mapping[str, str]], list[Verdict]] = (
        lambda sources, answers: []
    )
    """Verdicts on the answers that need no judge; they count in every run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkSpec:
    """Definition of a published benchmark."""

    name: str
    """Name on the command line, such as "scienceqa"."""

    title: str
    measures: str
    description: str
    """Number of questions in the official split, and the download address."""

    chance: Mapping[str, float]
    """Score of random guessing, by metric, in the metric's own unit."""

    primary_metric: str
    """The metric that papers quote."""

    required_files: str
    """Files that scoring needs in addition to the answers."""

    load: Callable[[Sources], Benchmark]
    """Loads official files into a benchmark that scores answer texts.

    Raises UsageError if a required file was not given, InputError if one is missing, broken or contradicts another.
    """

    from_answers: Callable[[Sequence[AnswerRecord]], Benchmark] | None = None
    """Builds the benchmark from answers that repeat questions and correct answers, if no official file is given."""

    score_official_files: Callable[[Sources, Path], Score] | None = None
    """Scores an official answer file, or a folder of them; None: the ids in these are those of the items."""

    default_files: Sources = Sources()
    """Official file names relative to one folder, for `--data`."""

    extract_images: Callable[[Sources, Path], bool] | None = None
    """Writes images embedded in the question file to a folder and returns whether there were any; None: never."""

    judging: JudgeSpec | None = None
    """How a judge scores the answers, if one is needed; the loaded benchmark then scores a judge's replies."""

    def needs_judge(self, items: Sequence[Item]) -> bool:
        """Return whether answers to some of these items need a judge."""
        return self.judging is not None and any(map(self.judging.needs_judge, items))

    def score_answer_files(self, sources: Sources, answers: Path) -> Score:
        """Score an official answer file, or a folder of them; raises as `load` and `Benchmark.score` do."""
        is_alone = self.from_answers is not None and not sources.has_official_files
        if self.score_official_files and not is_alone:
            return self.score_official_files(sources, answers)
        benchmark = None if is_alone else self.load(sources)
        records = sources.read_answers(answers)
        if benchmark is None:
            assert self.from_answers is not None
            benchmark = self.from_answers(records)
        return benchmark.score(match_answers(records, benchmark.items, answers))


def mean(scores: Iterable[float]) -> float:
    """Return the mean of at least one score."""
    values = list(scores)
    return sum(values) / len(values)


def to_percent(fraction: float) -> float:
    """Return a fraction times 100, rounded so that division errors vanish."""
    return round(100 * fraction, 6)


def scores_by_group(
    items: Iterable[Item], scores: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return the scores of each category and slice by item id, groups in order of appearance."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for item in items:
        for group in (item.category, *item.slices):
            groups[group][item.id] = scores[item.id]
    return dict(groups)


def score_items(
    items: Iterable[Item], scores: Mapping[str, float], unparsed: Mapping[str, str]
) -> Score:
    """Return the mean score of items, overall and by category and slice, without metrics."""
    groups = scores_by_group(items, scores)
    return Score(
        mean(scores.values()),
        {name: mean(group.values()) for name, group in groups.items()},
        {name: len(group) for name, group in groups.items()},
        item_scores=dict(scores),
        unparsed=dict(unparsed),
    )
