"""What a published benchmark is to its user: a name, official files, items to ask, and figures for answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from caldera.errors import UsageError
from caldera.evaluation.answer_files import read_answers
from caldera.evaluation.benchmark import Benchmark, Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """The files that a user has of a benchmark; None where none was given."""

    questions: Path | None = None
    """What is asked, in the official layout."""

    truth: Path | None = None
    """What is right, where the official layout keeps it apart."""

    pictures: Path | None = None
    """Folder that the questions' picture paths start from; the questions' own folder where None."""

    form: str = ""
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
        if self.truth is None:
            raise UsageError(f"this task needs --truth, {wanted}")
        return self.truth


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One published benchmark."""

    name: str
    """As the command line has it, such as "scienceqa"."""

    title: str
    measures: str
    """What it tells about a model, in a sentence."""

    size: str
    """Questions of the official split, and where to get them."""

    chance: Mapping[str, float]
    """What blind guessing gives, by figure, in the figure's own unit."""

    headline: str
    """The figure that papers quote."""

    files: str
    """What `score` needs beside the answers."""

    read: Callable[[Sources], Benchmark]
    """Official files in, items out; the benchmark scores answer texts."""

    score_files: Callable[[Sources, Path], Score]
    """Scores an official answer file, or a folder of them, without a model."""

    judged: bool = False
    """Whether a judge has to read the answers; `read` then gives a benchmark that scores verdicts."""


def scored_by(read: Callable[[Sources], Benchmark]) -> Callable[[Sources, Path], Score]:
    """Return a way to score answer files whose texts go by the ids of the items that `read` gives."""

    def score_files(sources: Sources, answers: Path) -> Score:
        return read(sources).score(read_answers(answers))

    return score_files
