"""Evaluation on questions written from a COCO folder."""

from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.coco import CocoOptions, read_coco
from caldera.devices import Runtime
from caldera.evaluation.annotation_questions import build_questions
from caldera.evaluation.answerers.answerer import AnswerConfig
from caldera.evaluation.answerers.remote_server import ServerAddress
from caldera.evaluation.runs.results import BenchmarkInfo, Results
from caldera.evaluation.runs.run import evaluate, open_answerer
from caldera.files.skipped_items import SkippedItems


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoQuestions:
    """Annotations and the questions to write from them."""

    folder: Path
    """COCO folder in any layout that `read_coco` finds, or an annotation file."""

    split: str | None = None
    images: Path | None = None
    captions: Path | None = None
    instances: Path | None = None
    """Folder and files in place of those that are found."""

    boxes: str | None = None
    """Unit and frame of the boxes, if the files do not show them."""

    per_image: int = 8
    context_per_image: int = 2
    seed: int = 0
    max_bad_fraction: float = 0.0
    """Maximum fraction of images that may be skipped."""


def evaluate_on_coco(
    model: str,
    questions: CocoQuestions,
    *,
    out: Path,
    config: AnswerConfig,
    server: ServerAddress,
    runtime: Runtime,
) -> Results:
    """Evaluate a model folder or a server on questions from a COCO folder; see `evaluate` for the files.

    Raises:
        CalderaError: Model or annotations cannot be read, or the results cannot be written.
    """
    skipped = SkippedItems(questions.max_bad_fraction)
    options = CocoOptions(
        split=questions.split,
        images=questions.images,
        captions=questions.captions,
        instances=questions.instances,
        boxes=questions.boxes,
    )
    annotations = read_coco(questions.folder, skipped, options)
    skipped.finish(annotations.total, out / "skipped.jsonl")
    path = questions.folder
    folder = questions.images or (path.parent if path.is_file() else path)
    benchmark = build_questions(
        annotations,
        name="coco",
        per_image=questions.per_image,
        context_per_image=questions.context_per_image,
        seed=questions.seed,
        relative_to=folder,
    )
    info = BenchmarkInfo(
        title=f"Questions written from {questions.folder}",
        measures="Facts that annotations settle, asked in words and scored by exact match.",
    )
    return evaluate(
        benchmark,
        open_answerer(model, config, server, runtime.compute),
        folder=folder,
        out=out,
        info=info,
        max_new_tokens=config.max_new_tokens,
        progress=runtime.progress,
    )
