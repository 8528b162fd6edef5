"""What a user orders in, a run out: a task, its official files, and a model folder or a server's address."""

from dataclasses import dataclass, replace
from pathlib import Path

from caldera.errors import InputError, UsageError
from caldera.evaluation.answering.answerer import AnswerConfig, Answerer
from caldera.evaluation.answering.endpoint_answerer import ServerAddress, ServerAnswerer
from caldera.evaluation.answering.engine_answerer import load_answerer
from caldera.evaluation.benchmarks.task import Sources, Task
from caldera.evaluation.runs.provenance import BenchmarkInfo
from caldera.evaluation.runs.run import answer_items, evaluate
from caldera.evaluation.runs.scoring import Results, limit_items, with_items
from caldera.training.devices import DeviceConfig, Runtime


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """A task and what is asked of it."""

    task: Task
    sources: Sources
    limit: int | None = None
    """Ask only the first items, so many at most; what is scored together is asked together. None asks all."""


def evaluate_task(
    order: EvaluationConfig,
    model: str,
    *,
    out: Path,
    asking: AnswerConfig,
    server: ServerAddress,
    means: Runtime,
) -> Results | None:
    """Ask a model folder, or a server where `model` is its address, the items of a task; see `evaluate`.

    Returns:
        The numbers; None where a judge has to read the answers first.

    Raises:
        UsageError: Files are missing.
        CalderaError: Files, model or server cannot be used, or the result cannot be written.
    """
    task, sources = order.task, order.sources
    benchmark = task.load(sources)
    items = benchmark.items
    if wordless := [item.id for item in items if not item.conversation.turns]:
        raise InputError(
            f"{len(wordless)} items have an answer but no question, the first {wordless[0]}; these files can score "
            f"answers, but to ask a model {task.name} needs its questions, too (--questions)"
        )
    files = {"questions": sources.questions, "annotations": sources.annotations}
    about = BenchmarkInfo(
        title=task.title,
        measures=task.measures,
        headline=task.primary_metric,
        chance=task.chance,
        files={name: path for name, path in files.items() if path is not None and path.is_file()},
        split_size=len(items),
    )
    if order.limit is not None and order.limit < len(items):
        benchmark = with_items(benchmark, limit_items(items, order.limit))
    answerer = open_answerer(model, asking, server, means.compute)
    folder = image_folder(sources)
    inside = out / "images"
    if (
        sources.images is None
        and task.extract_images is not None
        and task.extract_images(sources, inside)
    ):
        folder = inside
    if task.needs_judge(benchmark.items):
        answer_items(
            benchmark,
            answerer,
            folder=folder,
            out=out,
            max_new_tokens=asking.max_new_tokens,
            progress=means.progress,
        )
        return None
    return evaluate(
        benchmark,
        answerer,
        folder=folder,
        out=out,
        about=about,
        max_new_tokens=asking.max_new_tokens,
        progress=means.progress,
    )


def open_answerer(
    model: str, asking: AnswerConfig, server: ServerAddress, compute: DeviceConfig
) -> Answerer:
    """Return what answers: a server where `model` is an address, else a model folder.

    Raises:
        CalderaError: It cannot be asked in this way, or not loaded.
    """
    if model.startswith(("http://", "https://")):
        return ServerAnswerer(replace(server, url=model), asking)
    return load_answerer(Path(model), asking=asking, compute=compute)


def image_folder(sources: Sources) -> Path:
    """Return the folder that image paths start from."""
    if sources.images is not None:
        return sources.images
    file = sources.questions or sources.annotations
    if file is None:
        return Path()
    return file if file.is_dir() else file.parent


def find_default_files(folder: Path, task: Task, given: Sources) -> Sources:
    """Add to what a user gave the official files of a task that lie in a folder under their official names.

    Raises:
        UsageError: The names of the task's files are not fixed.
        InputError: None of them is there.
    """
    layout = task.default_files
    named = {
        "questions": layout.questions,
        "annotations": layout.annotations,
        "images": layout.images,
    }
    wanted = {name: folder / path for name, path in named.items() if path is not None}
    if not wanted:
        raise UsageError(
            f"the files of {task.name} have no fixed names, so --data cannot find them; name each (--questions ...)"
        )
    found = {name: path for name, path in wanted.items() if path.exists()}
    if not found:
        names = ", ".join(str(path.relative_to(folder)) for path in wanted.values())
        raise InputError(f"{folder} holds none of the files of {task.name}: {names}")
    return replace(
        given,
        questions=given.questions or found.get("questions"),
        annotations=given.annotations or found.get("annotations"),
        images=given.images or found.get("images"),
    )
