"""An assistant's frozen tower and images in, a source of their features out, each computed once."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from caldera.batches.feature_store import FeatureStore
from caldera.batches.image_sources import CachedFeatures, FrozenTower, cache_features
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import InputError
from caldera.formats.weight_names import digest_weights
from caldera.model.assistant import LlavaBundle

_STORE_VERSION = 2
"""Of stores; raised when their files change, so that older ones are not read."""


def raise_image_error(path: Path, fault: InputError) -> None:
    """Let nothing pass where every image is needed.

    Raises:
        InputError: An image cannot be used.
    """
    raise fault


def cached_tower_features(
    assistant: LlavaBundle,
    folder: Path,
    paths: Sequence[Path],
    *,
    means: Runtime,
    on_fault: Callable[[Path, InputError], object],
) -> CachedFeatures:
    """Return a source of the features of all images at `paths`, kept in `folder`.

    Args:
        assistant: Its vision tower looks at the images, as its processor prepares them.
        folder: Holds a store for each tower and preparation.
        paths: Images, each once.
        means: Device and precision of the tower, and who follows the work.
        on_fault: Called with each image that cannot be used; the source then lacks it.

    Raises:
        InputError: The store is broken in a way that cannot be mended.
        OutputError: The store cannot be written, or the disk has too little room for it.
    """
    compute = means.compute
    vision = assistant.model.vision.to(compute.device)

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with compute.autocast():
            return vision(pixels.to(compute.device)).cpu()

    return cache_features(
        FeatureStore(folder, _store_name(assistant, compute), compute.dtype),
        paths,
        tower=FrozenTower(assistant.processor, encode, (vision.image_tokens, vision.width)),
        progress=means.progress,
        on_fault=on_fault,
    )


def _store_name(assistant: LlavaBundle, compute: DeviceConfig) -> str:
    """Name the store by everything but the image that features depend on."""
    vision = assistant.model.vision
    said = repr((assistant.processor, vision.select_layer, vision.select, str(compute.dtype)))
    told = f"{_STORE_VERSION} {said} {digest_weights(vision.state_dict())}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]
