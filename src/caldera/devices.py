"""Device, dtype, runtime; CPU feature tests."""

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
"""glibc's numbers for two settings of `mallopt`."""

_PAGE_OUT = 21
"""Linux's number for an advice to `madvise`: these pages are not needed soon."""


def has_fast_bf16() -> bool:
    """Tell whether the processor multiplies bf16 in hardware; elsewhere bf16 is a hundred times slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fastest_dtype() -> torch.dtype:
    """Return the precision that matrix products are fastest in."""
    return torch.bfloat16 if has_fast_bf16() else torch.float32


def fastest_attention(dtype: torch.dtype) -> str:
    """Return the attention function to ask transformers for when training on this processor.

    At a few hundred tokens plain matrix products beat torch's fused attention in bf16; in fp32 the fused one wins.
    """
    return "eager" if dtype == torch.bfloat16 else "sdpa"


def release_file_pages(memory: torch.Tensor) -> None:
    """Have Linux drop the pages of a file under a tensor from memory; when they are used again, they are read again.

    What no file holds stays where it is. Elsewhere than on Linux it does nothing.
    """
    if not sys.platform.startswith("linux") or memory.device.type != "cpu":
        return
    first = -(-memory.data_ptr() // PAGESIZE) * PAGESIZE
    last = (memory.data_ptr() + memory.nbytes) // PAGESIZE * PAGESIZE
    if last > first:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _PAGE_OUT)


def tune_malloc() -> None:
    """Have glibc keep large blocks that are freed, instead of handing them back to the system each time.

    Without it every large tensor of every step is paged in anew. Elsewhere than on Linux with glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


DtypeName = Literal["auto", "float32", "bfloat16"]

_MOST_WORKERS = 8
"""More processes than this have not been seen to be needed to decode for one model."""


def default_decode_workers() -> int:
    """Return how many processes decode images ahead of training: as many as there are cores, but for one.

    On a single core, and where processes cannot be forked safely, there are none: a thread does it.
    """
    if not sys.platform.startswith("linux"):
        return 0
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)) - 1)


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A device and the precision of its matrix products; weights stay in the precision they are held in."""

    device: torch.device
    dtype: torch.dtype

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run matrix products of the block in `dtype`."""
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=enabled):
            yield

    @contextmanager
    def fork_rng(self, *numbers: int) -> Iterator[None]:
        """Draw what the block draws, such as dropout, from a seed made of `numbers`; outside nothing changes."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(random.Random(repr(numbers)).getrandbits(63))
            yield

    @property
    def attention(self) -> str:
        """The attention function to ask transformers for; on GPUs the fused one (untested here)."""
        return fastest_attention(self.dtype) if self.device.type == "cpu" else "sdpa"


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a job works with: where it computes, who follows it, and who decodes for it."""

    compute: DeviceConfig
    progress: Progress
    workers: int = field(default_factory=default_decode_workers)
    """Processes that decode images ahead of training, where features are not kept."""


def choose_device(device: str = "auto", dtype: DtypeName = "auto") -> DeviceConfig:
    """Choose the best device there is, and bf16 where it is faster than fp32.

    Args:
        device: A torch device, or "auto" for CUDA if there is any, else the CPU.
        dtype: A precision, or "auto".

    Raises:
        UsageError: There is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {device!r} cannot be used: {str(error).splitlines()[0]}"
        ) from None
    if dtype == "auto":
        if chosen.type == "cpu":
            return DeviceConfig(chosen, fastest_dtype())
        return DeviceConfig(
            chosen, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        )
    return DeviceConfig(chosen, {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype])
