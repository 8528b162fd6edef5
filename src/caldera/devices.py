"""Devices and their precision, the runtime of a job, and CPU features."""

import ctypes
import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import PAGESIZE
from typing import Literal

import torch

from caldera.errors import UsageError, nearest_name
from caldera.progress import Progress

log = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of two `mallopt` settings."""

_CPU = torch.device("cpu")

_PAGE_OUT = 21
"""Linux's number for the advice to `madvise` that pages are not needed soon."""


def has_fast_bf16() -> bool:
    """Return whether the CPU multiplies bf16 in hardware; without, bf16 is a hundred times slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fastest_dtype(device: torch.device = _CPU) -> torch.dtype:
    """Return the precision with the fastest matrix products on a device.

    It is bf16 where the hardware multiplies it, else fp16 on a GPU and fp32 on a CPU.
    """
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported() is true where bf16 is only emulated, as on T4 and V100.
        has_bf16 = bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "mps":
        has_bf16 = torch.backends.mps.is_macos_or_newer(14, 0)
    else:
        has_bf16 = has_fast_bf16()
    if has_bf16:
        return torch.bfloat16
    return torch.float32 if is_cpu(device) else torch.float16


def fastest_attention(dtype: torch.dtype) -> str:
    """Return the name of transformers' fastest attention function for training on this CPU.

    At a few hundred tokens plain matrix products are faster than torch's fused attention in bf16, and slower in fp32.
    """
    return "eager" if dtype == torch.bfloat16 else "sdpa"


def is_cpu(device: torch.device) -> bool:
    """Return whether a device is the CPU, for which caldera has its own decoder and layouts of weights."""
    return device.type == "cpu"


def has_packed_weights(device: torch.device) -> bool:
    """Return whether oneDNN multiplies by packed weights on a device, as stored or in int8."""
    return is_cpu(device) and torch.backends.mkldnn.is_available()


def has_packed_attention(device: torch.device) -> bool:
    """Return whether attention over packed rows is used on a device: its own on a CPU, FlexAttention on CUDA."""
    return device.type in ("cpu", "cuda")


def has_flex_attention(device: torch.device) -> bool:
    """Return whether FlexAttention has a backward pass on a device."""
    return device.type == "cuda"


def release_file_pages(memory: torch.Tensor) -> None:
    """Release the memory of a memory-mapped tensor; its pages are read from the file again when they are used.

    Memory that is not backed by a file stays. Does nothing on systems other than Linux.
    """
    if not sys.platform.startswith("linux") or not is_cpu(memory.device):
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


DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

FLOAT16_MAX = int(torch.finfo(torch.float16).max)
"""Largest number in fp16; models whose activations are larger need bf16 or fp32."""

_DEVICE_TYPES = ("cpu", "cuda", "mps")
_OTHER_NAMES = dict.fromkeys(("gpu", "nvidia", "rocm", "hip", "amd"), "cuda") | {"metal": "mps"}
"""Names that users give to devices, and those that torch gives them."""


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
        devices = [] if is_cpu(self.device) else [self.device]
        with torch.random.fork_rng(devices, device_type=self.device.type):
            torch.manual_seed(random.Random(repr(numbers)).getrandbits(63))
            yield

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Return a scaler of the loss, so that small gradients do not vanish in fp16; it does nothing elsewhere."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @property
    def attention(self) -> str:
        """The name of transformers' attention function; on GPUs the fused one (not measured)."""
        return fastest_attention(self.dtype) if is_cpu(self.device) else "sdpa"


@dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime of a job: device, progress reporting, and number of decoding workers."""

    compute: DeviceConfig
    progress: Progress
    workers: int = field(default_factory=default_decode_workers)
    """Processes that decode images ahead of training; not used with cached features."""


def choose_device(device: str = "auto", dtype: DtypeName = "auto") -> DeviceConfig:
    """Return a device and the precision of its matrix products.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, `mps` and so on; `auto` is CUDA where there is a GPU, else MPS, else the CPU.
        dtype: `auto` is the fastest precision of the device, as `fastest_dtype` describes it.

    Raises:
        UsageError: The device cannot be used.
    """
    torch_device = _open_device(_best_device() if device == "auto" else device)
    fastest = fastest_dtype(torch_device)
    if dtype == "auto":
        return DeviceConfig(torch_device, fastest)
    chosen: torch.dtype = getattr(torch, dtype)
    if is_cpu(torch_device) and not _is_fast_on_cpu(chosen):
        log.warning(
            "this CPU multiplies %s in software, many times slower than %s; --dtype auto takes the latter",
            *(dtype, str(fastest).removeprefix("torch.")),
        )
    return DeviceConfig(torch_device, chosen)


def _best_device() -> str:
    """Return the device that `auto` means."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _open_device(name: str) -> torch.device:
    """Return a device that can be used; raise UsageError for any other."""
    kind = name.partition(":")[0]
    if kind not in _DEVICE_TYPES:
        valid = ("auto", *_DEVICE_TYPES)
        nearest = _OTHER_NAMES.get(kind.lower()) or nearest_name(kind.lower(), valid)
        question = f"; did you mean {nearest!r}?" if nearest else ""
        raise UsageError(
            f"device {name!r} cannot be used: caldera runs on {', '.join(valid)}, or cuda:1 and so on{question}"
        )
    try:
        device = torch.device(name)
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise RuntimeError("it needs a Mac with an Apple GPU, and a build of torch for it")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(_describe_missing_cuda())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used: {reason}") from None
    return device


def _describe_missing_cuda() -> str:
    """Return why torch reaches no CUDA GPU, and what to do."""
    if torch.version.cuda or torch.version.hip:
        return (
            "torch finds no GPU with a driver; see whether nvidia-smi lists one and CUDA_VISIBLE_DEVICES names it, or "
            "use the device cpu"
        )
    return (
        f"torch {torch.__version__} is a build without CUDA; see pytorch.org/get-started for one with it, or "
        "use the device cpu (caldera doctor lists what this machine has)"
    )


def _is_fast_on_cpu(dtype: torch.dtype) -> bool:
    """Return whether this CPU multiplies a precision in hardware."""
    match dtype:
        case torch.bfloat16:
            return has_fast_bf16()
        case torch.float16:
            return has_packed_weights(_CPU) and torch.ops.mkldnn._is_mkldnn_fp16_supported()
        case _:
            return True
