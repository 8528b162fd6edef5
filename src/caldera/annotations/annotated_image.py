"""What people said about one image, whatever file they said it in."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.boxes import Box


@dataclass(frozen=True, slots=True)
class Instance:
    """One thing that somebody drew a box around."""

    category: str
    box: Box
    is_crowd: bool = False
    """Whether the box holds an uncounted crowd of the category."""


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image with its captions and boxes."""

    id: str
    path: Path
    width: int
    """In pixels; 0 where the annotations do not say."""

    height: int
    captions: tuple[str, ...]
    instances: tuple[Instance, ...] = ()

    @property
    def counts(self) -> Counter[str]:
        """How many boxes each category has, crowds left out."""
        return Counter(thing.category for thing in self.instances if not thing.is_crowd)


def unique_ids(files: Sequence[str]) -> dict[str, str]:
    """Return an id for each file name: the name without its suffix, or whole where two would be the same."""
    stems = {file: file.removesuffix(Path(file).suffix) for file in files}
    shared = Counter(stems.values())
    return {file: stem if shared[stem] == 1 else file for file, stem in stems.items()}


@dataclass(frozen=True, slots=True)
class AnnotationSet:
    """A whole collection."""

    images: tuple[AnnotatedImage, ...]
    categories: tuple[str, ...] = ()
    """Every category that was looked for, so that a missing box means a missing thing; empty for captions alone."""
