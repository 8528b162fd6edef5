"""Prefetching of batches in a background thread or in worker processes.

`prefetch` does not depend on the kind of data: it calls `make` on each item of the plan and passes the result on. A
background thread makes the next results. With worker processes, the workers call `make` and the thread collects their
results in turn, so order and values are the same for any number of workers:

    plan -> worker 0: items 0, 2, 4 ... -+
         -> worker 1: items 1, 3, 5 ... -+-> thread, in order -> queue -> training step

Workers are forks of this process: they inherit the plan and `make`, and start in milliseconds.
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
from caldera.interruption import SIGNALS

Item = TypeVar("Item")
Result = TypeVar("Result")

_FORK = multiprocessing.get_context("fork")


class PrefetchWorker(Generic[Result]):
    """Process that makes every n-th result of a plan and sends it back."""

    def __init__(
        self, plan: Iterable[Item], make: Callable[[Item], Result], number: int, count: int
    ) -> None:
        """Start worker `number` of `count`."""
        self._pipe, child_pipe = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(
            target=_worker_loop,
            args=(child_pipe, islice(plan, number, None, count), make),
            daemon=True,
        )
        # Until the worker ignores them, its handlers of signals are those of its parent.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        child_pipe.close()
        self.label = f"loading worker {number} (process {self._process.pid})"
        """Name of the worker in messages."""

    def fetch(self, name: str) -> Result:
        """Return the worker's next result; blocks until it is there.

        Args:
            name: Name of its item in messages.

        Raises:
            InputError: An input of the item cannot be used.
            TrainingError: The process has ended.
        """
        try:
            payload = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            # OSError: the process ended in the middle of a message.
            self._process.join()
            raise TrainingError(f"{self.label} {self._exit_reason()} at {name}") from None
        if isinstance(payload, InputError | MemoryError):
            raise payload
        return payload

    def _exit_reason(self) -> str:
        """Describe how the process ended."""
        code = self._process.exitcode
        if code is not None and code < 0:
            return (
                f"was ended by signal {-code} ({signal.strsignal(-code)}; if memory ran out use fewer --workers, then "
                "run again with --resume)"
            )
        return f"ended with exit code {code}, for the reason printed above,"

    def stop(self) -> None:
        """Kill the process; it holds nothing that could be lost."""
        self._process.kill()

    def close(self) -> None:
        """Wait for a stopped process and release its resources."""
        self._process.join()
        self._process.close()
        self._pipe.close()


def _worker_loop(pipe: Connection, items: Iterable[Item], make: Callable[[Item], Result]) -> None:
    """Make and send results until there are no more items, or the receiver has closed the pipe."""
    _detach_from_parent(pipe.fileno())
    with suppress(BrokenPipeError):
        for item in items:
            try:
                result: Result | Exception = make(item)
            except (InputError, MemoryError) as error:
                result = error
            payload = BytesIO()
            _Pickler(payload, protocol=5).dump(result)
            pipe.send_bytes(payload.getbuffer())


def _detach_from_parent(pipe: int) -> None:
    """Release what a fork shares with its parent process.

    Open files are closed: by one of them the run's lock would outlive a killed run, as would the pipes of the other
    workers. Signals that stop a run are handled by the parent alone, although terminals and schedulers send them to all
    of its processes: it kills the workers when it needs no more results.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # A progress bar may have replaced them.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    torch.set_num_threads(1)


class _Pickler(pickle.Pickler):
    """Pickler that writes tensors as plain arrays, several times faster than their own pickling."""

    def reducer_override(self, value: object) -> Any:  # noqa: ANN401 - pickle's signature
        """Return how to rebuild a tensor; leave other objects to pickle."""
        if not isinstance(value, Tensor):
            return NotImplemented
        flat = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        return _as_tensor, (flat, value.dtype, value.shape)


def _as_tensor(flat: np.ndarray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Return a tensor from its bytes."""
    return torch.from_numpy(flat).view(dtype).reshape(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefetchConfig:
    """Number of workers and of prefetched batches."""

    workers: int = 0
    """Processes that make batches, for work that keeps a core busy, such as decoding images; with 0 the thread does."""

    depth: int = 2
    """Batches that the thread has ready or in progress; each worker holds one or two more."""

    timeout: float = 600
    """Seconds that the training step waits for a batch before it raises an error."""


class Prefetcher(Generic[Item, Result]):
    """Iterator over the items of a plan and their results."""

    def __init__(
        self,
        plan: Iterable[Item],
        make: Callable[[Item], Result],
        *,
        config: PrefetchConfig,
        name: Callable[[Item], str],
    ) -> None:
        """Start to make the results of the plan; see `prefetch`."""
        self.waited = 0.0
        """Seconds that the consumer has waited in total."""
        self._requested = self._received = time.monotonic()
        """Times at which the last result was requested and received."""
        self._config = config
        self._name = name
        self._make = make
        self._in_flight: tuple[int, Item] | None = None
        """Number and item that the thread makes or fetches at the moment."""
        self._closed = False
        self._timed_out = False
        self._capacity = threading.Semaphore(config.depth)
        self._ready: SimpleQueue[tuple[Item, Result] | BaseException | None] = SimpleQueue()
        count = config.workers
        self._workers = [PrefetchWorker(plan, make, number, count) for number in range(count)]
        self._thread = threading.Thread(
            target=self._produce, args=(plan,), name="loading", daemon=True
        )
        self._thread.start()

    def _produce(self, plan: Iterable[Item]) -> None:
        """Make or fetch one result after another; pass errors on to the consumer."""
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
        """Return the result of one item; the message of an InputError names it."""
        try:
            if self._workers:
                return self._workers[number % len(self._workers)].fetch(self._name(item))
            return self._make(item)
        except InputError as error:
            raise type(error)(f"{self._name(item)}: {error}") from error
        except MemoryError as error:
            raise TrainingError(
                f"out of memory while loading {self._name(item)}; use fewer --workers or a smaller batch_size"
            ) from error

    def __iter__(self) -> Self:
        """Return itself: a plan is iterated over once."""
        return self

    def __next__(self) -> tuple[Item, Result]:
        """Return the next item and its result; blocks until it is there."""
        self._requested = time.monotonic()
        try:
            entry = self._ready.get(timeout=self._config.timeout)
        except Empty:
            self._timed_out = True
            raise TrainingError(self._timeout_message()) from None
        self._received = time.monotonic()
        self.waited += self._received - self._requested
        if entry is None:
            raise StopIteration
        if isinstance(entry, BaseException):
            raise entry
        self._capacity.release()
        return entry

    def wait_fraction(self) -> float:
        """Return the fraction of the time since the last request that was spent waiting for it, 0 to 1."""
        waited = self._received - self._requested
        return waited / max(time.monotonic() - self._requested, 1e-9)

    def _timeout_message(self) -> str:
        """Describe which result was not ready in time."""
        seconds = f"{self._config.timeout:g} s"
        if self._in_flight is None:
            return f"no batch was started within {seconds}; run again with --resume"
        number, item = self._in_flight
        label = self._workers[number % len(self._workers)].label if self._workers else "loading"
        return (
            f"{label} has not finished {self._name(item)} after {seconds}; check that the disk of the images "
            "responds, then run again with --resume"
        )

    def close(self) -> None:
        """Stop workers and thread, whatever they are doing."""
        self._closed = True
        for worker in self._workers:
            worker.stop()
        self._capacity.release()
        # A thread that timed out cannot be stopped; it ends with the process.
        if self._workers or not self._timed_out:
            self._thread.join()
        for worker in self._workers:
            worker.close()


@contextmanager
def prefetch(
    plan: Iterable[Item],
    make: Callable[[Item], Result],
    *,
    config: PrefetchConfig,
    name: Callable[[Item], str],
) -> Iterator[Prefetcher[Item, Result]]:
    """Make the results of a plan in the background; all threads and processes end with the block.

    Args:
        plan: Items in order; the same at every iteration, as each worker iterates over it, too.
        make: Returns the result of an item; uses no random numbers.
        config: Number of workers and of results made in advance.
        name: Returns the name of an item in messages, such as the ids of its records.
    """
    prefetcher = Prefetcher(plan, make, config=config, name=name)
    try:
        yield prefetcher
    finally:
        prefetcher.close()
