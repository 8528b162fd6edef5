"""Evaluate a model on questions from a COCO folder."""

from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.coco import read_coco
from caldera.devices import Runtime
from caldera.evaluation.annotation_questions import build_questions
from caldera.evaluation.answerers.answerer import AnswerConfig
from caldera.evaluation.answerers.remote_server import ServerAddress
from caldera.evaluation.runs.results import BenchmarkInfo, Results
from caldera.evaluation.runs.run import evaluate, open_answerer
from caldera.files.skipped import SkippedItems


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoQuestions:
    """Which questions are written from which annotations."""

    folder: Path
    split: str | None = None
    per_image: int = 8
    context_per_image: int = 2
    seed: int = 0
    max_bad: float = 0.0
    """Share of images that may be left out."""


def evaluate_on_coco(
    model: str,
    questions: CocoQuestions,
    *,
    out: Path,
    asking: AnswerConfig,
    server: ServerAddress,
    means: Runtime,
) -> Results:
    """Ask a model folder or a server questions written from a COCO folder; see `evaluate` for what is written.

    Raises:
        CalderaError: Model or annotations cannot be read, or the result cannot be written.
    """
    benchmark = build_questions(
        read_coco(questions.folder, SkippedItems(questions.max_bad), questions.split),
        name="coco",
        per_image=questions.per_image,
        context_per_image=questions.context_per_image,
        seed=questions.seed,
        relative_to=questions.folder,
    )
    about = BenchmarkInfo(
        title=f"Questions written from {questions.folder}",
        measures="What annotations answer beyond doubt, asked in words and scored by exact match.",
    )
    return evaluate(
        benchmark,
        open_answerer(model, asking, server, means.compute),
        folder=questions.folder,
        out=out,
        about=about,
        max_new_tokens=asking.max_new_tokens,
        progress=means.progress,
    )
