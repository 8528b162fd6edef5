"""What goes wrong on purpose: one tree of errors, and the exit code each ends a command with.

```
CalderaError                1
├── UsageError              2   the command or a setting is wrong
│   └── UnknownNameError    2   a name no table holds
├── InputError              3   something given to read is wrong
│   ├── RecordError         3   a conversation record
│   ├── AnnotationError     3   an annotation file
│   ├── ImageError        3   an image file
│   └── ModelFolderError    3   a model folder or checkpoint
├── OutputError             4   something could not be written
├── TeacherError            5   a teacher's or judge's key, quota or budget ends a run
├── EvaluationError         6   an evaluation whose figures are not valid
├── TrainingError           7   training cannot go on
├── ParityError             8   two implementations of a model differ
└── EngineError             9   an answer that was begun cannot be finished
    ├── BusyError           9   more is asked for than may wait
    └── MemoryShortError    9   there is not enough memory for it
```

A command that ends well exits with 0, one stopped by Ctrl-C with 130.
"""

import difflib
from collections.abc import Collection
from typing import ClassVar


class CalderaError(Exception):
    """Base of everything this package raises on purpose; its text is one line a user can act on."""

    exit_code: ClassVar[int] = 1


class UsageError(CalderaError):
    """The command line, a setting or a combination of them cannot be carried out."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name was looked up that no table holds."""

    def __init__(self, what: str, name: str, known: Collection[str]) -> None:
        super().__init__(f"no {what} is called {name!r}; {did_you_mean(name, known)}")


class InputError(CalderaError):
    """Something that was given to be read is missing, broken or inconsistent."""

    exit_code = 3


class ConversationError(InputError):
    """A conversation record does not say what a record must say."""


class AnnotationError(InputError):
    """An annotation file cannot be understood."""


class ImageError(InputError):
    """An image file cannot be used."""


class ModelFormatError(InputError):
    """A model folder or a checkpoint cannot be loaded."""


class OutputError(CalderaError):
    """Something could not be written; what stood there before still stands."""

    exit_code = 4


class LLMClientError(CalderaError):
    """A teacher takes no more requests, or may not be sent more; what was written so far is kept."""

    exit_code = 5


class EvaluationError(CalderaError):
    """Too many items of an evaluation could not be judged; its figures say nothing."""

    exit_code = 6


class TrainingError(CalderaError):
    """Training met a state it cannot go on from."""

    exit_code = 7


class ParityError(CalderaError):
    """Another implementation, or an exported model, does not give what caldera gives."""

    exit_code = 8


class EngineError(CalderaError):
    """The model could not go on with one answer; others are not touched."""

    exit_code = 9


class QueueFullError(EngineError):
    """As many requests as may wait are waiting."""


class OutOfMemoryError(EngineError):
    """There is not enough memory to go on with one answer."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Suggest the nearest of the `known` names, or list them all."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
