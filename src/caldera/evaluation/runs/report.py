"""Report of one run, or of several on the same items: scores, differences, and a gallery of answers."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldera.errors import ImageError, InputError, UsageError
from caldera.evaluation.intervals import Difference, paired_difference
from caldera.evaluation.report import inline_image, render_page
from caldera.evaluation.runs.answers import ItemResult, read_item_results
from caldera.evaluation.runs.results import Results, flatten, with_current_keys
from caldera.files.atomic import write_atomic

GALLERY_SIZE = 160
"""Maximum number of items in the gallery; `answers.jsonl` has all of them."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """Content of a run folder."""

    name: str
    results: Results
    items: list[ItemResult]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Difference between a run and the baseline."""

    name: str
    all: Difference
    categories: dict[str, Difference]


@dataclass(frozen=True, slots=True)
class _ImageCard:
    """Images with the items about them."""

    images: list[tuple[str, str]]
    """Data URL (empty if the image cannot be shown) and path."""

    rows: list["_Row"]


@dataclass(frozen=True, slots=True)
class _Row:
    """One item as all runs answered it."""

    state: int
    """Index of its state among the report's states."""

    category: int
    """Index of its category among the report's categories."""

    items: list[ItemResult]


def read_run(folder: Path) -> FinishedRun:
    """Read the folder of a finished run, also of version 0.1.

    Raises:
        InputError: The folder has no results of a run.
    """
    if not (folder / "results.json").is_file():
        raise InputError(f"{folder} has no results.json of `caldera evaluate`; check the path")
    try:
        results = with_current_keys(json.loads((folder / "results.json").read_text("utf-8")))
        complete = results.keys() >= {"provenance", "headline", "kinds", "images"}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read {folder / 'results.json'}: {error}") from error
    if not complete:
        raise InputError(f"{folder / 'results.json'} is not of `caldera evaluate BENCHMARK`")
    return FinishedRun(str(folder), results, read_item_results(folder / "answers.jsonl"))


def compare_runs(runs: Sequence[FinishedRun]) -> list[RunComparison]:
    """Compare each later run with the first, item by item.

    Raises:
        UsageError: The runs have different items.
    """
    baseline, *later = runs
    for run in later:
        _check_same_items(baseline, run)
    comparisons = []
    for run in later:
        if pairs := _paired_scores(baseline, run):
            by_category: dict[str, list[tuple[ItemResult, float, float]]] = defaultdict(list)
            for pair in pairs:
                by_category[pair[0].kind].append(pair)
            differences = {name: _difference(group) for name, group in by_category.items()}
            comparisons.append(RunComparison(run.name, _difference(pairs), differences))
    return comparisons


def _check_same_items(baseline: FinishedRun, run: FinishedRun) -> None:
    """Raise UsageError if two runs differ in ids, questions or images."""
    baseline_ids, run_ids = ({item.id for item in each_run.items} for each_run in (baseline, run))
    if unpaired := sorted(baseline_ids ^ run_ids):
        raise UsageError(
            f"{baseline.name} and {run.name} did not answer the same items: {len(unpaired)} are in only one of them, "
            f"such as {unpaired[:3]}"
        )
    data, run_data = (
        each_run.results["provenance"]["data"]["digest"] for each_run in (baseline, run)
    )
    if data != run_data:
        raise UsageError(
            f"{baseline.name} and {run.name} answered the same ids, but questions, references or images differ"
        )


def _paired_scores(
    baseline: FinishedRun, run: FinishedRun
) -> list[tuple[ItemResult, float, float]]:
    """Return the items that both runs have scored, with both scores, the baseline's first."""
    scores = {item.id: item.score for item in run.items}
    return [
        (item, item.score, score)
        for item in baseline.items
        if item.score is not None and (score := scores[item.id]) is not None
    ]


def _difference(pairs: Sequence[tuple[ItemResult, float, float]]) -> Difference:
    """Compare two runs on some items; those about the same images are resampled together."""
    return paired_difference(
        [score for _, score, _ in pairs],
        [score for _, _, score in pairs],
        ["\n".join(item.images) or f"item {item.id}" for item, _, _ in pairs],
    )


def write_run_report(file: Path, runs: Sequence[FinishedRun]) -> None:
    """Write the report of one run, or of several on the same items, atomically.

    Raises:
        UsageError: The runs have different items.
        OutputError: The file cannot be written.
    """
    comparisons = compare_runs(runs)
    categories = list(runs[0].results["kinds"])
    states = _states(runs)
    rows = _rows(runs, categories, states)
    gallery = _choose_gallery(rows)
    names = _short_names([run.name for run in runs])
    page = render_page(
        "run.html",
        runs=[
            {"name": name, **run.results, "facts": flatten(run.results["provenance"])}
            for name, run in zip(names, runs, strict=True)
        ],
        comparisons=list(zip(names[1:], comparisons, strict=False)),
        baseline=names[0],
        categories=categories,
        states=[
            (state, sum(row.state == index for row in rows)) for index, state in enumerate(states)
        ],
        cards=_cards(gallery, Path(runs[0].results["images"])),
        gallery_size=len(gallery),
        ending=_common_last_line(runs[0].items),
        metrics=_table([flatten(run.results["figures"]) for run in runs]),
        facts=_table([flatten(run.results["provenance"]) for run in runs]),
    )
    write_atomic(file, page)


def _common_last_line(items: Sequence[ItemResult]) -> str:
    """Return the last line of all questions if it is the same, so that the gallery can omit it."""
    endings = {item.question.rpartition("\n")[1:] for item in items}
    return "".join(endings.pop()) if len(endings) == 1 and len(items) > 1 else ""


def _states(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the states that items of these runs can have."""
    if len(runs) == 1:
        return ["right", "partly right", "wrong", "unparsed", "failed", "unscored"]
    return ["scores differ", "all right", "none right"]


def _rows(
    runs: Sequence[FinishedRun], categories: Sequence[str], states: Sequence[str]
) -> list[_Row]:
    """Join the items of all runs by id."""
    by_id = [{item.id: item for item in run.items} for run in runs]
    rows = []
    for first in runs[0].items:
        items = [run_items[first.id] for run_items in by_id]
        if len(runs) == 1:
            state = states.index(first.state)
        elif len({item.score for item in items}) > 1:
            state = 0
        else:
            state = 1 if first.state == "right" else 2
        rows.append(_Row(state, categories.index(first.kind), items))
    return rows


def _choose_gallery(rows: Sequence[_Row]) -> list[_Row]:
    """Choose rows for the gallery: equally many of each state and category where possible, evenly spaced."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.state, row.category].append(index)
    remaining, chosen = GALLERY_SIZE, []
    for number, group in enumerate(sorted(groups.values(), key=len)):
        count = min(len(group), remaining // (len(groups) - number))
        chosen += [group[i * len(group) // count] for i in range(count)]
        remaining -= count
    return [rows[index] for index in sorted(chosen)]


def _cards(rows: Sequence[_Row], folder: Path) -> list[_ImageCard]:
    """Group rows by images."""
    by_images: dict[tuple[str, ...], list[_Row]] = defaultdict(list)
    for row in rows:
        by_images[tuple(row.items[0].images)].append(row)
    return [
        _ImageCard([(_inline_or_empty(folder / path), path) for path in images], group)
        for images, group in by_images.items()
    ]


def _inline_or_empty(path: Path) -> str:
    """Return an image as a data URL; empty if it is missing, as the report still shows the answers."""
    try:
        return inline_image(path)
    except ImageError:
        return ""


def _table(columns: Sequence[dict[str, Any]]) -> list[tuple[str, list[str], bool]]:
    """Join columns by name: name, values, and whether they differ."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = []
    for name in names:
        values = [_format_value(column.get(name, "")) for column in columns]
        lines.append((name, values, len(set(values)) > 1))
    return lines


def _format_value(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _short_names(names: Sequence[str]) -> list[str]:
    """Return names without the folders that all of them start with."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while min(map(len, parts)) > shared + 1 and len({path[shared] for path in parts}) == 1:
        shared += 1
    return ["/".join(path[shared:]) for path in parts]
