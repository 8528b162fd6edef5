"""Folders of runs on the same items in, one report out: scores with intervals, differences, images with answers."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldera.errors import ImageError, InputError, UsageError
from caldera.evaluation.intervals import Difference, paired_difference
from caldera.evaluation.report import inline_image, render_page
from caldera.evaluation.runs.answers import ItemResult, read_samples
from caldera.evaluation.runs.results import Results, flatten
from caldera.files.atomic import write_atomic

GALLERY_SIZE = 160
"""Items in the gallery at most; `answers.jsonl` has them all."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run's folder as it was read."""

    name: str
    results: Results
    samples: list[ItemResult]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """What a later run gains on the first."""

    name: str
    all: Difference
    kinds: dict[str, Difference]


@dataclass(frozen=True, slots=True)
class _ImageCard:
    """Images with the items about them."""

    images: list[tuple[str, str]]
    """Data URL, empty where it cannot be shown; and path."""

    rows: list["_Row"]


@dataclass(frozen=True, slots=True)
class _Row:
    """One item, as all runs answered it."""

    state: int
    """Number of its state among the report's."""

    kind: int
    samples: list[ItemResult]


def read_run(folder: Path) -> FinishedRun:
    """Read the folder of a finished run.

    Raises:
        InputError: It holds none.
    """
    if not (folder / "results.json").is_file():
        raise InputError(f"{folder} holds no results.json of `caldera evaluate`; check the path")
    try:
        results = json.loads((folder / "results.json").read_text("utf-8"))
        known = results.keys() >= {"provenance", "headline", "kinds", "images"}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read {folder / 'results.json'}: {error}") from error
    if not known:
        raise InputError(f"{folder / 'results.json'} is not of `caldera evaluate TASK`")
    return FinishedRun(str(folder), results, read_samples(folder / "answers.jsonl"))


def compare_runs(runs: Sequence[FinishedRun]) -> list[RunComparison]:
    """Compare each later run with the first, item by item.

    Raises:
        UsageError: They did not answer the same items.
    """
    first = runs[0]
    for other in runs[1:]:
        _check_same_items(first, other)
    return [
        RunComparison(other.name, *_differences(first, other))
        for other in runs[1:]
        if _paired_scores(first, other)
    ]


def _check_same_items(first: FinishedRun, other: FinishedRun) -> None:
    """Refuse runs on other items.

    Raises:
        UsageError: Ids, questions or images differ.
    """
    a, b = ({each.id for each in run.samples} for run in (first, other))
    if lone := sorted(a ^ b):
        raise UsageError(
            f"{first.name} and {other.name} did not answer the same items: {len(lone)} are in one only, among them "
            f"{lone[:3]}"
        )
    data, others = (run.results["provenance"]["data"]["digest"] for run in (first, other))
    if data != others:
        raise UsageError(
            f"{first.name} and {other.name} answered the same ids, but questions, references or images differ"
        )


def _paired_scores(first: FinishedRun, other: FinishedRun) -> list[tuple[ItemResult, float, float]]:
    """List items that both runs have marks for, with both marks."""
    marks = {each.id: each.score for each in other.samples}
    return [
        (each, each.score, theirs)
        for each in first.samples
        if each.score is not None and (theirs := marks[each.id]) is not None
    ]


def _differences(
    first: FinishedRun, other: FinishedRun
) -> tuple[Difference, dict[str, Difference]]:
    """Compare two runs over all items, and by kind."""
    marked = _paired_scores(first, other)
    by_kind: dict[str, list[tuple[ItemResult, float, float]]] = defaultdict(list)
    for each in marked:
        by_kind[each[0].kind].append(each)
    return _difference(marked), {kind: _difference(some) for kind, some in by_kind.items()}


def _difference(marked: Sequence[tuple[ItemResult, float, float]]) -> Difference:
    """Compare two runs on some items, those about the same images drawn together."""
    return paired_difference(
        [mine for _, mine, _ in marked],
        [theirs for _, _, theirs in marked],
        ["\n".join(each.images) or f"item {each.id}" for each, _, _ in marked],
    )


def write_run_report(file: Path, runs: Sequence[FinishedRun]) -> None:
    """Write the report of one run, or of several on the same items; whole or not at all.

    Raises:
        UsageError: The runs did not answer the same items.
        OutputError: The file cannot be written.
    """
    compared = compare_runs(runs)
    kinds = list(runs[0].results["kinds"])
    states = _states(runs)
    rows = _rows(runs, kinds, states)
    chosen = _choose_gallery(rows)
    names = _short_names([run.name for run in runs])
    page = render_page(
        "run.html",
        runs=[
            {"name": name, **run.results, "facts": flatten(run.results["provenance"])}
            for name, run in zip(names, runs, strict=True)
        ],
        compared=[(names[at + 1], each) for at, each in enumerate(compared)],
        first=names[0],
        kinds=kinds,
        states=[(state, sum(row.state == at for row in rows)) for at, state in enumerate(states)],
        cards=_cards(chosen, Path(runs[0].results["images"])),
        shown=len(chosen),
        ending=_common_suffix(runs[0].samples),
        figures=_table([flatten(run.results["figures"]) for run in runs]),
        facts=_table([flatten(run.results["provenance"]) for run in runs]),
    )
    write_atomic(file, page)


def _common_suffix(samples: Sequence[ItemResult]) -> str:
    """Return the last line of all questions where it is the same, so that it need not be shown with each."""
    endings = {sample.question.rpartition("\n")[1:] for sample in samples}
    return "".join(endings.pop()) if len(endings) == 1 and len(samples) > 1 else ""


def _states(runs: Sequence[FinishedRun]) -> list[str]:
    """Name the states that items of these runs can be in."""
    if len(runs) == 1:
        return ["right", "partly right", "wrong", "unparsed", "failed", "unmarked"]
    return ["answers differ in mark", "all right", "none right"]


def _rows(runs: Sequence[FinishedRun], kinds: Sequence[str], states: Sequence[str]) -> list[_Row]:
    """Lay the samples of all runs side by side."""
    by_id = [{each.id: each for each in run.samples} for run in runs]
    rows = []
    for sample in runs[0].samples:
        told = [samples[sample.id] for samples in by_id]
        if len(runs) == 1:
            state = states.index(sample.state)
        elif len({each.score for each in told}) > 1:
            state = 0
        else:
            state = 1 if sample.state == "right" else 2
        rows.append(_Row(state, kinds.index(sample.kind), told))
    return rows


def _choose_gallery(rows: Sequence[_Row]) -> list[_Row]:
    """Choose rows for the gallery: of each state and kind equally many as far as there are, evenly spread."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        groups[row.state, row.kind].append(at)
    left, chosen = GALLERY_SIZE, []
    for number, group in enumerate(sorted(groups.values(), key=len)):
        some = min(len(group), left // (len(groups) - number))
        chosen += [group[at * len(group) // some] for at in range(some)]
        left -= some
    return [rows[at] for at in sorted(chosen)]


def _cards(rows: Sequence[_Row], folder: Path) -> list[_ImageCard]:
    """Put items about the same images together."""
    by_images: dict[tuple[str, ...], list[_Row]] = defaultdict(list)
    for row in rows:
        by_images[tuple(row.samples[0].images)].append(row)
    return [
        _ImageCard([(_shown(folder / path), path) for path in images], some)
        for images, some in by_images.items()
    ]


def _shown(path: Path) -> str:
    """Return an image for the page; nothing where it is gone, as the report still says what was answered."""
    try:
        return inline_image(path)
    except ImageError:
        return ""


def _table(columns: Sequence[dict[str, Any]]) -> list[tuple[str, list[str], bool]]:
    """Lay columns side by side: a line's name, its values, and whether they differ."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = []
    for name in names:
        values = [_format_value(column.get(name, "")) for column in columns]
        lines.append((name, values, len(set(values)) > 1))
    return lines


def _format_value(value: object) -> str:
    """Write a value."""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _short_names(names: Sequence[str]) -> list[str]:
    """Leave out the folders that all names begin with."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while (
        all(len(each) > shared + 1 for each in parts) and len({each[shared] for each in parts}) == 1
    ):
        shared += 1
    return ["/".join(each[shared:]) for each in parts]
