"""Batches ahead, thread or processes.

`ahead` knows nothing of images or rows: an item of the plan is whatever the maker takes, and what the maker returns
is handed on. A thread makes the next ones in the background. With worker processes they make them and the thread
fetches them, each worker's in turn; so the order, and every bit, is the same whatever their number:

    plan -> worker 0: items 0, 2, 4 ... -+
         -> worker 1: items 1, 3, 5 ... -+-> thread, in order -> what is ready -> the step

Workers are forks of this process: they have the plan and the maker without being sent them, and start in milliseconds.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from caldera.errors import InputError, TrainingError

Item = TypeVar("Item")
Made = TypeVar("Made")

_FORK = multiprocessing.get_context("fork")


class PrefetchWorker(Generic[Made]):
    """A process that makes one share of a plan's items, each while the last one waits to be fetched."""

    def __init__(
        self, plan: Iterable[Item], make: Callable[[Item], Made], number: int, count: int
    ) -> None:
        """Start worker `number` of `count`."""
        self._pipe, child_pipe = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(
            target=_worker_loop,
            args=(child_pipe, islice(plan, number, None, count), make),
            daemon=True,
        )
        self._process.start()
        child_pipe.close()
        self.label = f"loading worker {number} (process {self._process.pid})"
        """What messages call it."""

    def fetch(self, name: str) -> Made:
        """Return the next that it makes, waiting for it.

        Args:
            name: What messages call it.

        Raises:
            InputError: Something that it needs cannot be used.
            TrainingError: The process has ended.
        """
        try:
            payload = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):  # the latter in the middle of a message
            self._process.join()
            raise TrainingError(f"{self.label} {self._exit_reason()} at {name}") from None
        if isinstance(payload, InputError):
            raise payload
        return payload

    def _exit_reason(self) -> str:
        """Say how the process ended."""
        code = self._process.exitcode
        if code is not None and code < 0:
            return (
                f"was ended by signal {-code} ({signal.strsignal(-code)}; if memory ran out take fewer --workers, then "
                "run again with --resume)"
            )
        return f"ended with exit code {code}, for the reason printed above,"

    def stop(self) -> None:
        """End the process at once; it holds nothing that could be lost."""
        self._process.kill()

    def close(self) -> None:
        """Clear away what is left of a process that was stopped."""
        self._process.join()
        self._process.close()
        self._pipe.close()


def _worker_loop(pipe: Connection, items: Iterable[Item], make: Callable[[Item], Made]) -> None:
    """Make items until there are no more, or nobody to take them."""
    _detach_from_parent(pipe.fileno())
    with suppress(BrokenPipeError):  # the other end is gone: the run has ended
        for item in items:
            try:
                made: Made | InputError = make(item)
            except InputError as fault:
                made = fault
            payload = BytesIO()
            _Pickler(payload, protocol=5).dump(made)
            pipe.send_bytes(payload.getbuffer())


def _detach_from_parent(pipe: int) -> None:
    """Let go of what a fork shares with the process that it came from.

    Open files go, as the run's lock would outlive a killed run by one of them, and so would the other workers' pipes.
    Ctrl-C is the first process's to handle; a terminal sends it to all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout, sys.stderr = (
        sys.__stdout__,
        sys.__stderr__,
    )  # a progress bar may stand in their place
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    torch.set_num_threads(1)


class _Pickler(pickle.Pickler):
    """Writes tensors as plain arrays, several times faster than they would write themselves."""

    def reducer_override(self, value: object) -> Any:  # noqa: ANN401 - as pickle has it
        """Return how a tensor is made again."""
        if not isinstance(value, Tensor):
            return NotImplemented
        flat = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        return _as_tensor, (flat, value.dtype, value.shape)


def _as_tensor(flat: np.ndarray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Return a tensor from its bytes."""
    return torch.from_numpy(flat).view(dtype).reshape(shape)


Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefetchConfig:
    """How far ahead, and by whom, batches are made."""

    workers: int = 0
    """Processes that make them, for what keeps a core busy, such as decoding images; with none, the thread does."""

    depth: int = 2
    """Batches that the thread has ready or in hand; each worker holds one or two more."""

    timeout: float = 600
    """Seconds that the step waits for a batch before that is an error."""


class Prefetcher(Generic[Item, Result]):
    """Iterates over the items of a plan, each with what was made of it."""

    def __init__(
        self,
        plan: Iterable[Item],
        make: Callable[[Item], Result],
        *,
        loading: PrefetchConfig,
        name: Callable[[Item], str],
    ) -> None:
        """Start to make what the plan says; see `ahead`."""
        self.waited = 0.0
        """Seconds that the one who iterates has waited so far."""
        self._asked = self._got = time.monotonic()
        """When the last one was asked for, and when it was there."""
        self._loading = loading
        self._name = name
        self._make = make
        self._in_flight: tuple[int, Item] | None = None
        """What the thread makes or fetches just now."""
        self._closed = False
        self._stuck = False
        self._capacity = threading.Semaphore(loading.depth)
        self._ready: SimpleQueue[tuple[Item, Result] | BaseException | None] = SimpleQueue()
        count = loading.workers
        self._workers = [PrefetchWorker(plan, make, number, count) for number in range(count)]
        self._thread = threading.Thread(
            target=self._produce, args=(plan,), name="loading", daemon=True
        )
        self._thread.start()

    def _produce(self, plan: Iterable[Item]) -> None:
        """Make or fetch one after another; whatever goes wrong is raised where it would have been taken."""
        try:
            for number, item in enumerate(plan):
                self._capacity.acquire()
                if self._closed:
                    return
                self._in_flight = number, item
                self._ready.put((item, self._make_one(number, item)))
            self._ready.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by __next__
            self._ready.put(error)

    def _make_one(self, number: int, item: Item) -> Result:
        """Return what is made of one item.

        Raises:
            InputError: Something it needs cannot be used; the message names the item.
            TrainingError: The worker that made it has ended.
        """
        try:
            if self._workers:
                return self._workers[number % len(self._workers)].fetch(self._name(item))
            return self._make(item)
        except InputError as fault:
            raise type(fault)(f"{self._name(item)}: {fault}") from fault

    def __iter__(self) -> Self:
        """Return itself: a plan is gone through once."""
        return self

    def __next__(self) -> tuple[Item, Result]:
        """Return the next item and what was made of it, waiting for it if need be.

        Raises:
            CalderaError: It could not be made, or not in time.
        """
        self._asked = time.monotonic()
        try:
            found = self._ready.get(timeout=self._loading.timeout)
        except Empty:
            self._stuck = True
            raise TrainingError(self._timeout_message()) from None
        self._got = time.monotonic()
        self.waited += self._got - self._asked
        if found is None:
            raise StopIteration
        if isinstance(found, BaseException):
            raise found
        self._capacity.release()
        return found

    def wait_fraction(self) -> float:
        """Return which share of the time since the last one was asked for was spent waiting for it, 0 to 1."""
        return (self._got - self._asked) / max(time.monotonic() - self._asked, 1e-9)

    def _timeout_message(self) -> str:
        """Say who has not made what in time."""
        seconds = f"{self._loading.timeout:g} s"
        if self._in_flight is None:
            return f"the plan of batches has not begun after {seconds}; run again with --resume"
        number, item = self._in_flight
        who = self._workers[number % len(self._workers)].label if self._workers else "loading"
        return (
            f"{who} has not finished {self._name(item)} after {seconds}; see whether the disk of their images "
            "answers, then run again with --resume"
        )

    def close(self) -> None:
        """End workers and thread, whatever they are at."""
        self._closed = True
        for worker in self._workers:
            worker.stop()
        self._capacity.release()
        if (
            self._workers or not self._stuck
        ):  # a thread that is stuck cannot be ended; it ends with the process
            self._thread.join()
        for worker in self._workers:
            worker.close()


@contextmanager
def prefetch(
    plan: Iterable[Item],
    make: Callable[[Item], Result],
    *,
    loading: PrefetchConfig,
    name: Callable[[Item], str],
) -> Iterator[Prefetcher[Item, Result]]:
    """Make what a plan says ahead of the one who takes it; nothing of it is left behind when the block ends.

    Args:
        plan: What to make, in order; the same at every iteration, as each worker goes through it, too.
        make: Makes one item; draws nothing at random.
        loading: By whom.
        name: What messages call an item, such as its records' ids.
    """
    loader = Prefetcher(plan, make, loading=loading, name=name)
    try:
        yield loader
    finally:
        loader.close()
