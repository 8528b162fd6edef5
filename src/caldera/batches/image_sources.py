"""Image paths in, what the model takes for them out: pixels, or features that a frozen tower gave once."""

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from caldera.batches.feature_store import FeatureStore
from caldera.batches.image_files import open_image
from caldera.batches.images import ImageProcessor

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
