"""A file of any length is checked record by record: counts, faults, and how far it is."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from caldera.datasets.validation import validate_file
from caldera.errors import InputError
from caldera.progress import Advance, NoProgress


class Counting(NoProgress):
    """Remembers what a job was to do and did."""

    def __init__(self) -> None:
        self.total = self.done = 0

    @contextmanager
    def task(self, name: str, total: int, initial: int = 0) -> Iterator[Advance]:
        """Follow one job by adding up."""
        self.total = total

        def tick(steps: int = 1, *, detail: str = "") -> None:
            self.done += steps

        yield tick


def row(name: str, *images: str) -> dict[str, object]:
    """A record that shows images."""
    turns = [
        {"from": "human", "value": "<image>" * len(images) + "What?"},
        {"from": "gpt", "value": "x" * 700},
    ]
    return {"id": name, "image": list(images) or None, "conversations": turns}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_counts_are_of_good_records_and_progress_of_bytes(tmp_path: Path, name: str) -> None:
    """Images by name, each looked for once; every kB of the file is told."""
    for number in range(3):
        (tmp_path / f"{number}.png").touch()
    rows = [row(str(at % 11), f"{at % 3}.png") for at in range(13)]
    rows += [row("two", "0.png", "1.png"), row("none"), row("lost", "3.png"), {"id": "bad"}]
    lines = [json.dumps(each) for each in rows]
    file = tmp_path / name
    file.write_text("\n".join(lines) if name == "data.jsonl" else f"[{','.join(lines)}]")
    progress = Counting()

    found = validate_file(file, tmp_path, open_images=False, ignore=frozenset(), progress=progress)

    assert (found.records, found.turns, found.multi_image, found.text_only) == (17, 32, 1, 1)
    assert found.images == {"0.png", "1.png", "2.png", "3.png"}
    assert found.repeated_ids == 4
    lost, broken = found.bad
    assert "3.png does not exist" in lost.reason
    assert "field 'conversations' is missing" in broken.reason
    assert progress.done == progress.total == file.stat().st_size // 1000 > 10


def test_a_file_broken_behind_good_records_is_refused(tmp_path: Path) -> None:
    """With its place."""
    (tmp_path / "data.json").write_text(f"[{json.dumps(row('1'))}, {json.dumps(row('2'))[:-9]}")
    with pytest.raises(InputError, match=r"is broken JSON at line 1 column \d+"):
        validate_file(
            tmp_path / "data.json", tmp_path, open_images=False, ignore=frozenset(), progress=NoProgress()
        )  # fmt: skip
