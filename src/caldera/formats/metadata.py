"""`caldera.json`: what a model folder says of itself beyond what transformers' config can say."""

from pathlib import Path

from pydantic import ValidationError

from caldera.errors import ModelFormatError, describe_validation_error
from caldera.model.assistant import ModelMetadata

METADATA_FILE = "caldera.json"


def read_card(folder: Path) -> ModelMetadata:
    """Read a folder's card.

    Raises:
        ModelFolderError: It is missing, broken, or holds what it should not.
    """
    try:
        return ModelMetadata.model_validate_json((folder / METADATA_FILE).read_bytes())
    except FileNotFoundError:
        if (folder / "adapter_config.json").is_file():
            raise ModelFormatError(
                f"{folder} is an adapter, which says nothing without its base; merge the two: caldera train merge "
                f"{folder} --model BASE --out FOLDER"
            ) from None
        raise ModelFormatError(
            f"{folder} has no {METADATA_FILE}, so it is not a caldera model folder; check the path"
        ) from None
    except OSError as error:
        raise ModelFormatError(f"cannot read {folder / METADATA_FILE}: {error.strerror}") from error
    except ValidationError as error:
        raise ModelFormatError(
            f"{folder / METADATA_FILE}: {describe_validation_error(error)}"
        ) from None
