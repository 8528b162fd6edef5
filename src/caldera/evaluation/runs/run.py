"""Evaluation of a benchmark into a run folder.

journal.jsonl   every finished answer, on disk before the next batch starts
answers.jsonl   one line per item: prompt, answer, what was parsed from it, score
results.json    scores; a run that was killed and resumed writes the same bytes as an uninterrupted one
report.html     both as a page
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from caldera.devices import DeviceConfig, Runtime
from caldera.errors import CalderaError, InputError, Interrupted, UsageError
from caldera.evaluation.answerers.answerer import Answer, AnswerConfig, Answerer, PreparedItem
from caldera.evaluation.answerers.local_model import load_answerer
from caldera.evaluation.answerers.remote_server import ServerAddress, ServerAnswerer
from caldera.evaluation.benchmark import Benchmark, BenchmarkSpec, Item, Score, Sources
from caldera.evaluation.runs.answers import (
    AnswerCache,
    AnswerKey,
    build_item_results,
    write_item_results,
)
from caldera.evaluation.runs.report import read_run, write_run_report
from caldera.evaluation.runs.results import (
    MAX_FAILED,
    BenchmarkInfo,
    Results,
    build_results,
    limit_items,
    provenance,
    score_answered,
    with_items,
)
from caldera.files.atomic import lock_folder, write_json
from caldera.files.hub import parse_hub_name
from caldera.images.decoding import read_bytes
from caldera.interruption import signal_of
from caldera.progress import NoProgress, Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """A benchmark with its files, and how much of it to run."""

    spec: BenchmarkSpec
    sources: Sources
    limit: int | None = None
    """Evaluate at most this many items (groups that are scored together stay together). None: all."""


def evaluate_benchmark(
    evaluation: EvaluationConfig,
    model: str,
    *,
    out: Path,
    config: AnswerConfig,
    server: ServerAddress,
    runtime: Runtime,
) -> Results | None:
    """Evaluate a model folder, or a server if `model` is an address; see `evaluate` for the files.

    Args:
        evaluation: The benchmark and its files.
        model: Model folder or base URL.
        out: The run folder.
        config: Settings for answering.
        server: Name and key of a served model.
        runtime: Device, precision and progress reporting.

    Returns:
        The results; None if a judge has to read the answers first, or the files have no correct answers.

    Raises:
        UsageError: Files are missing.
        CalderaError: Files, model or server cannot be used, or the results cannot be written.
    """
    spec, sources, limit = evaluation.spec, evaluation.sources, evaluation.limit
    benchmark = spec.load(sources)
    items = benchmark.items
    _check_complete(spec, items)
    info = _benchmark_info(spec, sources, len(items))
    if limit is not None and limit < len(items):
        benchmark = with_items(benchmark, limit_items(items, limit))
    folder, extracted = image_folder(sources), out / "images"
    if sources.images is None and spec.extract_images and spec.extract_images(sources, extracted):
        folder = extracted
    _check_images(benchmark.items, folder)
    answerer = open_answerer(model, config, server, runtime.compute)
    longest, progress = config.max_new_tokens, runtime.progress
    if spec.needs_judge(benchmark.items) or not items[0].references:
        answer_items(
            benchmark, answerer, folder=folder, out=out, max_new_tokens=longest, progress=progress
        )
        return None
    return evaluate(
        benchmark,
        answerer,
        folder=folder,
        out=out,
        info=info,
        max_new_tokens=longest,
        progress=progress,
    )


def _check_complete(spec: BenchmarkSpec, items: Sequence[Item]) -> None:
    """Check that every item has a question, and that all have correct answers or none, as those of test splits."""
    if not items:
        raise InputError(f"the files hold no question of {spec.name}; is this the right split?")
    if without_question := [item.id for item in items if not item.conversation.turns]:
        raise InputError(
            f"{len(without_question)} items have an answer but no question, the first {without_question[0]}; these "
            f"files can score answers, but to ask a model {spec.name} needs its questions, too (--questions)"
        )
    unanswered = [item.id for item in items if not item.references]
    if unanswered and len(unanswered) < len(items) and spec.judging is None:
        raise InputError(
            f"{len(unanswered)} of {len(items)} questions have no correct answer, the first {unanswered[0]}; give the "
            "files of one split"
        )


def _check_images(items: Sequence[Item], folder: Path) -> None:
    """Check before a model is loaded that few enough images are missing for a valid run."""
    paths = dict.fromkeys(path for item in items for path in item.conversation.images)
    missing = {path for path in paths if not (folder / path).is_file()}
    failing = [item for item in items if not missing.isdisjoint(item.conversation.images)]
    if len(failing) > MAX_FAILED * len(items):
        raise InputError(
            f"{len(missing)} of {len(paths)} images are not in {folder}, the first {min(missing)}; name their folder "
            "with --images"
        )


def _benchmark_info(spec: BenchmarkSpec, sources: Sources, split_size: int) -> BenchmarkInfo:
    """Return the description of a benchmark with its official files."""
    files = {"questions": sources.questions, "annotations": sources.annotations}
    return BenchmarkInfo(
        title=spec.title,
        measures=spec.measures,
        primary_metric=spec.primary_metric,
        chance=spec.chance,
        files={name: path for name, path in files.items() if path is not None and path.is_file()},
        split_size=split_size,
    )


def evaluate(
    benchmark: Benchmark,
    answerer: Answerer,
    *,
    folder: Path,
    out: Path,
    info: BenchmarkInfo = BenchmarkInfo(),  # noqa: B008 - frozen
    max_new_tokens: int | None = None,
    progress: Progress = NoProgress(),  # noqa: B008 - without state
) -> Results:
    """Answer every item that no earlier start has answered, score, and write the run folder.

    Args:
        benchmark: Items and their score.
        answerer: The model.
        folder: Folder that image paths are relative to.
        out: The run folder.
        info: Description of the benchmark for the report.
        max_new_tokens: Maximum length of an answer; the benchmark's own if None.
        progress: Progress reporting.

    Returns:
        The content of `results.json`; `valid` is false if too many items failed for a meaningful score.

    Raises:
        EvaluationError: No item was answered.
        CalderaError: The answerer, a file or the disk ended the run; the answers so far are saved.
    """
    longest = max_new_tokens or benchmark.max_new_tokens
    with lock_folder(out):
        prepared = _PreparedItems(answerer, folder, longest)
        prepared.prepare(benchmark.items, progress)
        answers = _answer(benchmark, prepared, out, progress)
        score = score_answered(benchmark, answers)
        results = build_results(benchmark, answers, score, info)
        results["images"] = str(folder.resolve())
        models = {answer.model for answer in answers.values() if answer.model}
        results["provenance"] = {
            **provenance(answerer, benchmark.items, prepared.image_digests, info, longest),
            "answered by": ", ".join(sorted(models)),
            "first prompt": next(iter(prepared.texts.values()), ""),
        }
        item_results = build_item_results(benchmark.items, prepared.texts, answers, score)
        write_item_results(out / "answers.jsonl", item_results)
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
    """Answer as `evaluate` does, but write only `answers.jsonl`, without scores, for a judge to read.

    Raises:
        CalderaError: The answerer, a file or the disk ended the run; the answers so far are saved.
    """
    with lock_folder(out):
        prepared = _PreparedItems(answerer, folder, max_new_tokens or benchmark.max_new_tokens)
        prepared.prepare(benchmark.items, progress)
        answers = _answer(benchmark, prepared, out, progress)
        item_results = build_item_results(benchmark.items, prepared.texts, answers, Score(0.0))
        write_item_results(out / "answers.jsonl", item_results)
    return answers


@dataclass(slots=True)
class _PreparedItems:
    """Prompts of all items, and the cache keys of their answers."""

    answerer: Answerer
    folder: Path
    max_new_tokens: int
    items: list[PreparedItem] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """Prompts by item id, as the fields below."""

    image_digests: dict[str, list[str]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    failed: dict[str, Answer] = field(default_factory=dict)

    def prepare(self, items: Sequence[Item], progress: Progress) -> None:
        """Build the prompts and digest the images; items whose images cannot be read fail."""
        digests: dict[str, str] = {}
        identity = self.answerer.identity
        batch_context = _digest_ids(items) if self.answerer.batched else ""
        with progress.task("reading the items", len(items)) as advance:
            for item in items:
                try:
                    for path in item.conversation.images:
                        if path not in digests:
                            content = read_bytes(self.folder / path)
                            digests[path] = hashlib.sha256(content).hexdigest()
                    image_digests = [digests[path] for path in item.conversation.images]
                    prepared = self.answerer.prepare(item, self.folder, image_digests)
                except CalderaError as error:
                    self.failed[item.id] = Answer(item.id, error=str(error))
                else:
                    key = AnswerKey(
                        identity, prepared.text, image_digests, self.max_new_tokens, batch_context
                    )
                    self.items.append(prepared)
                    self.texts[item.id] = prepared.text
                    self.image_digests[item.id] = image_digests
                    self.keys[item.id] = key.digest
                advance()


def _digest_ids(items: Sequence[Item]) -> str:
    """Return the sha256 of the items' ids in their order."""
    return hashlib.sha256("\0".join(item.id for item in items).encode()).hexdigest()


def _answer(
    benchmark: Benchmark, prepared: _PreparedItems, out: Path, progress: Progress
) -> Mapping[str, Answer]:
    """Return an answer for each item, cached or new."""
    answers = dict(prepared.failed)
    with ExitStack() as stack:
        cache: AnswerCache | None = None
        # sampled answers are not cached: every start samples anew
        if prepared.answerer.deterministic:
            cache = AnswerCache(out / "journal.jsonl")
            stack.callback(cache.close)
            for item_id, key in prepared.keys.items():
                if cached := cache.find(key, item_id):
                    answers[item_id] = cached
        stack.enter_context(_telling_what_is_kept(prepared.keys, cache))
        advance = stack.enter_context(
            progress.task(f"asking {benchmark.name}", len(benchmark.items), initial=len(answers))
        )

        def on_answers(new: Sequence[Answer]) -> None:
            if cache is not None:
                cache.add({prepared.keys[answer.id]: answer for answer in new if not answer.error})
            answers.update({answer.id: answer for answer in new})
            failed = sum(1 for answer in answers.values() if answer.error)
            advance(len(new), detail=f"failed {failed}" if failed else "")

        prepared.answerer.ask(
            prepared.items,
            frozenset(answers),
            on_answers,
            max_new_tokens=prepared.max_new_tokens,
        )
    return answers


@contextmanager
def _telling_what_is_kept(keys: Mapping[str, str], cache: AnswerCache | None) -> Iterator[None]:
    """Raise Interrupted with the number of the items that have an answer on disk."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as interrupt:
        message = "answers at a temperature above 0 are not kept; repeat the command"
        if cache is not None:
            num_kept = cache.count_on_disk(keys.values())
            message = f"{num_kept} of {len(keys)} answers are kept in {cache.path}; repeat the command to resume"
        raise Interrupted(f"stopped; {message}", signal_of(interrupt)) from None


def open_answerer(
    model: str, config: AnswerConfig, server: ServerAddress, compute: DeviceConfig
) -> Answerer:
    """Return the answerer of a server if `model` is an address, else of a model folder.

    Raises:
        CalderaError: The settings are invalid, or the model cannot be loaded.
    """
    if model.startswith(("http://", "https://")) and parse_hub_name(model) is None:
        return ServerAnswerer(replace(server, url=model), config)
    return load_answerer(model, config=config, compute=compute)


def image_folder(sources: Sources) -> Path:
    """Return the folder that image paths are relative to."""
    if sources.images is not None:
        return sources.images
    file = sources.questions or sources.annotations
    if file is None:
        return Path()
    return file if file.is_dir() else file.parent


def find_default_files(folder: Path, spec: BenchmarkSpec, sources: Sources) -> Sources:
    """Complete `sources` with the official files of a benchmark that are in a folder under their official names.

    Raises:
        UsageError: The benchmark's files have no fixed names.
        InputError: None of them is in the folder.
    """
    official = {
        name: folder / path
        for name in ("questions", "annotations", "images")
        if (path := getattr(spec.default_files, name)) is not None
    }
    if not official:
        raise UsageError(
            f"the files of {spec.name} have no fixed names, so --data cannot find them; name each (--questions ...)"
        )
    existing = {name: path for name, path in official.items() if path.exists()}
    if not existing:
        names = ", ".join(str(path.relative_to(folder)) for path in official.values())
        raise InputError(f"{folder} has none of the files of {spec.name}: {names}")
    missing = {name: path for name, path in existing.items() if getattr(sources, name) is None}
    return replace(sources, **missing)
