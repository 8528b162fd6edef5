"""Tests of stop requests: real signals to this process."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from caldera.errors import Interrupted
from caldera.interruption import StopRequest, Terminated, deferred_signals


def send(number: signal.Signals) -> None:
    """Send a signal to this process and wait until Python has handled it."""
    os.kill(os.getpid(), number)
    for _ in range(1000):
        pass


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_the_first_signal_waits_for_a_safe_point(number: str) -> None:
    """Work continues after the signal, and ends where it is saved with 128 + the signal's number."""
    former = signal.getsignal(signal.Signals[number])
    with deferred_signals() as request:
        request.raise_if_requested("nothing arrived yet")
        send(signal.Signals[number])
        with pytest.raises(Interrupted, match=r"^step 1 is saved$") as caught:
            request.raise_if_requested("step 1 is saved")
    assert caught.value.exit_code == 128 + signal.Signals[number]
    assert signal.getsignal(signal.Signals[number]) is former


@pytest.mark.parametrize(
    ("number", "expected"), [("SIGINT", KeyboardInterrupt), ("SIGTERM", Terminated)]
)
def test_a_second_signal_ends_at_once(number: str, expected: type[KeyboardInterrupt]) -> None:
    """Whatever the first was."""
    with deferred_signals():
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) as caught:
            send(signal.Signals[number])
    assert type(caught.value) is expected


def test_nested_blocks_share_the_request() -> None:
    """A signal inside the inner block is known to the outer one."""
    with deferred_signals() as outer:
        with deferred_signals() as inner:
            send(signal.SIGTERM)
        assert inner is outer
        assert outer.signal == signal.SIGTERM


def test_another_thread_neither_handles_nor_blocks_signals() -> None:
    """Its request is never set, and the handlers stay as they are."""
    former, requests = signal.getsignal(signal.SIGTERM), list[StopRequest]()

    def work() -> None:
        with deferred_signals() as request:
            assert signal.getsignal(signal.SIGTERM) is former
            requests.append(request)

    run_in_thread(work)
    assert [request.signal for request in requests] == [None]


def run_in_thread(work: Callable[[], None]) -> None:
    """Run a function in a thread and wait for it."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_nohup_is_respected() -> None:
    """A SIGHUP that the shell ignores stays ignored."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred_signals() as request:
            send(signal.SIGHUP)
            assert request.signal is None
    finally:
        signal.signal(signal.SIGHUP, former)
