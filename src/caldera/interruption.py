"""Requests to stop a command: the first signal ends it after its current piece of work, the second at once."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Never

from caldera.errors import Interrupted

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, `kill` and cluster schedulers, a closed terminal, and the early warning of some schedulers."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or a similar signal arrived where the work cannot be finished first."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class StopRequest:
    """Records the first signal, so that the work can end at a point where everything is saved."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """Number of the signal that arrived; None as long as none did."""
        self.former: dict[int, Any] = {}
        """Handlers of signals before this one, which end the work at the second signal."""

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        """Handle a signal: record the first, end at once at the second."""
        if self.signal is not None:
            former = self.former.get(signal_number)
            if callable(former):
                former(signal_number, frame)
            stop_at_once(signal_number)
        self.signal = signal_number
        log.warning(
            "%s received: finishing the current step; a second one stops at once",
            signal.Signals(signal_number).name,
        )

    def raise_if_requested(self, saved: str) -> None:
        """Raise Interrupted if a signal arrived; `saved` is its message: what was kept, and how to resume."""
        if self.signal is not None:
            raise Interrupted(saved, self.signal)


def stop_at_once(signal_number: int, _: FrameType | None = None) -> Never:
    """Raise KeyboardInterrupt, or Terminated for another signal than Ctrl-C; the next signal kills the process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt if signal_number == signal.SIGINT else Terminated(signal_number)


def signal_of(interrupt: Interrupted | KeyboardInterrupt) -> int:
    """Return the number of the signal that ended the work."""
    if isinstance(interrupt, Interrupted | Terminated):
        return interrupt.signal_number
    return signal.SIGINT


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Yield the request that signals set inside the block; nested blocks share it.

    The block calls `raise_if_requested` where everything is saved. Outside the main thread, which alone receives
    signals, the request is never set.
    """
    current = signal.getsignal(signal.SIGINT)
    if isinstance(current, StopRequest):
        yield current
        return
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # nohup ignores SIGHUP, and that is kept.
    handled = [
        number
        for number in SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    request.former = {number: signal.getsignal(number) for number in handled}
    for number in handled:
        signal.signal(number, request)
    try:
        yield request
    finally:
        for number in handled:
            signal.signal(number, request.former[number])
