"""Validation checks a file record by record: counts, errors and progress."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from caldera.conversation.reader import ReadOptions
from caldera.datasets.validation import validate_file
from caldera.errors import InputError
from caldera.files.skipped_items import SkippedItems
from caldera.progress import Advance, NoProgress


class Counting(NoProgress):
    """Progress that records the total and the completed steps of a task."""

    def __init__(self) -> None:
        self.total = self.completed = 0

    @contextmanager
    def task(self, name: str, total: int, initial: int = 0) -> Iterator[Advance]:
        """Sum up the steps of one task."""
        self.total = total

        def advance(steps: int = 1, *, detail: str = "") -> None:
            self.completed += steps

        yield advance


def row(name: str, *images: str) -> dict[str, object]:
    """Return a record with images."""
    turns = [
        {"from": "human", "value": "<image>" * len(images) + "What?"},
        {"from": "gpt", "value": "x" * 700},
    ]
    return {"id": name, "image": list(images) or None, "conversations": turns}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_valid_records_are_counted_and_progress_follows_the_bytes(
    tmp_path: Path, name: str
) -> None:
    """Images are counted by name; the progress covers every kB of the file."""
    for number in range(3):
        (tmp_path / f"{number}.png").touch()
    rows = [row(str(number % 11), f"{number % 3}.png") for number in range(13)]
    rows += [row("two", "0.png", "1.png"), row("none"), row("lost", "3.png"), {"id": "bad"}]
    lines = [json.dumps(record) for record in rows]
    file = tmp_path / name
    file.write_text("\n".join(lines) if name == "data.jsonl" else f"[{','.join(lines)}]")
    progress, skipped = Counting(), SkippedItems(1.0)

    report = validate_file(file, skipped, ReadOptions(), decode_images=False, progress=progress)

    assert (report.records, report.turns, report.multi_image, report.text_only) == (17, 30, 1, 1)
    assert report.images == {"0.png", "1.png", "2.png"}
    assert report.repeated_ids == 4
    lost, broken = skipped.items
    assert "3.png does not exist" in lost.reason
    assert "field 'conversations' is missing" in broken.reason
    assert progress.completed == progress.total == file.stat().st_size // 1000 > 10


def test_a_file_broken_after_valid_records_is_rejected(tmp_path: Path) -> None:
    """The error names line and column."""
    (tmp_path / "data.json").write_text(f"[{json.dumps(row('1'))}, {json.dumps(row('2'))[:-9]}")
    with pytest.raises(InputError, match=r"is broken JSON at line 1 column \d+"):
        validate_file(
            tmp_path / "data.json", SkippedItems(), ReadOptions(), decode_images=False, progress=NoProgress()
        )  # fmt: skip
