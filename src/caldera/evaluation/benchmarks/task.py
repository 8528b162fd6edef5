"""What a published benchmark is to its user: a name, official files, items to ask, and figures for answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from caldera.errors import UsageError
from caldera.evaluation.answer_files import read_answers
from caldera.evaluation.benchmark import Benchmark, Item, Score
from caldera.evaluation.judging.protocols import JudgeCase, JudgingProtocol
from caldera.evaluation.judging.verdicts import Verdict


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

    def need_questions(self, wanted: str) -> Path:
        """Return the file of questions; `wanted` says which official file it is.

        Raises:
            UsageError: It was not given.
        """
        if self.questions is None:
            raise UsageError(f"this task needs --questions, {wanted}")
        return self.questions

    def need_truth(self, wanted: str) -> Path:
        """Return the file of what is right; `wanted` says which official file it is.

        Raises:
            UsageError: It was not given.
        """
        if self.annotations is None:
            raise UsageError(f"this task needs --truth, {wanted}")
        return self.annotations

    def need_context(self, wanted: str) -> Path:
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
class Task:
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
