"""Origins of data files: files of data sets on the Hub that one was made from, in a JSON file next to it."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from caldera.errors import InputError
from caldera.files.atomic import write_json
from caldera.files.fingerprint import digest_file


class HubOrigin(BaseModel):
    """File or folder of a data set on the Hugging Face Hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    """Name of the data set, ORG/NAME."""

    revision: str
    """Commit, 40 hexadecimal digits."""

    file: str
    """Path in the repository; empty for all of it."""


class TrainingSet(BaseModel):
    """Data file of a training stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    """Name of the file, without its folder."""

    records: int
    """Number of records that were trained on or held out for validation."""

    sha256: str
    """Digest of the file."""

    origins: tuple[HubOrigin, ...] = ()
    """What the file was made from, as far as that came from the Hub."""


class _Origins(BaseModel):
    """Content of the file next to a data file."""

    model_config = ConfigDict(extra="forbid")

    sha256: str
    """Digest of the data file; of another file, the origins are not known."""

    origins: tuple[HubOrigin, ...]


def write_origins(file: Path, origins: Iterable[HubOrigin]) -> None:
    """Record next to a data file what it was made from; remove an earlier record if that is nothing."""
    path, distinct = _origins_path(file), tuple(dict.fromkeys(origins))
    if distinct:
        write_json(path, _Origins(sha256=digest_file(file), origins=distinct).model_dump())
    else:
        path.unlink(missing_ok=True)


def read_origins(file: Path) -> tuple[HubOrigin, ...]:
    """Return what a data file was made from; empty if that is not recorded, or the file was changed since.

    Raises:
        InputError: The record is broken, or the data file cannot be read.
    """
    path = _origins_path(file)
    if not path.is_file():
        return ()
    try:
        stored = _Origins.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise InputError(f"{path} is no record of origins; remove it") from None
    return stored.origins if stored.sha256 == digest_file(file) else ()


def describe_data_file(file: Path, num_records: int) -> TrainingSet:
    """Return what a model's metadata records of a data file.

    Raises:
        InputError: The file, or the record of its origins, cannot be read.
    """
    return TrainingSet(
        file=file.name, records=num_records, sha256=digest_file(file), origins=read_origins(file)
    )


def _origins_path(file: Path) -> Path:
    return file.with_suffix(".origins.json")
