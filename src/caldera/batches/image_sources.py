"""Decoded pixels or cached vision features of images, by path.

A frozen tower returns the same features for an image every time, so they are computed once and cached on disk, by the
content of the image and by everything else that they depend on. Runs and stages share the cache, and processes that
need the same images at the same time share the work.

Features are computed before training starts, not during it: the tower and a training step each use all cores, so both
should only slow down (reasoned, not measured), and the order of the first epoch would have to follow the tower.
"""

import hashlib
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from caldera.batches.feature_store import FeatureLocks, FeatureRows, FeatureStore
from caldera.errors import InputError, OutputError
from caldera.files.atomic import free_bytes
from caldera.images.anyres import TileLayout
from caldera.images.decoding import (
    DEFAULT_DECODING,
    DecodingConfig,
    decode_image,
    open_image,
    read_bytes,
)
from caldera.images.processor import ImageProcessor
from caldera.interruption import StopRequest, deferred_signals
from caldera.progress import Advance, Progress

log = logging.getLogger(__name__)

ENCODE_BATCH = 64
"""Views that the tower encodes together."""

_POLL_SECONDS = 0.05
"""Seconds between two checks of an image that another process encodes."""


class ImageSource(Protocol):
    """Source of the model's input for images."""

    def __call__(
        self, paths: Sequence[Path], layouts: Sequence[TileLayout] | None = None
    ) -> Tensor:
        """Return pixels or features of all views of the images at `paths`, (views, ...).

        Args:
            paths: Image files.
            layouts: Tile layout of each image; None if each is the only image of its conversation.
        """
        ...


class DecodedImages:
    """Source of pixels, decoded each time."""

    def __init__(
        self, processor: ImageProcessor, decoding: DecodingConfig = DEFAULT_DECODING
    ) -> None:
        """Prepare images with `processor`."""
        self._processor = processor
        self._decoding = decoding

    def __call__(
        self, paths: Sequence[Path], layouts: Sequence[TileLayout] | None = None
    ) -> Tensor:
        """Return pixels, (views, channels, height, width)."""
        side = self._processor.side
        if not paths:
            return torch.zeros(0, 3, side, side)
        return torch.cat(
            [
                self._processor(open_image(path, self._decoding), layout)
                for path, layout in _with_layouts(paths, layouts)
            ]
        )


_LaidOutImage = tuple[Path, TileLayout | None]
"""An image and its layout; None for the only image of a conversation."""


def _with_layouts(
    paths: Sequence[Path], layouts: Sequence[TileLayout] | None
) -> list[_LaidOutImage]:
    """Return the images with their layouts."""
    return [*zip(paths, [None] * len(paths) if layouts is None else layouts, strict=True)]


def _key(digest: str, layout: TileLayout | None) -> str:
    """Return the key of an image in a store: its digest, or another where it is prepared as one of several."""
    if layout is None or not layout.newline:
        return digest
    return hashlib.sha256(f"{digest} one of several".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class FrozenTower:
    """Vision tower that returns the same features for the same image every time."""

    processor: ImageProcessor
    """Prepares its images."""

    encode: Callable[[Tensor], Tensor]
    """Pixels, (views, channels, height, width), to features, (views, patches, vision width), on the CPU."""

    shape: tuple[int, int]
    """Patches and vision width of one view."""

    decoding: DecodingConfig = DEFAULT_DECODING
    """Limits on the images."""

    def read(self, path: Path) -> bytes:
        """Read an image file."""
        return read_bytes(path, self.decoding)

    def decode(self, path: Path, layout: TileLayout | None) -> Tensor:
        """Return the pixels of an image, (views, channels, height, width)."""
        return self.processor(decode_image(self.read(path), str(path), self.decoding), layout)

    def encode_all(self, pixels: Tensor) -> Tensor:
        """Return the features of any number of views, (views, patches, vision width)."""
        return torch.cat([self.encode(part) for part in pixels.split(ENCODE_BATCH)])


class CachedFeatures:
    """Source of features from a store; those of each image are verified when they are first read."""

    def __init__(
        self, store: FeatureStore, digests: Mapping[Path, str], tower: FrozenTower
    ) -> None:
        """Read from a store that has the features of all images.

        Args:
            store: The store.
            digests: SHA-256 of each image's content.
            tower: Encodes an image again whose features are damaged.
        """
        self._store = store
        self._digests = digests
        self._tower = tower
        self._rows = dict(store.rows())
        self._features = store.read()
        self._verified: set[str] = set()

    def __call__(
        self, paths: Sequence[Path], layouts: Sequence[TileLayout] | None = None
    ) -> Tensor:
        """Return features in the dtype of the store, (views, patches, vision width)."""
        spans = [self._verified_rows(*image) for image in _with_layouts(paths, layouts)]
        rows = [row for span in spans for row in range(span.start, span.stop)]
        # Unlike indexing, `take` releases the GIL: other threads run while the disk reads.
        bits = np.take(self._features, rows, axis=0)
        return torch.from_numpy(bits).view(self._store.dtype)

    def _verified_rows(self, path: Path, layout: TileLayout | None) -> FeatureRows:
        """Return an image's rows, compared with their checksum once; damaged features are computed again."""
        key = _key(self._digests[path], layout)
        rows = self._rows[key]
        if key in self._verified:
            return rows
        cached = self._features[rows.start : rows.stop]
        if len(cached) != rows.count or zlib.crc32(cached.data) != rows.checksum:
            log.warning(
                "cached features of %s are damaged in %s: encoding it again", path, self._store.data
            )
            pixels = self._tower.decode(path, layout)
            self._store.append([key], [len(pixels)], self._tower.encode_all(pixels))
            self._rows[key] = self._store.rows()[key]
            self._features = self._store.read()
        self._verified.add(key)
        return self._rows[key]


OnImageError = Callable[[Path, InputError], object]


def raise_image_error(path: Path, error: InputError) -> None:
    """Raise the error of an image, where every image is needed."""
    raise error


def cache_features(
    store: FeatureStore,
    paths: Sequence[Path],
    layouts: Sequence[TileLayout] | None = None,
    *,
    tower: FrozenTower,
    progress: Progress,
    on_error: OnImageError,
) -> CachedFeatures:
    """Compute the features of images that have none yet, and return a source of the features of all.

    Args:
        store: Store of one tower and one way of preparing images; runs and stages may share it.
        paths: Images, each once in each layout.
        layouts: Tile layout of each image; None if each is the only image of its conversation.
        tower: Encodes them.
        progress: Reports the work.
        on_error: Called with each image that cannot be used; the source then lacks it.

    Raises:
        InputError: The store's index cannot be read.
        OutputError: The store cannot be written, or the disk has too little space.
    """
    with deferred_signals() as request:
        digest_of = _digests([*dict.fromkeys(paths)], tower, progress, on_error, request)
        images_of: dict[str, list[_LaidOutImage]] = {}
        for path, layout in _with_layouts(paths, layouts):
            if path in digest_of:
                images_of.setdefault(_key(digest_of[path], layout), []).append((path, layout))
        stored = store.rows()
        missing = [key for key in images_of if key not in stored]
        if missing:
            _check_space(store, [images_of[key][0] for key in missing], tower)
            builder = _FeatureBuilder(store, tower, images_of, on_error, request)
            for path in builder.run(missing, progress):
                digest_of.pop(path, None)
    return CachedFeatures(store, digest_of, tower)


def _digests(
    paths: Sequence[Path],
    tower: FrozenTower,
    progress: Progress,
    on_error: OnImageError,
    request: StopRequest,
) -> dict[Path, str]:
    """Return the SHA-256 of the content of each image that can be read."""
    digests: dict[Path, str] = {}
    with progress.task("reading images", len(paths)) as advance:
        for path in paths:
            request.raise_if_requested("stopped while reading images; repeat the command")
            try:
                digests[path] = hashlib.sha256(tower.read(path)).hexdigest()
            except InputError as error:
                on_error(path, error)
            advance()
    return digests


def _check_space(store: FeatureStore, images: Sequence[_LaidOutImage], tower: FrozenTower) -> None:
    """Log the size of the features of images, and raise OutputError if the disk has too little space for them."""
    views = sum(_num_views(*image, tower) for image in images)
    size = views * math.prod(tower.shape) * store.dtype.itemsize
    folder = store.data.parent
    free = free_bytes(folder)
    summary = f"features of {len(images):,} images ({views:,} views) need {_format_bytes(size)} in {folder}"
    if size > free:
        raise OutputError(
            f"{summary}, where {_format_bytes(free)} are free; free space, choose another folder, or train with "
            "cache_features=false"
        )
    log.info("%s, %s are free", summary, _format_bytes(free))


def _num_views(path: Path, layout: TileLayout | None, tower: FrozenTower) -> int:
    """Return the views of an image; 0 for one that cannot be used, which is reported when it is decoded."""
    try:
        if layout is None:
            [layout] = tower.processor.layouts([path], tower.decoding)
        return layout.views
    except InputError:
        return 0


def _format_bytes(size: int) -> str:
    """Format a number of bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


class _FeatureBuilder:
    """Encoder of images into a store that other processes may fill at the same time."""

    def __init__(
        self,
        store: FeatureStore,
        tower: FrozenTower,
        images_of: dict[str, list[_LaidOutImage]],
        on_error: OnImageError,
        request: StopRequest,
    ) -> None:
        self._store = store
        self._tower = tower
        self._images_of = images_of
        self._on_error = on_error
        self._request = request
        self._unusable: list[Path] = []

    def run(self, keys: Sequence[str], progress: Progress) -> list[Path]:
        """Encode all images that no other process encodes, then wait for the features of the others.

        Images of a process that ends before it has written their features are encoded here.

        Returns:
            Paths of the images that cannot be used.
        """
        remaining = list(keys)
        with (
            progress.task("encoding images", len(remaining)) as advance,
            self._store.feature_locks() as locks,
        ):
            while remaining:
                remaining = self._encode_claimed(remaining, locks, advance)
                if remaining:
                    log.info("waiting for %d images that another process encodes", len(remaining))
                    while not locks.try_acquire(remaining[0]):
                        self._raise_if_stopped()
                        time.sleep(_POLL_SECONDS)
                    locks.release(remaining[0])
        return self._unusable

    def _encode_claimed(
        self, keys: Sequence[str], locks: FeatureLocks, advance: Advance
    ) -> list[str]:
        """Encode the images that can be locked; return the others."""
        others: list[str] = []
        group: dict[str, Tensor] = {}
        for key in keys:
            self._raise_if_stopped()
            if not locks.try_acquire(key):
                others.append(key)
                continue
            pixels = None if key in self._store.rows() else self._load_pixels(key)
            if pixels is None:
                locks.release(key)
                advance()
                continue
            group[key] = pixels
            if sum(map(len, group.values())) >= ENCODE_BATCH:
                self._write(group, locks, advance)
                group = {}
        self._write(group, locks, advance)
        return others

    def _raise_if_stopped(self) -> None:
        """Raise Interrupted if a signal arrived; what is not in the store yet is encoded by the next run."""
        if self._request.signal is not None:
            stored = self._store.rows()
            count = sum(key in stored for key in self._images_of)
            self._request.raise_if_requested(
                f"stopped while encoding images; the features of {count} of {len(self._images_of)} are kept in "
                f"{self._store.data}; repeat the command to continue"
            )

    def _load_pixels(self, key: str) -> Tensor | None:
        """Return the pixels of an image; None if it cannot be used, after reporting all its paths."""
        try:
            return self._tower.decode(*self._images_of[key][0])
        except InputError as error:
            for path, _ in self._images_of[key]:
                self._on_error(path, error)
                self._unusable.append(path)
            return None

    def _write(self, group: dict[str, Tensor], locks: FeatureLocks, advance: Advance) -> None:
        """Store the features of locked images, and unlock them."""
        if not group:
            return
        views = torch.cat(list(group.values()))  # (views, channels, height, width)
        counts = [len(pixels) for pixels in group.values()]
        self._store.append(list(group), counts, self._tower.encode_all(views))
        for key in group:
            locks.release(key)
        advance(len(group))
