"""What a run starts from in, a digest out: of two runs with the same, one may go on where the other stopped."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from caldera.batches.samples import Sample
from caldera.model.folder import LlavaBundle
from caldera.model.weights import digest_weights
from caldera.training.devices import DeviceConfig
from caldera.training.stage import Stage


def run_fingerprint(
    stage: Stage,
    assistant: LlavaBundle,
    samples: Sequence[Sample],
    images: Path,
    compute: DeviceConfig,
) -> str:
    """Return a digest of what decides how a run goes, but for the device and the versions of the libraries.

    Args:
        stage: Every setting counts.
        assistant: Its weights count, how its tower is read, how images are prepared, and whether it is fresh.
        samples: Their numbers count. An image counts by its path and its size in bytes, so data may be moved, and a
            image that is repaired makes another run.
        images: Folder that the images' paths start from; it does not count itself.
        compute: The precision counts.
    """
    vision = assistant.model.vision
    said = {
        "stage": asdict(stage),
        "weights": digest_weights(assistant.model.state_dict()),
        "features": [vision.select_layer, vision.select],
        "preparation": asdict(assistant.processor),
        "after": assistant.card.stage,
        "precision": str(compute.dtype),
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    sizes = {path: path.stat().st_size for sample in samples for path in sample.images}
    for sample in samples:
        shown = [(os.path.relpath(path, images), sizes[path]) for path in sample.images]
        digest.update(repr((sample.id, sample.ids, sample.labels, shown)).encode())
    return digest.hexdigest()
