"""Picture paths in, what the model takes for them out: pixels, or features that a frozen tower gave once.

A frozen tower gives the same features for a picture every time, so they are computed once and kept on disk, by the
content of the picture and by everything else that they depend on.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from caldera.batches.feature_store import FeatureStore
from caldera.batches.picture_files import decode_picture, open_picture, read_bytes
from caldera.batches.pictures import PictureProcessor
from caldera.errors import InputError
from caldera.progress import Progress

_AT_ONCE = 64
"""Pictures that are prepared, and views that go through the tower, together."""


class PictureSource(Protocol):
    """Gives the model's input for pictures."""

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return pixels or features of all views of the pictures at `paths`, (views, ...).

        Raises:
            PictureError: A picture cannot be used.
        """
        ...


class Pixels:
    """Opens and prepares pictures whenever they are needed."""

    def __init__(self, processor: PictureProcessor) -> None:
        """Prepare pictures with `processor`."""
        self._processor = processor

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return pixels, (views, channels, height, width)."""
        side = self._processor.side
        if not paths:
            return torch.zeros(0, 3, side, side)
        return torch.cat([self._processor(open_picture(path)) for path in paths])


class KeptFeatures:
    """Looks features up in a store."""

    def __init__(self, rows: Mapping[Path, range], features: np.ndarray) -> None:
        """Take the rows of each picture, and all features as the bits of bf16, (rows, patches, vision width)."""
        self._rows = rows
        self._features = features

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return features in bf16, (views, patches, vision width)."""
        rows = [row for path in paths for row in self._rows[path]]
        bits = np.asarray(self._features[rows])
        return torch.from_numpy(bits).view(torch.bfloat16)


def keep_features(
    store: FeatureStore,
    paths: Sequence[Path],
    *,
    processor: PictureProcessor,
    encode: Callable[[Tensor], Tensor],
    progress: Progress,
    on_fault: Callable[[Path, InputError], object],
) -> KeptFeatures:
    """Compute the features of pictures that have none yet, and return a source of them all.

    Args:
        store: Keeps features of one tower and one way of preparing pictures; runs and stages may share it.
        paths: Pictures that will be asked for, each once.
        processor: Prepares pictures.
        encode: Pixels, (views, channels, height, width), to features, (views, patches, vision width).
        progress: Follows the work.
        on_fault: Called with each picture that cannot be used; the source then lacks it.

    Raises:
        OutputError: The store cannot be written.
    """
    digest_of: dict[Path, str] = {}
    with progress.job("looking at pictures", len(paths)) as tick, store.locked():
        known = set(store.rows())
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            pixels: dict[str, Tensor] = {}
            for path in some:
                try:
                    content = read_bytes(path)
                    digest = hashlib.sha256(content).hexdigest()
                    if digest not in known and digest not in pixels:
                        pixels[digest] = processor(decode_picture(content, str(path)))
                    digest_of[path] = digest
                except InputError as fault:
                    on_fault(path, fault)
            if pixels:
                views = torch.cat(list(pixels.values()))  # (views, channels, height, width)
                features = torch.cat([encode(part) for part in views.split(_AT_ONCE)])
                store.append(list(pixels), [len(each) for each in pixels.values()], features)
                known |= pixels.keys()
            tick(len(some))
    rows = store.rows()
    return KeptFeatures({path: rows[digest] for path, digest in digest_of.items()}, store.read())
