"""Where and in which precision things are computed: the one place that asks what the machine has."""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from caldera.errors import UsageError
from caldera.processor import fastest_attention, fastest_dtype
from caldera.progress import Progress

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
