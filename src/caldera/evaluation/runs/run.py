"""Evaluate a task into a folder.

journal.jsonl   every answer that was finished, on disk before the next is asked for
answers.jsonl   a line for each item: prompt, answer, what was read of it, mark
results.json    the numbers; a run that was killed and went on writes the same bytes as one that was not
report.html     both to look at
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from caldera.devices import DeviceConfig, Runtime
from caldera.errors import CalderaError, InputError, UsageError
from caldera.evaluation.answerers.answerer import Answer, AnswerConfig, Answerer
from caldera.evaluation.answerers.local_model import load_answerer
from caldera.evaluation.answerers.remote_server import ServerAddress, ServerAnswerer
from caldera.evaluation.benchmark import Benchmark, BenchmarkSpec, Item, Score, Sources
from caldera.evaluation.runs.answers import (
    AnswerCache,
    AnswerKey,
    build_item_results,
    write_samples,
)
from caldera.evaluation.runs.report import read_run, write_run_report
from caldera.evaluation.runs.results import (
    BenchmarkInfo,
    Results,
    build_results,
    limit_items,
    provenance,
    score_answered,
    with_items,
)
from caldera.files.atomic import lock_folder, write_json
from caldera.images.decoding import read_bytes
from caldera.progress import NoProgress, Progress


def evaluate(
    benchmark: Benchmark,
    answerer: Answerer,
    *,
    folder: Path,
    out: Path,
    about: BenchmarkInfo = BenchmarkInfo(),  # noqa: B008 - frozen
    max_new_tokens: int | None = None,
    progress: Progress = NoProgress(),  # noqa: B008 - without state
) -> Results:
    """Ask every item that no earlier start has asked, score, and write the run's folder.

    Args:
        benchmark: What is asked.
        answerer: Who answers.
        folder: Folder that image paths start from.
        out: The run's folder.
        about: What is known of the benchmark beside its items.
        max_new_tokens: Longest answer; the benchmark's own if None.
        progress: Follows the work.

    Returns:
        What `results.json` holds; `valid` tells whether so many items were answered that the score says something.

    Raises:
        EvaluationError: No item was answered.
        CalderaError: The answerer, a file or the disk ended the run; answers so far are kept.
    """
    longest = max_new_tokens or benchmark.max_new_tokens
    with lock_folder(out):
        asked = _PreparedItems(answerer, folder, longest)
        asked.prepare(benchmark.items, progress)
        answers = _answers(benchmark, asked, out, progress)
        score = score_answered(benchmark, answers)
        results = build_results(benchmark, answers, score, about)
        results["images"] = str(folder.resolve())
        results["provenance"] = {
            **provenance(answerer, benchmark.items, asked.images, about, longest),
            "answered by": ", ".join(sorted({one.model for one in answers.values() if one.model})),
            "first prompt": next(iter(asked.prompts.values()), ""),
        }
        samples = build_item_results(benchmark.items, asked.prompts, answers, score)
        write_samples(out / "answers.jsonl", samples)
        write_json(out / "results.json", results)
        write_run_report(out / "report.html", [read_run(out)])
    return results


def answer_items(
    benchmark: Benchmark,
    answerer: Answerer,
    *,
    folder: Path,
    out: Path,
    max_new_tokens: int | None = None,
    progress: Progress = NoProgress(),  # noqa: B008 - without state
) -> Mapping[str, Answer]:
    """Ask as `evaluate` does, but write `answers.jsonl` alone, without marks: a judge has yet to read the answers.

    Raises:
        CalderaError: The answerer, a file or the disk ended the run; answers so far are kept.
    """
    with lock_folder(out):
        asked = _PreparedItems(answerer, folder, max_new_tokens or benchmark.max_new_tokens)
        asked.prepare(benchmark.items, progress)
        answers = _answers(benchmark, asked, out, progress)
        samples = build_item_results(benchmark.items, asked.prompts, answers, Score(0.0))
        write_samples(out / "answers.jsonl", samples)
    return answers


@dataclass(slots=True)
class _PreparedItems:
    """What is asked of whom, and under which key each answer is kept."""

    answerer: Answerer
    folder: Path
    max_new_tokens: int
    prompts: dict[str, str] = field(default_factory=dict)
    """By item id, as the answers below."""

    images: dict[str, list[str]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    failed: dict[str, Answer] = field(default_factory=dict)

    def prepare(self, items: Sequence[Item], progress: Progress) -> None:
        """Write prompts and look at images; items whose images cannot be read fail."""
        digests: dict[str, str] = {}
        identity = self.answerer.identity
        among = _digest_of_ids(items) if self.answerer.batched else ""
        with progress.task("reading the items", len(items)) as tick:
            for item in items:
                try:
                    for path in item.conversation.images:
                        if path not in digests:
                            content = read_bytes(self.folder / path)
                            digests[path] = hashlib.sha256(content).hexdigest()
                    shown = [digests[path] for path in item.conversation.images]
                    prompt = self.answerer.prompt(item, shown)
                except CalderaError as fault:
                    self.failed[item.id] = Answer(item.id, error=str(fault))
                else:
                    self.prompts[item.id], self.images[item.id] = prompt, shown
                    self.keys[item.id] = AnswerKey(
                        identity, prompt, shown, self.max_new_tokens, among
                    ).digest
                tick()


def _digest_of_ids(items: Sequence[Item]) -> str:
    """Return the sha256 of the items' ids in their order."""
    return hashlib.sha256("\0".join(item.id for item in items).encode()).hexdigest()


def _answers(
    benchmark: Benchmark, asked: _PreparedItems, out: Path, progress: Progress
) -> Mapping[str, Answer]:
    """Return an answer for each item, out of the journal or anew.

    Raises:
        CalderaError: The answerer or the disk ended the run.
    """
    answers = dict(asked.failed)
    with ExitStack() as stack:
        journal: AnswerCache | None = None
        if asked.answerer.deterministic:  # a drawn answer is another one each time
            journal = AnswerCache(out / "journal.jsonl")
            stack.callback(journal.close)
            for name, key in asked.keys.items():
                if known := journal.find(key, name):
                    answers[name] = known
        ready = [item for item in benchmark.items if item.id in asked.keys]
        tick = stack.enter_context(
            progress.task(f"asking {benchmark.name}", len(benchmark.items), initial=len(answers))
        )

        def took(some: Sequence[Answer]) -> None:
            if journal is not None:
                journal.add({asked.keys[one.id]: one for one in some if not one.error})
            answers.update({one.id: one for one in some})
            failed = sum(1 for one in answers.values() if one.error)
            tick(len(some), detail=f"failed {failed}" if failed else "")

        asked.answerer.ask(
            ready,
            frozenset(answers),
            took,
            folder=asked.folder,
            max_new_tokens=asked.max_new_tokens,
        )
    return answers


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """A task and what is asked of it."""

    task: BenchmarkSpec
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


def find_default_files(folder: Path, task: BenchmarkSpec, given: Sources) -> Sources:
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
