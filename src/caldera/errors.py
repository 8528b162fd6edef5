"""The package's exceptions, the exit code of each, and helpers that word error messages.

```
CalderaError                    1
├── UsageError                  2   a command, setting or option is wrong
│   └── UnknownNameError        2   a name is in no table
├── InputError                  3   a file or folder cannot be read as what it should be
│   ├── ConversationError       3   a conversation record
│   ├── AnnotationError         3   an annotation file
│   ├── ImageError              3   an image file
│   └── ModelFormatError        3   a model folder, adapter or checkpoint
├── OutputError                 4   something could not be written
├── LLMClientError              5   a key, quota or budget stops the requests to an LLM
├── EvaluationError             6   too many items of an evaluation failed
├── TrainingError               7   training cannot continue
├── ParityError                 8   two implementations of a model differ
├── Interrupted               128   + n: signal n ended the work where everything was saved
└── EngineError                 9   an answer that was started cannot be finished
    ├── QueueFullError          9   the queue of requests is full
    └── OutOfMemoryError        9   there is not enough memory for the answer
```

A successful command exits with 0, one stopped by Ctrl-C with 130, by SIGTERM with 143.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_UNION_BRANCH = re.compile(r"(str|int|float|bool|list\[.*\]|constrained-.*)$")
"""Steps of an error's location that pydantic adds for the alternatives of a union."""

_MAX_VALUE_LENGTH = 40
"""Characters of an invalid value that a message repeats."""


class CalderaError(Exception):
    """Base class of every deliberate error; its text is one line that a user can act on."""

    exit_code: int = 1


class UsageError(CalderaError):
    """The command line, a setting or a combination of them is invalid."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name is in no table."""

    def __init__(self, subject: str, name: str, valid_names: Collection[str]) -> None:
        super().__init__(f"no {subject} is called {name!r}; {did_you_mean(name, valid_names)}")


class InputError(CalderaError):
    """Input is missing, broken or inconsistent."""

    exit_code = 3


class ConversationError(InputError):
    """A conversation record is invalid."""


class AnnotationError(InputError):
    """An annotation file is invalid."""


class ImageError(InputError):
    """An image file cannot be used."""


class ModelFormatError(InputError):
    """A model folder, an adapter or a checkpoint cannot be loaded."""


class OutputError(CalderaError):
    """Output could not be written; earlier content is unchanged."""

    exit_code = 4


class LLMClientError(CalderaError):
    """An LLM server accepts no more requests, or the budget is used up; earlier replies are saved."""

    exit_code = 5


class EvaluationError(CalderaError):
    """Too many items of an evaluation failed for its scores to be valid."""

    exit_code = 6


class TrainingError(CalderaError):
    """Training cannot continue."""

    exit_code = 7


class ParityError(CalderaError):
    """Another implementation, or an exported model, gives other results than caldera."""

    exit_code = 8


class Interrupted(CalderaError):  # noqa: N818 - stopping is no error
    """A signal ended the work at a point where everything was saved; the message lists what was kept."""

    exit_code = 128
    """Added to the number of the signal."""

    def __init__(self, saved: str, signal_number: int) -> None:
        super().__init__(saved)
        self.signal_number = signal_number
        self.exit_code += signal_number


class EngineError(CalderaError):
    """The engine cannot finish one answer; other answers are not affected."""

    exit_code = 9


class QueueFullError(EngineError):
    """The queue of waiting requests is full."""


class OutOfMemoryError(EngineError):
    """There is not enough memory to continue an answer."""


def nearest_name(name: str, valid_names: Collection[str]) -> str | None:
    """Return the valid name that is nearest to a mistyped one; None if none is near."""
    return next(iter(difflib.get_close_matches(name, valid_names, n=1)), None)


def did_you_mean(name: str, valid_names: Collection[str]) -> str:
    """Suggest the nearest valid name, or list them all."""
    nearest = nearest_name(name, valid_names)
    return f"did you mean {nearest!r}?" if nearest else f"known: {', '.join(sorted(valid_names))}"


def describe_validation_error(error: "ValidationError", root: str = "file") -> str:
    """Describe the first error of a failed pydantic validation in one line: `field.path: reason, got value`."""
    first = error.errors(include_url=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    text = f"{validation_error_field(error) or root}: {reason[:1].lower()}{reason[1:]}"
    if first["type"] in ("missing", "value_error", "json_invalid") or not first["loc"]:
        return text
    return f"{text}, got {shorten_value(first['input'])}"


def validation_error_field(error: "ValidationError") -> str:
    """Return the dotted path of the first invalid field, without union alternatives; empty for the input itself."""
    location = error.errors(include_url=False)[0]["loc"]
    return ".".join(str(step) for step in location if not _UNION_BRANCH.match(str(step)))


def shorten_value(value: object) -> str:
    """Return the representation of a value, truncated for a message."""
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[: _MAX_VALUE_LENGTH - 3]}..."


def check_ranges(settings: object, intervals: Mapping[str, str], subject: str = "") -> None:
    """Raise one UsageError that names every setting outside its interval.

    Args:
        settings: A dataclass, usually from its `__post_init__`.
        intervals: By field name, in mathematical notation: "[0, 1)", "[1, inf)" or "(0, inf]" to allow infinity.
            A field that is None is not checked.
        subject: Name of the group of settings, put before the message.
    """
    if errors := "; ".join(range_errors(settings, intervals)):
        raise UsageError(f"{subject}: {errors}" if subject else errors)


def range_errors(settings: object, intervals: Mapping[str, str]) -> Iterator[str]:
    """Yield one message for each setting outside its interval; see `check_ranges`."""
    for name, interval in intervals.items():
        value = getattr(settings, name)
        low, high = (float(bound) for bound in interval[1:-1].split(","))
        is_number = isinstance(value, int | float)
        inside = value is None or (
            is_number
            and (value > low or (value == low and interval[0] == "["))
            and (value < high or (value == high and interval[-1] == "]"))
        )
        if not inside:
            text = value if is_number else shorten_value(value)
            yield f"{name} is {text}; it must {_describe_interval(interval)}"


def _describe_interval(interval: str) -> str:
    low, high = interval[1:-1].replace(" ", "").split(",")
    if high != "inf":
        return f"lie in {interval}"
    finite = " and finite" if interval[-1] == ")" else ""
    return f"be {'at least' if interval[0] == '[' else 'over'} {low}{finite}"
