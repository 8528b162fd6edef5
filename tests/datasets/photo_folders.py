"""Class folders of small images, each of another content."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image


def write_image(path: Path, number: int) -> None:
    """Write an image whose content depends on a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (11, 7), (number % 256, number // 256, 3)).save(path)


def write_class_folders(root: Path, counts: Mapping[str, int], first: int = 0) -> None:
    """Write `counts` images below each class folder, such as `hat` or `train/hat`."""
    number = first
    for name, count in counts.items():
        for index in range(count):
            write_image(root / name / f"{index}.png", number)
            number += 1
