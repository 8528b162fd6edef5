"""Reader of `caldera.json`: metadata of a model folder that transformers' config cannot express."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from caldera.errors import ModelFormatError, describe_validation_error
from caldera.model.bundle import ModelMetadata

METADATA_FILE = "caldera.json"

_FORMER_KEYS = {
    "select_layer": "vision_feature_layer",
    "select": "feature_select",
    "aspect": "image_aspect",
    "parents": "source_digests",
}
"""Keys of folders that earlier versions wrote, and their current names."""


def _with_current_keys(content: object) -> object:
    """Rename former keys of metadata in JSON."""
    if not isinstance(content, dict):
        return content
    for former, current in _FORMER_KEYS.items():
        if former in content and current in content:
            raise ValueError(f"{former!r} is the former name of {current!r}; remove one of the two")
    return {_FORMER_KEYS.get(key, key): value for key, value in content.items()}


StoredMetadata = Annotated[ModelMetadata, BeforeValidator(_with_current_keys)]
"""Metadata as read from a file, whose keys may be those of an earlier version."""


def read_metadata(folder: Path) -> ModelMetadata:
    """Read a folder's metadata.

    Raises:
        ModelFormatError: The file is missing, broken, or holds unknown or invalid values.
    """
    file = folder / METADATA_FILE
    try:
        return TypeAdapter(StoredMetadata).validate_json(file.read_bytes())
    except FileNotFoundError:
        if (folder / "adapter_config.json").is_file():
            raise ModelFormatError(
                f"{folder} is an adapter, which needs its base model; merge the two: caldera train merge "
                f"{folder} --model BASE --out FOLDER"
            ) from None
        raise ModelFormatError(
            f"{folder} has no {METADATA_FILE}, so it is not a caldera model folder; check the path"
        ) from None
    except OSError as error:
        raise ModelFormatError(f"cannot read {file}: {error.strerror}") from error
    except ValidationError as error:
        raise ModelFormatError(f"{file}: {describe_validation_error(error)}") from None
