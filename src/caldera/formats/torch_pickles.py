"""Tensors of `torch.save` files, listed without running code or reading numbers.

torch's `weights_only` unpickler rejects everything but tensors and plain containers. It maps the file once, to check
the tensors, and loads it on the meta device, for their offsets in the file; no number is read. Each tensor is mapped
again when it is needed, so that its pages are released afterwards.
"""

import re
import warnings
import zipfile
from math import prod
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from caldera.errors import ModelFormatError
from caldera.formats.safetensors_files import DTYPES, LazyWeight, memory_mapped

_MAX_PICKLE_BYTES = 64_000_000
"""Limit for the pickle itself, which holds names and shapes; a large model's is below one million bytes."""

_LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""First bytes of the format that torch.save wrote before version 1.6; it cannot be mapped into memory."""


_CONTENT = "a file of weights holds a dictionary of dense tensors of floats, integers or booleans"


class _NotWeightsError(Exception):
    """The pickle holds no code, but other things than named tensors."""


def read_pickle(file: Path) -> dict[str, LazyWeight]:
    """List the tensors of a dictionary that `torch.save` wrote.

    Raises:
        ModelFormatError: The file is missing, truncated, in another format, or holds anything but named tensors.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(len(_LEGACY_MAGIC))
        if not head.startswith(b"PK\x03\x04"):
            raise ModelFormatError(f"{file} {_describe_format(head)}")
        record_sizes = _check_archive(file)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # about pickle protocols: those are rejected
            tensors = torch.load(file, weights_only=True, mmap=True)
            on_meta = torch.load(file, weights_only=True, map_location="meta")
        if not isinstance(tensors, dict):
            raise _NotWeightsError(f"a {type(tensors).__name__} instead of a dictionary")
        return {
            name: _to_weight(file, name, tensor, on_meta[name], record_sizes)
            for name, tensor in tensors.items()
        }
    except FileNotFoundError:
        raise ModelFormatError(f"{file} is missing; copy the model folder again") from None
    except _NotWeightsError as error:
        raise ModelFormatError(f"{file} holds {error}; {_CONTENT}") from None
    except UnpicklingError as error:
        raise ModelFormatError(
            f"{file} holds {_unsafe_content(error)}, which a file of weights does not need and which could run code; "
            "nothing of it was run: get the weights as safetensors, or from a source that you trust"
        ) from None
    # zipfile raises RuntimeError for encrypted, patched or newer archives, torch for tensors outside their storage.
    except (OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError,
            AttributeError, AssertionError, zipfile.BadZipFile) as error:  # fmt: skip
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelFormatError(f"{file} is broken or truncated ({reason}); copy it again") from None


def _describe_format(head: bytes) -> str:
    """Describe a file that is not a zip archive by its first bytes."""
    if head.startswith(_LEGACY_MAGIC):
        return (
            "is in the format of torch before 1.6, which is not supported; load it with torch and save it again, "
            "with torch.save or as safetensors"
        )
    if head.startswith(b"\x80"):
        return "is a bare pickle, not weights from torch.save; it was not opened"
    return "is not a file of weights that torch.save wrote; copy it again"


def _unsafe_content(error: UnpicklingError) -> str:
    """Name what torch's unpickler rejected."""
    text = str(error)
    if match := re.search(r"GLOBAL ([\w.]+)", text):
        return f"the name {match[1]!r}"
    if match := re.search(r"Unsupported operand (\d+)", text):
        return f"the pickle instruction {int(match[1])}"
    return "a call that torch's weights_only unpickler rejects"


def _check_archive(file: Path) -> set[int]:
    """Check that the archive's records can be mapped, and return their sizes in bytes."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    pickle = next((entry for entry in entries if entry.filename.endswith("/data.pkl")), None)
    if pickle is None:
        raise ValueError("the archive has no data.pkl")
    if len({entry.filename for entry in entries}) != len(entries):
        raise ValueError("the archive holds a record twice")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"its record {entry.filename} is compressed")
    if pickle.file_size > _MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle has {pickle.file_size:,} bytes")
    return {entry.file_size for entry in entries}


def _to_weight(
    file: Path, name: object, tensor: object, on_meta: Tensor, record_sizes: set[int]
) -> LazyWeight:
    """Return a tensor of the file as a weight that is mapped when it is read."""
    if not isinstance(name, str):
        raise _NotWeightsError(f"a key of type {type(name).__name__}")
    if type(tensor) not in (Tensor, nn.Parameter):
        raise _NotWeightsError(f"{name!r}, which is not a tensor")
    assert isinstance(tensor, Tensor)
    dtype, shape = tensor.dtype, tuple(tensor.shape)
    if tensor.layout != torch.strided or dtype not in DTYPES.values() or tensor.is_neg():
        kind = f"{str(tensor.layout).removeprefix('torch.')} tensor of {dtype}"
        raise _NotWeightsError(f"{name!r}, a {kind}, which is not supported")
    nbytes, stride = tensor.untyped_storage().nbytes(), tensor.stride()
    if nbytes not in record_sizes:
        raise ValueError(f"{name} has a storage of {nbytes} bytes; no record has that size")
    if prod(shape) * dtype.itemsize > nbytes:
        raise ValueError(f"{name} has shape {shape}, more than its {nbytes} bytes")
    # torch.load sets this attribute on storages of the meta device: the offset of the storage in the file.
    record_offset = on_meta.untyped_storage()._checkpoint_offset
    if record_offset is None:
        raise _NotWeightsError(f"{name!r}, a tensor without data")
    start = record_offset + int(tensor.storage_offset()) * dtype.itemsize
    span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))

    def read() -> Tensor:
        if prod(shape) == 0:
            return torch.empty(shape, dtype=dtype)
        return memory_mapped(file, start, span, dtype).as_strided(shape, stride)

    return LazyWeight(shape, dtype, read)
