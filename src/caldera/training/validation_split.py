"""Hold out conversations for validation, by shared images."""

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from caldera.batches.samples import Sample

log = logging.getLogger(__name__)


def split_validation(
    samples: Sequence[Sample], rows: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Hold out about `rows` samples, at most a tenth, that share no image with the others.

    Where all hang together, each sharing an image with a next, this holds for their first images only.

    Returns:
        Samples to learn from, and samples held out.
    """
    wanted = min(rows, len(samples) // 10)
    held_out = _pick_groups(_connected_by_images(samples), wanted, seed)
    if wanted and not held_out:
        log.warning(
            "all records hang together by images they share: held-out ones are not new in all their images"
        )
        held_out = _pick_groups(_group_by(samples, lambda path: path), wanted, seed)
    learning = [sample for at, sample in enumerate(samples) if at not in held_out]
    return learning, [samples[at] for at in sorted(held_out)]


def _pick_groups(groups: list[list[int]], wanted: int, seed: int) -> set[int]:
    """Return the members of random groups, as many as fit into `wanted`."""
    random.Random(seed).shuffle(groups)
    taken: set[int] = set()
    for group in groups:
        if len(taken) + len(group) <= wanted:
            taken.update(group)
    return taken


def _connected_by_images(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the indices of samples in groups that share no image with each other."""
    parent: dict[Path, Path] = {}  # a forest; the images of a group are one tree

    def top(path: Path) -> Path:
        while parent.setdefault(path, path) != path:
            parent[path] = path = parent[parent[path]]
        return path

    for sample in samples:
        for path in sample.images[1:]:
            parent[top(path)] = top(sample.images[0])
    return _group_by(samples, top)


def _group_by(samples: Sequence[Sample], key: Callable[[Path], Path]) -> list[list[int]]:
    """Return the indices of samples in groups by the key of their first image; one without stands alone."""
    groups: dict[Path | int, list[int]] = {}
    for at, sample in enumerate(samples):
        groups.setdefault(key(sample.images[0]) if sample.images else at, []).append(at)
    return list(groups.values())
