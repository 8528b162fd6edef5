"""A plan in, every so-manieth item of it made in a process of its own, and fetched from there."""

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BytesIO
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

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
