"""Tests of fingerprints and of the differences between stored and current settings."""

import hashlib

from caldera.files.fingerprint import describe_changes, json_fingerprint


def test_a_fingerprint_is_the_sha256_of_the_sorted_json() -> None:
    """It does not depend on the order of keys, and can be truncated."""
    digest = hashlib.sha256(b'{"a": 1, "b": [2]}').hexdigest()
    assert json_fingerprint({"b": [2], "a": 1}) == digest
    assert json_fingerprint({"a": 1, "b": [2]}, 12) == digest[:12]


def test_changes_name_every_leaf_that_differs() -> None:
    """Nested settings get dotted names; a setting on one side only is "not set" on the other."""
    stored = {"model": "a", "stage": {"epochs": 1, "seed": 2}, "old": 1}
    current = {"model": "b", "stage": {"epochs": 3, "seed": 2}, "new": 4}
    assert describe_changes(stored, current) == (
        "model was a, is b; stage.epochs was 1, is 3; old was 1, is not set; new was not set, is 4"
    )
    assert describe_changes(stored, stored) == ""


def test_only_the_first_changes_and_the_beginning_of_long_values_are_listed() -> None:
    """A message stays short however much has changed."""
    text = describe_changes({}, {f"setting{number}": "x" * 100 for number in range(20)})
    assert text.endswith("; 12 more")
    assert text.count(" was not set, is " + "x" * 77 + "...") == 8
