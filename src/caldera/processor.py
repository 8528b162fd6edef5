"""What this machine's processor does well: which precision and which attention function are the fast ones on it."""

import ctypes
import sys
from mmap import PAGESIZE

import torch

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
