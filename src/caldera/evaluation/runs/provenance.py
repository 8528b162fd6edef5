"""Items, an answerer and files in, all that a score depends on out: what one must know to get the same number again."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caldera import __version__
from caldera.errors import InputError
from caldera.evaluation.answering.answerer import Answerer
from caldera.evaluation.benchmark import Item

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "pillow", "jinja2")
"""Packages whose versions are noted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkInfo:
    """What is known of a benchmark beside its items."""

    title: str = ""
    measures: str = ""
    headline: str = ""
    """The figure that papers quote."""

    chance: Mapping[str, float] = field(default_factory=dict)
    """What blind guessing gives, by figure."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """Official files, by what they are."""

    split_size: int | None = None
    """Items of the whole split, where only some are asked."""


def provenance(
    answerer: Answerer,
    items: Sequence[Item],
    images: Mapping[str, Sequence[str]],
    about: BenchmarkInfo,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Return what a score depends on, as JSON.

    Args:
        answerer: Who was asked.
        items: What was asked.
        images: Digests of each item's images, by item id; items whose images cannot be read have none.
        about: The official files, and how large the split is.
        max_new_tokens: Longest answer.

    Raises:
        InputError: An official file cannot be read.
    """
    return {
        "model": {**answerer.identity, **answerer.model_info},
        "max_new_tokens": max_new_tokens,
        "data": {
            "items": len(items),
            "split": about.split_size or len(items),
            "digest": _digest_of(items, images),
            "files": {name: _file(path) for name, path in about.files.items()},
        },
        "libraries": {
            "caldera": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def _digest_of(items: Sequence[Item], images: Mapping[str, Sequence[str]]) -> str:
    """Return the sha256 of all items: what is asked, shown and right."""
    total = hashlib.sha256()
    for item in items:
        told = (repr(item), list(images.get(item.id, ())))
        total.update(repr(told).encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def _file(path: Path) -> str:
    """Name a file with its sha256.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with path.open("rb") as opened:
            return f"{path.name} sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
