"""Fingerprints: digests of the settings that decide a result, and their differences from stored ones."""

import hashlib
import json
from collections.abc import Iterator, Mapping


def json_fingerprint(settings: object, length: int = 64) -> str:
    """Return the first `length` hexadecimal digits of the SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:length]


def describe_changes(stored: Mapping[str, object], current: Mapping[str, object]) -> str:
    """Describe how settings differ from stored ones: "model was a, is b; pretrain.epochs was 1, is 2".

    Returns:
        One clause for each changed leaf, joined by semicolons; empty where nothing changed.
    """
    return "; ".join(_changes(stored, current, ""))


def _changes(
    stored: Mapping[str, object], current: Mapping[str, object], prefix: str
) -> Iterator[str]:
    for key in {**stored, **current}:
        before, now = stored.get(key, "not set"), current.get(key, "not set")
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _changes(before, now, f"{prefix}{key}.")
        elif before != now:
            yield f"{prefix}{key} was {before}, is {now}"
