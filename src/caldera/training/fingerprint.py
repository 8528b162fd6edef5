"""Fingerprint of a run: everything that decides its result, by name, so that it is resumed as itself only.

`run.json` in a run's folder holds it: the settings that change a step, digests of the initial weights and of every
record, image preparation and precision. The device, the versions of libraries, and the settings in
`EXECUTION_SETTINGS` do not count.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from caldera.batches.sampler import splits_whole_images, validation_limit
from caldera.batches.samples import Sample
from caldera.devices import DeviceConfig
from caldera.files.atomic import to_plain_json, write_json
from caldera.files.fingerprint import describe_changes, json_fingerprint
from caldera.formats.weight_names import digest_weights
from caldera.images.decoding import DEFAULT_DECODING, DecodingConfig
from caldera.images.processor import ImageProcessor
from caldera.model.bundle import LlavaBundle
from caldera.overrides import with_current_names, with_former_names
from caldera.training.hyperparameters import Stage, deciding_settings

_FILE, _STAGE_FILE = "run.json", "stage.json"

_DIGEST_LENGTH = 16

_LIMITS = ("max_length", "validation_size")
"""Settings that count only by the records that they allow and by the split that they lead to."""


class RunFingerprint:
    """Fingerprint of a run, and its differences from a stored one."""

    def __init__(
        self,
        stage: Stage,
        assistant: LlavaBundle,
        samples: Sequence[Sample],
        images: Path,
        compute: DeviceConfig,
        decoding: DecodingConfig = DEFAULT_DECODING,
    ) -> None:
        """Compute the fingerprint.

        Args:
            stage: Its settings that change a step count.
            assistant: Its weights, feature selection, image preparation and last stage count.
            samples: Their numbers count. An image counts by its path and its size in bytes, so data may be moved, and
                a repaired image makes another run.
            images: Folder that the images' paths are relative to; does not count itself.
            compute: The precision counts.
            decoding: Limits on images, which decide the scale at which large ones are decoded.
        """
        self._stage, self._assistant, self._compute = stage, assistant, compute
        self._decoding = decoding
        sizes = {path: path.stat().st_size for sample in samples for path in sample.images}
        self._records = [
            (sample, [(os.path.relpath(path, images), sizes[path]) for path in sample.images])
            for sample in samples
        ]
        model = assistant.model
        weights = model.state_dict()
        whole_images = splits_whole_images(samples, stage.validation_size, stage.seed)
        self._content = to_plain_json(
            {
                "settings": _deciding(asdict(stage)),
                "validation_split": validation_limit(len(samples), stage.validation_size),
                # Only where it differs from the rule of earlier versions, whose runs have no such entry.
                **({"validation_rule": "whole images"} if whole_images else {}),
                "limits": {name: getattr(stage, name) for name in _LIMITS},
                "weights": {
                    part: digest_weights(
                        {name: weights[name] for name in weights if name.startswith(f"{part}.")}
                    )[:_DIGEST_LENGTH]
                    for part, _ in model.named_children()
                },
                "vision_feature_layer": model.vision.select_layer,
                "feature_select": model.vision.select,
                "image_processor": _processor_settings(assistant.processor),
                "decoding": asdict(decoding),
                "previous_stage": assistant.card.stage,
                "precision": str(compute.dtype).removeprefix("torch."),
                "records": [f"{_digest(*record)} {record[0].id}" for record in self._records],
            }
        )
        self.digest = _content_digest(self._content)
        """Digest of the fingerprint, stored in checkpoints and in the metadata of the model."""

    def write(self, folder: Path) -> None:
        """Write the fingerprint and every setting to a run's folder."""
        write_json(folder / _FILE, self._content)
        write_json(folder / _STAGE_FILE, asdict(self._stage))

    def changes(self, folder: Path, digest: str) -> str:
        """Describe what differs from the run in `folder` whose digest was stored; empty if it is the same run."""
        if digest == self.digest:
            return ""
        stored = _read_json(folder / _FILE)
        if "records" in stored and _content_digest(stored) == digest:
            return "; ".join(filter(None, self._named_changes(stored)))
        # A run of version 0.1 or 0.2: its digest is of the complete settings.
        settings = with_current_names(_read_json(folder / _STAGE_FILE)) or asdict(self._stage)
        changes = describe_changes(
            to_plain_json(_deciding(settings)), self._content["settings"]
        ) or self._describe_split(settings["validation_size"])
        is_same = self._former_digest(settings) == digest
        return changes if is_same else changes or "data, initial weights or precision"

    def _named_changes(self, stored: Mapping[str, Any]) -> Iterator[str]:
        """Yield descriptions of the differences, some of them empty: of settings, then of the model, then of data."""
        now = self._content
        yield describe_changes(stored["settings"], now["settings"])
        apart = ("settings", "validation_split", "limits", "records")
        yield describe_changes(
            *(
                {name: content[name] for name in content if name not in apart}
                for content in (stored, now)
            )
        )
        if records := _record_changes(stored["records"], now["records"]):
            limit = describe_changes(stored["limits"], now["limits"])
            yield f"{records} ({limit})" if limit else records
        else:
            yield self._describe_split(stored["limits"]["validation_size"])

    def _describe_split(self, size: int) -> str:
        """Describe another size of the validation split, requested by `validation_size`; empty if it is the same."""
        if validation_limit(len(self._records), size) == self._content["validation_split"]:
            return ""
        return describe_changes(
            {"validation_size": size}, {"validation_size": self._stage.validation_size}
        )

    def _former_digest(self, stage: Mapping[str, Any]) -> str:
        """Return the digest that version 0.1 would have stored for a run with these settings."""
        vision = self._assistant.model.vision
        settings = {
            "stage": with_former_names(stage),
            "weights": digest_weights(self._assistant.model.state_dict()),
            "features": [vision.select_layer, vision.select],
            "preparation": with_former_names(asdict(self._assistant.processor)),
            "after": self._assistant.card.stage,
            "precision": str(self._compute.dtype),
        }
        if self._decoding != DEFAULT_DECODING:
            settings["decoding"] = asdict(self._decoding)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for sample, files in self._records:
            digest.update(_record_text(sample, files))
        return digest.hexdigest()


def _processor_settings(processor: ImageProcessor) -> dict[str, Any]:
    """Return the settings of an image processor, without `anyres_max`, which is new, where it is not set."""
    settings = asdict(processor)
    if processor.anyres_max is None:
        del settings["anyres_max"]
    return settings


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage that change its steps themselves."""
    deciding = deciding_settings(settings)
    return {name: deciding[name] for name in deciding if name not in _LIMITS}


def _content_digest(content: Mapping[str, Any]) -> str:
    """Return the digest of a fingerprint; what the limits lead to counts, not the limits."""
    return json_fingerprint({name: content[name] for name in content if name != "limits"})


def _record_text(sample: Sample, files: Sequence[tuple[str, int]]) -> bytes:
    return repr((sample.id, sample.ids, sample.labels, files)).encode()


def _digest(sample: Sample, files: Sequence[tuple[str, int]]) -> str:
    return hashlib.sha256(_record_text(sample, files)).hexdigest()[:_DIGEST_LENGTH]


def _record_changes(stored: Sequence[str], current: Sequence[str]) -> str:
    """Describe how records differ, each given as its digest and its id; empty if they do not."""
    if stored == current:
        return ""
    new, removed = Counter(current) - Counter(stored), Counter(stored) - Counter(current)
    count = max(new.total(), removed.total())
    if not count:
        return "data: the same records in another order"
    first = next(iter(new or removed)).split(" ", 1)[1]
    text = (
        f"data: {count} {'record differs' if count == 1 else 'records differ'}, the first {first!r}"
    )
    lengths = len(stored), len(current)
    return (
        text
        if lengths[0] == lengths[1]
        else f"{text} ({lengths[0]} records were, {lengths[1]} are)"
    )


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
