"""One tree of errors, each with the exit code that the docstring states."""

import re

from caldera import errors
from caldera.errors import (
    CalderaError,
    UnknownNameError,
    UsageError,
    did_you_mean,
)


def family(error: type[CalderaError]) -> list[type[CalderaError]]:
    """List an error and all that descend from it within the module."""
    here = [each for each in error.__subclasses__() if each.__module__ == errors.__name__]
    return [error, *(found for child in here for found in family(child))]


def test_the_docstring_draws_the_tree_that_there_is() -> None:
    """Every class stands in it once, in order, at its depth, with its exit code."""
    drawn = [
        (len(indent) // 4, name, int(code))
        for indent, name, code in re.findall(
            r"^([├└│─ ]*)(\w+Error) +(\d)", errors.__doc__ or "", re.MULTILINE
        )
    ]
    there = [
        (len(error.__mro__) - len(CalderaError.__mro__), error.__name__, error.exit_code)
        for error in family(CalderaError)
    ]
    assert drawn == there
    assert len(there) == 16


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    """One line says what was looked for and what may have been meant."""
    fault = UnknownNameError("teacher", "scriptd", {"scripted": 1, "gpt": 2})
    assert str(fault) == "no teacher is called 'scriptd'; did you mean 'scripted'?"
    assert isinstance(fault, UsageError)
    assert fault.exit_code == 2


def test_a_name_far_from_all_is_answered_with_the_list() -> None:
    """All known names, sorted."""
    assert did_you_mean("zzz", ["pairs", "coco"]) == "known: coco, pairs"
