"""What is asked of the engine, and what is heard from it: requests, pieces of answers, and how an answer ended."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from caldera.errors import CalderaError
from caldera.inference.prompts import Prompt
from caldera.inference.sampling import SamplingParams

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is wanted; several of one prompt are several requests, which share what was computed for it."""

    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and how likely it was, before temperature, top-p and top-k."""

    token: int

    text: str
    """Its spelling alone; half a character spells as U+FFFD."""

    logprob: float
    """Logarithm of its probability, in nats."""

    top_logprobs: tuple[tuple[int, str, float], ...] = ()
    """Likeliest tokens at its place: id, spelling, logarithm."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Some more of an answer."""

    text: str
    tokens: tuple[int, ...]
    """The tokens that the text is made of, without those of a stop."""

    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of the tokens, where they were asked for."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int

    cached_tokens: int = 0
    """Tokens of the prompt that were not computed again."""

    completion_tokens: int = 0
    """Tokens of the answer, its end mark among them."""


class AnswerStream:
    """An answer that is being written. It is read by one reader: by iterating, which waits, or by `ready`."""

    def __init__(self, request: Request) -> None:
        """Await the answer to `request`."""
        self.request = request
        self._changed = threading.Condition()
        self._pieces: deque[TextDelta] = deque()
        self._listener: Callable[[], object] | None = None
        self._error: CalderaError | None = None
        self._finish_reason: FinishReason | None = None
        self._usage = Usage(len(request.prompt.ids))
        self._cancelled = False
        self._ended = False

    def __iter__(self) -> Iterator[TextDelta]:
        """Yield pieces as they come, until the answer ends.

        Raises:
            CalderaError: This answer failed.
        """
        while True:
            with self._changed:
                while not self._pieces and not self._ended:
                    self._changed.wait()
                piece = self._pieces.popleft() if self._pieces else None
            if piece is None:
                if self._error is not None:
                    raise self._error
                return
            yield piece

    def read_all(self) -> str:
        """Wait for the rest of the answer and return it.

        Raises:
            CalderaError: This answer failed.
        """
        return "".join(piece.text for piece in self)

    def drain(self) -> list[TextDelta]:
        """Return the pieces that came since they were last read, without waiting."""
        with self._changed:
            pieces = list(self._pieces)
            self._pieces.clear()
        return pieces

    def on_update(self, listener: Callable[[], object]) -> None:
        """Call `listener`, on the engine's thread and at once, whenever a piece came or the answer ended."""
        with self._changed:
            self._listener = listener
        listener()

    def cancel(self) -> None:
        """Ask for the answer to end where it is; nothing more is said after the pieces that came."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether its end was asked for."""
        return self._cancelled

    @property
    def ended(self) -> bool:
        """Whether no more will come than `ready` or iterating still gives."""
        return self._ended

    @property
    def error(self) -> CalderaError | None:
        """What ended it before its time."""
        return self._error

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None before, and where it failed."""
        return self._finish_reason

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return self._usage

    def push(self, piece: TextDelta, usage: Usage) -> None:
        """Give the reader a piece; for the engine."""
        with self._changed:
            self._usage = usage
            self._pieces.append(piece)
        self._wake()

    def finish(self, how: FinishReason | CalderaError, usage: Usage | None = None) -> None:
        """Tell the reader that nothing more comes, and why; for the engine."""
        with self._changed:
            if self._ended:
                return
            self._usage = usage or self._usage
            if isinstance(how, CalderaError):
                self._error = how
            else:
                self._finish_reason = how
            self._ended = True
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
            listener = self._listener
        if listener is not None:
            listener()
