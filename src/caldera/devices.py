"""Devices and their precision, the runtime of a job, and CPU features."""

import ctypes
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import PAGESIZE
from typing import Literal

import torch

from caldera.errors import UsageError
from caldera.progress import Progress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of two `mallopt` settings."""

_PAGE_OUT = 21
"""Linux's number for the advice to `madvise` that pages are not needed soon."""


def has_fast_bf16() -> bool:
    """Return whether the CPU multiplies bf16 in hardware; without, bf16 is a hundred times slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fastest_dtype() -> torch.dtype:
    """Return the precision with the fastest matrix products on this CPU."""
    return torch.bfloat16 if has_fast_bf16() else torch.float32


def fastest_attention(dtype: torch.dtype) -> str:
    """Return the name of transformers' fastest attention function for training on this CPU.

    At a few hundred tokens plain matrix products are faster than torch's fused attention in bf16, and slower in fp32.
    """
    return "eager" if dtype == torch.bfloat16 else "sdpa"


def release_file_pages(memory: torch.Tensor) -> None:
    """Release the memory of a memory-mapped tensor; its pages are read from the file again when they are used.

    Memory that is not backed by a file stays. Does nothing on systems other than Linux.
    """
    if not sys.platform.startswith("linux") or memory.device.type != "cpu":
        return
    first = -(-memory.data_ptr() // PAGESIZE) * PAGESIZE
    last = (memory.data_ptr() + memory.nbytes) // PAGESIZE * PAGESIZE
    if last > first:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _PAGE_OUT)


def tune_malloc() -> None:
    """Configure glibc to reuse large freed blocks instead of returning them to the system.

    Without it every large tensor of every step is paged in again. Does nothing on systems without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, in Python, in torch on a CPU, or on a GPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(
        error
    )


DtypeName = Literal["auto", "float32", "bfloat16"]

_MAX_WORKERS = 8
"""More decoding processes did not speed up the training of one model."""


def default_decode_workers() -> int:
    """Return the number of processes that decode images ahead of training: the number of cores minus one.

    It is 0 on a single core, and where processes cannot be forked safely: a thread decodes.
    """
    if not sys.platform.startswith("linux"):
        return 0
    return min(_MAX_WORKERS, len(os.sched_getaffinity(0)) - 1)


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A device and the precision of its matrix products; the precision of the weights does not change."""

    device: torch.device
    dtype: torch.dtype

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the matrix products of the block in `dtype`."""
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=enabled):
            yield

    @contextmanager
    def fork_rng(self, *numbers: int) -> Iterator[None]:
        """Seed the random numbers of the block, such as dropout, with `numbers`, and restore the generator after it."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(random.Random(repr(numbers)).getrandbits(63))
            yield

    @property
    def attention(self) -> str:
        """The name of transformers' attention function; on GPUs the fused one (not measured)."""
        return fastest_attention(self.dtype) if self.device.type == "cpu" else "sdpa"


@dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime of a job: device, progress reporting, and number of decoding workers."""

    compute: DeviceConfig
    progress: Progress
    workers: int = field(default_factory=default_decode_workers)
    """Processes that decode images ahead of training; not used with cached features."""


def choose_device(device: str = "auto", dtype: DtypeName = "auto") -> DeviceConfig:
    """Return the best available device, with bf16 where it is faster than fp32."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch_device = torch.device(device)
        torch.empty(1, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {device!r} cannot be used: {str(error).splitlines()[0]}"
        ) from None
    if dtype == "float32" or dtype == "bfloat16":
        return DeviceConfig(torch_device, getattr(torch, dtype))
    if torch_device.type == "cpu":
        return DeviceConfig(torch_device, fastest_dtype())
    has_bf16 = torch.cuda.is_bf16_supported()
    return DeviceConfig(torch_device, torch.bfloat16 if has_bf16 else torch.float32)
