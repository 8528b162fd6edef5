"""Tests of the exception tree and of the helpers that word error messages."""

import math
import re
from dataclasses import dataclass

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from caldera import errors
from caldera.errors import (
    CalderaError,
    UnknownNameError,
    UsageError,
    check_ranges,
    describe_validation_error,
    did_you_mean,
)


def subclasses(error: type[CalderaError]) -> list[type[CalderaError]]:
    """Return an exception class and all its descendants in the module, depth first."""
    children = [child for child in error.__subclasses__() if child.__module__ == errors.__name__]
    return [error, *(descendant for child in children for descendant in subclasses(child))]


def test_the_tree_in_the_docstring_is_the_class_tree() -> None:
    """Every class is listed once, in order, at its depth, with its exit code."""
    documented = [
        (len(indent) // 4, name, int(code))
        for indent, name, code in re.findall(
            r"^([├└│─ ]*)(\w+)  +(\d+)\b", errors.__doc__ or "", re.MULTILINE
        )
    ]
    actual = [
        (len(error.__mro__) - len(CalderaError.__mro__), error.__name__, error.exit_code)
        for error in subclasses(CalderaError)
    ]
    assert documented == actual
    assert len(actual) == 17


def test_an_unknown_name_suggests_the_nearest() -> None:
    """One line repeats the name and suggests the closest valid one."""
    error = UnknownNameError("teacher", "scriptd", {"scripted": 1, "gpt": 2})
    assert str(error) == "no teacher is called 'scriptd'; did you mean 'scripted'?"
    assert isinstance(error, UsageError)
    assert error.exit_code == 2


def test_a_name_close_to_no_valid_one_lists_all() -> None:
    """All valid names, sorted."""
    assert did_you_mean("zzz", ["pairs", "coco"]) == "known: coco, pairs"


class Record(BaseModel):
    """A model with each type of field that the messages treat specially."""

    model_config = ConfigDict(extra="forbid", strict=True)

    count: int
    images: str | list[str] = ""

    @field_validator("count")
    @classmethod
    def check_count(cls, count: int) -> int:
        """Raise ValueError for a negative count."""
        if count < 0:
            raise ValueError("Count is negative")
        return count


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "count: field required"),
        ({"count": "3"}, "count: input should be a valid integer, got '3'"),
        ({"count": "x" * 50}, f"count: input should be a valid integer, got '{'x' * 36}..."),
        ({"count": -1}, "count: count is negative"),
        ({"count": 1, "images": [2]}, "images: input should be a valid string, got [2]"),
        ({"count": 1, "size": 2}, "size: extra inputs are not permitted, got 2"),
        (3, "line: input should be a valid dictionary or instance of Record"),
    ],
)
def test_a_validation_error_is_described_by_its_first_error(record: object, message: str) -> None:
    """Field, reason and invalid value are in one line."""
    with pytest.raises(ValidationError) as caught:
        Record.model_validate(record)
    assert describe_validation_error(caught.value, "line") == message


@dataclass(frozen=True)
class Settings:
    """Settings with a range."""

    slots: int | None = 1
    rate: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self, {"slots": "[1, inf)", "rate": "(0, 1]"}, "engine")


def test_settings_inside_their_intervals_are_accepted() -> None:
    """Closed bounds are included, and None is not checked."""
    assert Settings(1, 1.0).rate == 1.0
    assert Settings(None).slots is None


@pytest.mark.parametrize(
    ("slots", "rate", "message"),
    [
        (0, 0.5, "engine: slots is 0; it must be at least 1 and finite"),
        (1, 0, "engine: rate is 0; it must lie in (0, 1]"),
        (1, math.nan, "engine: rate is nan; it must lie in (0, 1]"),
        (
            0,
            2,
            "engine: slots is 0; it must be at least 1 and finite; rate is 2; it must lie in (0, 1]",
        ),
    ],
)
def test_settings_outside_their_intervals_are_all_named(
    slots: int, rate: float, message: str
) -> None:
    """Open bounds and NaN are rejected, and one error names every invalid setting."""
    with pytest.raises(UsageError) as caught:
        Settings(slots, rate)
    assert str(caught.value) == message
