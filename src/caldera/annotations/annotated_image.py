"""Annotated images: captions and boxes, independent of the file format."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.boxes import Box


@dataclass(frozen=True, slots=True)
class Instance:
    """An annotated object: its category and box."""

    category: str
    box: Box
    is_crowd: bool = False
    """Whether the box covers an uncounted crowd of the category."""


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image with its captions and boxes."""

    id: str
    path: Path
    width: int
    """In pixels; 0 if the annotations do not contain it."""

    height: int
    captions: tuple[str, ...]
    instances: tuple[Instance, ...] = ()

    uncounted: frozenset[str] = frozenset()
    """Categories with objects whose boxes were dropped, or which contain others: neither counted nor absent."""

    @property
    def counts(self) -> Counter[str]:
        """Number of boxes by category, without crowds."""
        return Counter(item.category for item in self.instances if not item.is_crowd)


def unique_ids(files: Sequence[str]) -> dict[str, str]:
    """Return an id for each file name: its stem, or the full name where two stems are equal."""
    stems = {file: file.removesuffix(Path(file).suffix) for file in files}
    shared = Counter(stems.values())
    return {file: stem if shared[stem] == 1 else file for file, stem in stems.items()}


@dataclass(frozen=True, slots=True)
class AnnotationSet:
    """A data set of annotated images."""

    images: tuple[AnnotatedImage, ...]
    categories: tuple[str, ...] = ()
    """Every annotated category, so that a missing box means a missing object; empty for captions alone."""

    listed: tuple[AnnotatedImage, ...] = ()
    """All images in the order of the files, skipped ones included; empty if none was skipped.

    Groups of related images are sampled from these, so that a skipped image does not change the others' groups.
    """

    total: int = 0
    """Number of items in the files, skipped ones included."""
