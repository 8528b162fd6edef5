"""Commands run in this process, as the installed program runs them."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from caldera.cli import main

Output = tuple[int, str, str]
"""Exit code, stdout and stderr."""


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def in_columns(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Callable[..., Output]]:
    """Run commands by the main function on a terminal with N columns."""

    def with_columns(columns: int) -> Callable[..., Output]:
        def call(*words: str | Path) -> Output:
            monkeypatch.setattr(sys, "argv", ["caldera", *map(str, words)])
            monkeypatch.setenv("COLUMNS", str(columns))
            with pytest.raises(SystemExit) as ended:
                main()
            output = capfd.readouterr()
            return int(str(ended.value.code or 0)), output.out, output.err

        return call

    return with_columns


@pytest.fixture
def call(in_columns: Callable[[int], Callable[..., Output]]) -> Callable[..., CommandResult]:
    """Run a command by its main function, as the installed program does."""
    return lambda *words: CommandResult(*in_columns(200)(*words))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO folder of four drawn squares, each with captions and a box."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "small").mkdir()
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30}
        for number in range(4)
    ]
    for number in range(4):
        Image.new("RGB", (40, 30), (10 * number, 99, 9)).save(folder / "small" / f"{number}.jpg")
    captions = [
        {"id": 2 * number + copy, "image_id": number, "caption": f"A red {name} in a kitchen."}
        for number, name in enumerate(("dog", "cat", "dog", "cup"))
        for copy in range(2)
    ]
    boxes = [
        {"id": number, "image_id": number, "category_id": kind, "bbox": [2, 2, 9, 8], "iscrowd": 0}
        for number, kind in enumerate((1, 2, 1, 3))
    ]
    kinds = [
        {"id": number, "name": name} for number, name in enumerate(("dog", "cat", "cup", "car"), 1)
    ]
    for name, content in (
        ("captions_small", {"images": images, "annotations": captions}),
        ("instances_small", {"images": images, "annotations": boxes, "categories": kinds}),
    ):
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))
    return folder
