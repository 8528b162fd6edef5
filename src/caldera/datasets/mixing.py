"""Mixing of several data files into one: a weight for each, relative image paths, unique ids."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from caldera.conversation import Conversation
from caldera.conversation.reader import ReadOptions, iter_conversations
from caldera.datasets.importer import PathRewriter, write_with_skipped
from caldera.datasets.origins import read_origins, write_origins
from caldera.errors import InputError, UsageError
from caldera.files.skipped_items import SkippedItems


@dataclass(frozen=True, slots=True)
class WeightedFile:
    """A file of a mix and its weight."""

    file: Path
    weight: float = 1.0
    """0.5 samples half of the records, 2 repeats each twice, 2.5 each twice and half of them once more."""


def parse_weighted_file(text: str) -> WeightedFile:
    """Parse `FILE` or `FILE:WEIGHT`."""
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
    """Counts of one file in a mix."""

    source: str
    """Prefix of its ids."""

    file: str
    weight: float
    records: int
    """Number of valid records in the file."""

    skipped: int
    rows: int
    """Number of its rows in the mix."""

    turns: int
    images: int
    """Number of distinct images in the mix."""

    text_only: int
    """Number of rows without an image."""


@dataclass(frozen=True, slots=True)
class MixReport:
    """Counts of a mix."""

    sources: tuple[SourceReport, ...]
    images: int
    """Number of distinct images; files may share some."""

    seed: int

    @property
    def rows(self) -> int:
        """Number of rows of all sources."""
        return sum(source.rows for source in self.sources)

    def as_dict(self) -> dict[str, object]:
        """Return the report as a JSON object."""
        return {
            "rows": self.rows,
            "images": self.images,
            "seed": self.seed,
            "sources": [asdict(source) for source in self.sources],
        }


def mix_files(
    weighted_files: Sequence[WeightedFile],
    out: Path,
    *,
    seed: int = 0,
    options: ReadOptions | None = None,
    max_bad_fraction: float = 0.0,
) -> MixReport:
    """Mix several data files into one, shuffled; it is written whole or not at all.

    Image paths are relative to the folder of their file.
    """
    skipped, total = SkippedItems(max_bad_fraction), 0
    mixed: list[Conversation] = []
    reports: list[SourceReport] = []
    names = _unique_names([weighted.file for weighted in weighted_files])
    for name, weighted in zip(names, weighted_files, strict=True):
        num_skipped = len(skipped.items)
        records = list(iter_conversations(weighted.file, skipped, options or ReadOptions()))
        num_skipped = len(skipped.items) - num_skipped
        total += len(records) + num_skipped
        rewriter = PathRewriter(weighted.file.parent, out.parent)
        rng = random.Random(f"{seed} {name}")
        rows = [
            replace(rewriter.rewrite(records[index]), id=f"{name}/{records[index].id}")
            for index in _sample_indices(len(records), weighted.weight, rng)
        ]
        reports.append(
            SourceReport(
                source=name,
                file=str(weighted.file),
                weight=weighted.weight,
                records=len(records),
                skipped=num_skipped,
                rows=len(rows),
                turns=sum(len(row.turns) for row in rows),
                images=_num_images(rows),
                text_only=sum(not row.images for row in rows),
            )
        )
        mixed += rows
    skipped.raise_if_over_limit(max(1, total))
    if not mixed:
        raise InputError("the mix is empty; give files with records, or larger weights")
    random.Random(seed).shuffle(mixed)
    origins = [origin for weighted in weighted_files for origin in read_origins(weighted.file)]
    write_with_skipped(out, _with_unique_ids(mixed), skipped, total)
    write_origins(out, origins)
    return MixReport(tuple(reports), _num_images(mixed), seed)


def _num_images(conversations: Sequence[Conversation]) -> int:
    return len({path for conversation in conversations for path in conversation.images})


def _sample_indices(num_records: int, weight: float, rng: random.Random) -> list[int]:
    """Return each index as often as the integer part of the weight, and a sample of them for the fraction."""
    repeats, remainder = divmod(round(weight * num_records), max(1, num_records))
    return [*range(num_records)] * repeats + sorted(rng.sample(range(num_records), remainder))


def _unique_names(files: Sequence[Path]) -> list[str]:
    """Return a name for each file: its stem, numbered if several files share it."""
    counts: Counter[str] = Counter()
    names = []
    for file in files:
        counts[file.stem] += 1
        names.append(file.stem if counts[file.stem] == 1 else f"{file.stem}#{counts[file.stem]}")
    return names


def _with_unique_ids(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Return the conversations with a number added to repeated ids."""
    counts: Counter[str] = Counter()
    used = {conversation.id for conversation in conversations}
    unique = []
    for conversation in conversations:
        identity = conversation.id
        counts[identity] += 1
        if counts[identity] == 1:
            unique.append(conversation)
            continue
        while (name := f"{identity}#{counts[identity]}") in used:
            counts[identity] += 1
        used.add(name)
        unique.append(replace(conversation, id=name))
    return unique
