"""Requests to the engine, and the streams of their answers."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from caldera.errors import CalderaError
from caldera.inference.prompts import Prompt
from caldera.inference.sampling import SamplingParams

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Request:
    """Request for one answer; several answers to one prompt are several requests, which share its prefix."""

    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one token, before temperature, top-p and top-k."""

    token: int

    text: str
    """The token decoded alone; incomplete UTF-8 becomes U+FFFD."""

    logprob: float
    """In nats."""

    top_logprobs: tuple[tuple[int, str, float], ...] = ()
    """Most likely tokens at this position: id, text, log probability."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Next piece of an answer."""

    text: str
    tokens: tuple[int, ...]
    """Tokens of the text, without those of a stop text."""

    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, if requested."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int

    cached_tokens: int = 0
    """Prompt tokens whose keys and values came from the prefix cache."""

    completion_tokens: int = 0
    """Tokens of the answer, including its end token."""


class AnswerStream:
    """Stream of an answer while it is generated, for one reader: iterate, by `for` or `async for`, or call `drain`."""

    def __init__(self, request: Request) -> None:
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
        """Yield pieces as they arrive, until the answer ends."""
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

    async def __aiter__(self) -> AsyncIterator[TextDelta]:
        """Yield pieces as they arrive, without blocking the event loop."""
        loop, updated = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            # RuntimeError: the loop is closed, so that no reader is left.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(updated.set)

        self.on_update(notify)
        ended = False
        while not ended:
            await updated.wait()
            updated.clear()
            # Read before the pieces are drained, or the last ones could be missed.
            ended = self.ended
            for piece in self.drain():
                yield piece
        if self._error is not None:
            raise self._error

    def read_all(self) -> str:
        """Wait for the rest of the answer and return it.

        Raises:
            CalderaError: This request failed.
        """
        return "".join(piece.text for piece in self)

    def wait(self) -> None:
        """Wait for the end of the answer, without reading it."""
        with self._changed:
            while not self._ended:
                self._changed.wait()

    def drain(self) -> list[TextDelta]:
        """Return the pieces that arrived since the last read, without waiting."""
        with self._changed:
            pieces = list(self._pieces)
            self._pieces.clear()
        return pieces

    def on_update(self, listener: Callable[[], object]) -> None:
        """Call `listener` now, and on the engine's thread after each piece and at the end."""
        with self._changed:
            self._listener = listener
        listener()

    def cancel(self) -> None:
        """Request the end of the answer; pieces that arrived can still be read."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """True once `cancel` was called."""
        return self._cancelled

    @property
    def ended(self) -> bool:
        """True if no more pieces will arrive."""
        return self._ended

    @property
    def error(self) -> CalderaError | None:
        """The error that ended the answer."""
        return self._error

    @property
    def finish_reason(self) -> FinishReason | None:
        """Reason of the end; None before it, and after an error."""
        return self._finish_reason

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return self._usage

    def push(self, piece: TextDelta, usage: Usage) -> None:
        """Add a piece; called by the engine."""
        with self._changed:
            self._usage = usage
            self._pieces.append(piece)
        self._wake()

    def finish(self, outcome: FinishReason | CalderaError, usage: Usage | None = None) -> None:
        """End the stream; called by the engine."""
        with self._changed:
            if self._ended:
                return
            self._usage = usage or self._usage
            if isinstance(outcome, CalderaError):
                self._error = outcome
            else:
                self._finish_reason = outcome
            self._ended = True
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
            listener = self._listener
        if listener is not None:
            listener()
