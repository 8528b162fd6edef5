"""Several data files in, one out: a share or repetitions of each, images found from the new place, ids unique."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from caldera.conversation import Conversation, from_record, write_conversations
from caldera.datasets.importer import PathRewriter
from caldera.errors import InputError, UsageError
from caldera.files.records import read_records
from caldera.files.skipped import SkippedItems


@dataclass(frozen=True, slots=True)
class WeightedFile:
    """A file of a mix."""

    file: Path
    weight: float = 1.0
    """0.5 draws half of its records, 2 takes each twice, 2.5 each twice and half of them once more."""


def parse_weighted_file(text: str) -> WeightedFile:
    """Read `FILE` or `FILE:WEIGHT`.

    Raises:
        UsageError: The weight is not a number above 0.
    """
    name, colon, number = text.rpartition(":")
    if not colon or "/" in number or Path(text).exists():
        return WeightedFile(Path(text))
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise UsageError(
            f"{text}: the weight is {number!r}; write a number above 0, such as {name}:0.5"
        )
    return WeightedFile(Path(name), weight)


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What a file gave to a mix."""

    source: str
    """What its ids begin with."""

    file: str
    weight: float
    records: int
    """Good records in the file."""

    bad: int
    rows: int
    """Rows in the mix."""

    turns: int
    images: int
    """Distinct ones in the mix."""

    text_only: int
    """Rows without an image."""


@dataclass(frozen=True, slots=True)
class MixReport:
    """What a mix is made of."""

    sources: tuple[SourceReport, ...]
    images: int
    """Distinct ones; two files may show the same."""

    seed: int

    @property
    def written(self) -> int:
        """Rows of all sources."""
        return sum(source.rows for source in self.sources)

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {
            "rows": self.written,
            "images": self.images,
            "seed": self.seed,
            "sources": [asdict(source) for source in self.sources],
        }


def mix_files(
    ingredients: Sequence[WeightedFile],
    out: Path,
    *,
    seed: int = 0,
    ignore: frozenset[str] = frozenset(),
    max_bad: float = 0.0,
) -> MixReport:
    """Write one data file of several, shuffled, whole or not at all.

    Args:
        ingredients: Files with weights; image paths start from each file's folder.
        out: `.json` or `.jsonl`; its image paths start from its folder.
        seed: Of what is drawn and of the order.
        ignore: Surplus fields of records to pass over.
        max_bad: Share of all records that may be left out and listed.

    Raises:
        InputError: A file cannot be read, too many records are bad, or nothing is left.
        OutputError: The new one cannot be written.
    """
    skips, total = SkippedItems(max_bad), 0
    mixed: list[Conversation] = []
    reports: list[SourceReport] = []
    names = _unique_names([one.file for one in ingredients])
    for name, ingredient in zip(names, ingredients, strict=True):
        bad = len(skips.items)
        read = _read(ingredient.file, skips, ignore)
        bad = len(skips.items) - bad
        total += len(read) + bad
        moved = PathRewriter(ingredient.file.parent, out.parent)
        drawn = [
            replace(moved.rewrite(read[place]), id=f"{name}/{read[place].id}")
            for place in _sample_indices(
                len(read), ingredient.weight, random.Random(f"{seed} {name}")
            )
        ]
        reports.append(_report(name, ingredient, len(read), bad, drawn))
        mixed += drawn
    skips.raise_if_over_limit(max(1, total))
    if not mixed:
        raise InputError("the mix is empty; give files with records, or larger weights")
    random.Random(seed).shuffle(mixed)
    write_conversations(out, _with_unique_ids(mixed))
    if skips.items:
        skips.write(out.with_suffix(".bad.jsonl"))
    images = {path for one in mixed for path in one.images}
    return MixReport(tuple(reports), len(images), seed)


def _read(file: Path, skips: SkippedItems, ignore: frozenset[str]) -> list[Conversation]:
    """Read the good records of a file."""
    read = []
    for where, record in read_records(file):
        try:
            read.append(from_record(record, where, ignore))
        except InputError as fault:
            skips.add_or_raise(where, fault)
    return read


def _sample_indices(records: int, weight: float, rng: random.Random) -> list[int]:
    """Return the places of the records that are taken: all of them so often, and a part drawn once more."""
    times, part = divmod(round(weight * records), max(1, records))
    return [*range(records)] * times + sorted(rng.sample(range(records), part))


def _unique_names(files: Sequence[Path]) -> list[str]:
    """Return a name for each file: without its suffix, numbered where two would be the same."""
    met: Counter[str] = Counter()
    names = []
    for file in files:
        met[file.stem] += 1
        names.append(file.stem if met[file.stem] == 1 else f"{file.stem}#{met[file.stem]}")
    return names


def _with_unique_ids(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Number the second and further ones of an id."""
    numbers: Counter[str] = Counter()
    taken = {one.id for one in conversations}
    unique = []
    for one in conversations:
        numbers[one.id] += 1
        if numbers[one.id] == 1:
            unique.append(one)
            continue
        while (name := f"{one.id}#{numbers[one.id]}") in taken:
            numbers[one.id] += 1
        taken.add(name)
        unique.append(replace(one, id=name))
    return unique


def _report(
    name: str, ingredient: WeightedFile, records: int, bad: int, drawn: Sequence[Conversation]
) -> SourceReport:
    """Count what a file gave."""
    return SourceReport(
        source=name,
        file=str(ingredient.file),
        weight=ingredient.weight,
        records=records,
        bad=bad,
        rows=len(drawn),
        turns=sum(len(one.turns) for one in drawn),
        images=len({path for one in drawn for path in one.images}),
        text_only=sum(not one.images for one in drawn),
    )
