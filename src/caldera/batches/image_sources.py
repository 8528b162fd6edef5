"""Pixels or cached features by path.

A frozen tower gives the same features for an image every time, so they are computed once and kept on disk, by the
content of the image and by everything else that they depend on. Runs and stages share them, and processes that need
the same images at the same time share the work.

They are computed before training starts, not beside it: the tower and a training step each use all cores, so both
should only slow down (reasoned, not measured), and the order of the first epoch would have to follow the tower.
"""

import hashlib
import logging
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from caldera.batches.feature_store import FeatureLocks, FeatureStore
from caldera.errors import InputError, OutputError
from caldera.files.atomic import free_bytes
from caldera.images.decoding import decode_image, open_image, read_bytes
from caldera.images.processor import ImageProcessor
from caldera.progress import Advance, Progress

log = logging.getLogger(__name__)

ENCODE_BATCH = 64
"""Views that go through the tower together."""


class ImageSource(Protocol):
    """Gives the model's input for images."""

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return pixels or features of all views of the images at `paths`, (views, ...).

        Raises:
            ImageError: An image cannot be used.
        """
        ...


class DecodedImages:
    """Opens and prepares images whenever they are needed."""

    def __init__(self, processor: ImageProcessor) -> None:
        """Prepare images with `processor`."""
        self._processor = processor

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return pixels, (views, channels, height, width)."""
        side = self._processor.side
        if not paths:
            return torch.zeros(0, 3, side, side)
        return torch.cat([self._processor(open_image(path)) for path in paths])


@dataclass(frozen=True, slots=True)
class FrozenTower:
    """A tower that gives the same features for the same image every time."""

    processor: ImageProcessor
    """Prepares its images."""

    encode: Callable[[Tensor], Tensor]
    """Pixels, (views, channels, height, width), to features, (views, patches, vision width), on the CPU."""

    shape: tuple[int, int]
    """Patches and vision width of one view."""

    def encode_all(self, pixels: Tensor) -> Tensor:
        """Return the features of any number of views, (views, patches, vision width)."""
        return torch.cat([self.encode(part) for part in pixels.split(ENCODE_BATCH)])


class CachedFeatures:
    """Looks features up in a store; each image's are checked when they are first read."""

    def __init__(
        self, store: FeatureStore, digests: Mapping[Path, str], tower: FrozenTower
    ) -> None:
        """Take a store that has the features of all images, and the tower that gave them.

        Args:
            store: Where they are.
            digests: The sha256 of each image's content.
            tower: Looks again at an image whose features are damaged.
        """
        self._store = store
        self._digests = digests
        self._tower = tower
        self._rows = dict(store.rows())
        self._features = store.read()
        self._checked: set[str] = set()

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return features in the precision they are kept in, (views, patches, vision width).

        Raises:
            ImageError: Features are damaged, and their image is no longer there or no longer the same.
            OutputError: They were computed again, but cannot be written.
        """
        for path in paths:
            if self._digests[path] not in self._checked:
                self._check(path)
        places = [self._rows[self._digests[path]] for path in paths]
        rows = [row for place in places for row in range(place.start, place.stop)]
        bits = np.take(self._features, rows, axis=0)  # while the disk reads, other threads go on
        return torch.from_numpy(bits).view(self._store.dtype)

    def _check(self, path: Path) -> None:
        """Make sure that an image's features are those that were written, or compute them again.

        Raises:
            ImageError: They are not, and the image is no longer there.
            OutputError: They cannot be written again.
        """
        digest = self._digests[path]
        rows = self._rows[digest]
        kept = self._features[rows.start : rows.stop]
        if len(kept) != rows.count or zlib.crc32(kept.data) != rows.checksum:
            log.warning(
                "kept features of %s are damaged in %s: looking again", path, self._store.data
            )
            pixels = self._tower.processor(open_image(path))
            self._store.append([digest], [len(pixels)], self._tower.encode_all(pixels))
            self._rows[digest] = self._store.rows()[digest]
            self._features = self._store.read()
        self._checked.add(digest)


OnImageError = Callable[[Path, InputError], object]


def cache_features(
    store: FeatureStore,
    paths: Sequence[Path],
    *,
    tower: FrozenTower,
    progress: Progress,
    on_fault: OnImageError,
) -> CachedFeatures:
    """Compute the features of images that have none yet, and return a source of them all.

    Args:
        store: Keeps features of one tower and one way of preparing images; runs and stages may share it.
        paths: Images that will be asked for, each once.
        tower: What looks at them.
        progress: Follows the work.
        on_fault: Called with each image that cannot be used; the source then lacks it.

    Raises:
        InputError: The store is broken in a way that cannot be told which features it holds.
        OutputError: The store cannot be written, or the disk has too little room for what will be.
    """
    digest_of = _digests(paths, progress, on_fault)
    named: dict[str, list[Path]] = {}
    for path, digest in digest_of.items():
        named.setdefault(digest, []).append(path)
    known = store.rows()
    lacking = [digest for digest in named if digest not in known]
    if lacking:
        _check_space(store, [named[digest][0] for digest in lacking], tower)
        for path in _FeatureBuilder(store, tower, named, on_fault).run(lacking, progress):
            del digest_of[path]
    return CachedFeatures(store, digest_of, tower)


def _digests(paths: Sequence[Path], progress: Progress, on_fault: OnImageError) -> dict[Path, str]:
    """Return the sha256 of the content of each image that can be read."""
    found: dict[Path, str] = {}
    with progress.task("reading images", len(paths)) as tick:
        for path in paths:
            try:
                found[path] = hashlib.sha256(read_bytes(path)).hexdigest()
            except InputError as fault:
                on_fault(path, fault)
            tick()
    return found


def _check_space(store: FeatureStore, paths: Sequence[Path], tower: FrozenTower) -> None:
    """Say how much the features of images will take, and make sure that there is room for them.

    Raises:
        OutputError: There is not.
    """
    views = sum(_views(path, tower) for path in paths)
    size = views * math.prod(tower.shape) * store.dtype.itemsize
    place = store.data.parent
    free = free_bytes(place)
    said = (
        f"features of {len(paths):,} images ({views:,} views) take {_format_bytes(size)} in {place}"
    )
    if size > free:
        raise OutputError(
            f"{said}, where {_format_bytes(free)} are free; free space, choose another place, or train with "
            "keep_features=false"
        )
    log.info("%s, %s are free", said, _format_bytes(free))


def _views(path: Path, tower: FrozenTower) -> int:
    """Return the views of an image; of one that cannot be used, none: that is told when it is decoded."""
    try:
        return tower.processor.layout(path).views
    except InputError:
        return 0


def _format_bytes(size: int) -> str:
    """Write bytes so that a person can read them."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


class _FeatureBuilder:
    """Brings images into a store, beside other processes that may do the same."""

    def __init__(
        self,
        store: FeatureStore,
        tower: FrozenTower,
        named: dict[str, list[Path]],
        on_fault: OnImageError,
    ) -> None:
        self._store = store
        self._tower = tower
        self._named = named
        self._on_fault = on_fault
        self._bad: list[Path] = []

    def run(self, digests: Sequence[str], progress: Progress) -> list[Path]:
        """Look at all images that no other process looks at, then wait for the others' features.

        Where another process ends before it has written them, they are computed here.

        Returns:
            Paths of those that cannot be used.
        """
        left = list(digests)
        with (
            progress.task("looking at images", len(left)) as tick,
            self._store.feature_locks() as claims,
        ):
            while left:
                left = self._encode_claimed(left, claims, tick)
                if left:
                    log.info("waiting for another process, which looks at %d of them", len(left))
                    claims.wait_for(left[0])
        return self._bad

    def _encode_claimed(
        self, digests: Sequence[str], claims: FeatureLocks, tick: Advance
    ) -> list[str]:
        """Look at those images that can be claimed; return the others."""
        others: list[str] = []
        group: dict[str, Tensor] = {}
        for digest in digests:
            if not claims.try_acquire(digest):
                others.append(digest)
                continue
            pixels = None if digest in self._store.rows() else self._load_pixels(digest)
            if pixels is None:
                claims.release(digest)
                tick()
                continue
            group[digest] = pixels
            if sum(map(len, group.values())) >= ENCODE_BATCH:
                self._write(group, claims, tick)
                group = {}
        self._write(group, claims, tick)
        return others

    def _load_pixels(self, digest: str) -> Tensor | None:
        """Return the pixels of an image; of one that cannot be used, none, and all its paths are told."""
        first = self._named[digest][0]
        try:
            return self._tower.processor(decode_image(read_bytes(first), str(first)))
        except InputError as fault:
            for path in self._named[digest]:
                self._on_fault(path, fault)
            self._bad += self._named[digest]
            return None

    def _write(self, group: dict[str, Tensor], claims: FeatureLocks, tick: Advance) -> None:
        """Put the features of claimed images into the store, and let the images go."""
        if not group:
            return
        views = torch.cat(list(group.values()))  # (views, channels, height, width)
        counts = [len(pixels) for pixels in group.values()]
        self._store.append(list(group), counts, self._tower.encode_all(views))
        for digest in group:
            claims.release(digest)
        tick(len(group))
