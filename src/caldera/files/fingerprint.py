"""Fingerprints: digests of files and of the settings that decide a result, and differences from stored settings."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from caldera.errors import InputError

_MAX_CHANGES, _MAX_LENGTH = 8, 80
"""Changes that a message lists, and characters of each value."""


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error


def json_fingerprint(settings: object, length: int = 64) -> str:
    """Return the first `length` hexadecimal digits of the SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:length]


def describe_changes(stored: Mapping[str, object], current: Mapping[str, object]) -> str:
    """Describe the first changes of settings, if any: "model was a, is b; pretrain.epochs was 1, is 2"."""
    changes = list(_changes(stored, current, ""))
    rest = len(changes) - _MAX_CHANGES
    return "; ".join(changes[:_MAX_CHANGES] + [f"{rest} more"] * (rest > 0))


def _changes(
    stored: Mapping[str, object], current: Mapping[str, object], prefix: str
) -> Iterator[str]:
    for key in {**stored, **current}:
        before, now = stored.get(key, "not set"), current.get(key, "not set")
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _changes(before, now, f"{prefix}{key}.")
        elif before != now:
            yield f"{prefix}{key} was {_shorten(before)}, is {_shorten(now)}"


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."
