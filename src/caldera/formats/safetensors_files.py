"""Lazy reader and streaming writer of safetensors files.

No more than one tensor is in memory: what is read is mapped from its file, and released after use.
"""

import json
import mmap
import re
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from caldera.errors import ModelFormatError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_SHARD = 2_000_000_000
"""Largest number of bytes of tensors in one written file."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Torch dtypes by safetensors' names."""

TORCH_SUFFIXES = (".bin", ".pt", ".pth")
"""Suffixes of files that torch.save writes."""

_LENGTH = struct.Struct("<Q")
"""Length of the header, the first bytes of a safetensors file."""

_MAGICS = {b"PK\x03\x04": "a zip archive, as torch.save writes", b"\x80": "a pickle"}


@dataclass(frozen=True, slots=True)
class LazyWeight:
    """Tensor with a known shape whose numbers are read on demand."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Function that reads and returns the numbers."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


def from_memory(tensor: Tensor) -> LazyWeight:
    """Return a tensor in memory as a weight."""
    return LazyWeight(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach())


def memory_mapped(file: Path, offset: int, count: int, dtype: torch.dtype) -> Tensor:
    """Map numbers from a file: pages are read on use, and changes stay in memory.

    Args:
        file: A file of any format.
        offset: Position of the first number in bytes.
        count: Number of numbers.
        dtype: Type of each number.
    """
    if count == 0:
        return torch.empty(0, dtype=dtype)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with file.open("rb") as stream:
        length = offset - start + count * dtype.itemsize
        pages = mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    if offset % dtype.itemsize:
        return torch.frombuffer(bytearray(pages[offset - start :]), dtype=dtype)
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=offset - start)


def weight_files(folder: Path, single: str = WEIGHTS, index: str = INDEX) -> list[Path]:
    """List the weight files of a folder.

    Args:
        folder: A model folder.
        single: Name of the file of weights if there is only one.
        index: Name of the file that lists several.

    Raises:
        ModelFormatError: There are none, or one is outside the folder.
    """
    if not (folder / index).is_file():
        if not (folder / single).exists():
            raise ModelFormatError(f"{folder} has no {single}; {_other_formats(folder)}")
        return [check_inside_folder(folder / single)]
    names = set(_weight_map(folder / index).values())
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ModelFormatError(f"{folder / index} names {name!r}, outside the folder; rejected")
    return [check_inside_folder(folder / name) for name in sorted(names)]


def _other_formats(folder: Path) -> str:
    """Return advice on a folder without safetensors."""
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in TORCH_SUFFIXES)
    if pickles:
        return f"{pickles[0]} is a pickle, which is not opened here: convert it with caldera import"
    return "check the path"


def _weight_map(index: Path) -> dict[str, str]:
    """Read the file name of each weight from an index."""
    with suppress(OSError):
        if names := parse_index(index.read_bytes()):
            return names
    raise ModelFormatError(f"{index} is not an index of weights; copy it again")


def parse_index(content: bytes) -> dict[str, str]:
    """Return the file name of each weight in an index; empty if it is none."""
    try:
        names = json.loads(content)["weight_map"]
        return names if all(isinstance(name, str) for name in names.values()) else {}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


_BLOB = re.compile(r"(\.\./){2,3}blobs/[0-9a-f]+")
"""Target of a link in a snapshot of the Hugging Face cache: the content of a file."""

_SHARED_BLOB = re.compile(r"\.\./\.\./blobs/[0-9a-f]{2}/[0-9a-f]+")
"""Target of a blob that is a link itself: the content that several repositories share, below the same cache."""


def check_inside_folder(file: Path) -> Path:
    """Return a file of a model folder unless it is a link; links of a Hugging Face cache to its blobs are allowed.

    Raises:
        ModelFormatError: It is a link to elsewhere.
    """
    if file.is_symlink() and not _is_cached(file):
        raise ModelFormatError(
            f"{file} is a link to {file.readlink()}, outside the folder; rejected: copy the folder with its files (cp "
            "-rL)"
        )
    return file


def _is_cached(link: Path) -> bool:
    """Return whether a link is one of a Hugging Face cache."""
    blob = link.parent / link.readlink()
    if not _BLOB.fullmatch(str(link.readlink())):
        return False
    if not blob.is_symlink():
        return True
    shared = blob.parent / blob.readlink()
    return bool(_SHARED_BLOB.fullmatch(str(blob.readlink()))) and not shared.is_symlink()


def read_safetensors(file: Path) -> dict[str, LazyWeight]:
    """List the tensors of a safetensors file.

    Raises:
        ModelFormatError: It is missing, truncated, broken, or of another format.
    """
    try:
        # safe_open checks the header against the file, to the last byte.
        with safe_open(file, "pt"):
            pass
        with file.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            header = json.loads(stream.read(length), object_pairs_hook=_unique_keys)
        header.pop("__metadata__", None)
        return {name: _to_weight(file, 8 + length, entry) for name, entry in header.items()}
    except FileNotFoundError:
        raise ModelFormatError(f"{file} is missing; copy the model folder again") from None
    except SafetensorError as error:
        raise ModelFormatError(_describe_damage(file, error)) from None
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise ModelFormatError(f"{file} is broken or truncated ({error}); copy it again") from None


def _describe_damage(file: Path, error: Exception) -> str:
    """Return a message for a file that is not a safetensors file."""
    with file.open("rb") as stream:
        head = stream.read(4)
    for magic, kind in _MAGICS.items():
        if head.startswith(magic):
            return f"{file} is {kind}, under another name; it was not opened: rename it to .bin and run caldera import"
    return f"{file} is broken or truncated ({error}); copy it again"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, and reject a key that occurs twice."""
    names = sorted(name for name, _ in pairs)
    if repeated := [name for name, following in pairwise(names) if name == following]:
        raise ValueError(f"it holds {repeated[0]!r} twice")
    return dict(pairs)


def _to_weight(file: Path, data_start: int, entry: dict[str, Any]) -> LazyWeight:
    """Return a header's entry as a weight; `data_start` is the offset of the first tensor in the file."""
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"it holds numbers of type {entry['dtype']}, known: {', '.join(DTYPES)}")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    start = data_start + entry["data_offsets"][0]
    return LazyWeight(
        shape, dtype, lambda: memory_mapped(file, start, prod(shape), dtype).view(shape)
    )


def write_weights(
    folder: Path,
    weights: Mapping[str, LazyWeight],
    max_shard: int = MAX_SHARD,
    tick: Callable[[str], None] = lambda file: None,
) -> None:
    """Write safetensors one tensor at a time, in several files with an index if one would be too large.

    Args:
        folder: An existing folder.
        weights: Weights by their names on disk.
        max_shard: Largest number of bytes of tensors in a file; a single tensor may be larger.
        tick: Called after each tensor with the name of its file.
    """
    shards = _split_into_shards(weights, max_shard)
    several = len(shards) > 1
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if several else WEIGHTS
        weight_map |= dict.fromkeys(names, file)
        _write_file(folder / file, {name: weights[name] for name in names}, tick)
    if several:
        total = sum(weight.nbytes for weight in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def _split_into_shards(weights: Mapping[str, LazyWeight], max_shard: int) -> list[list[str]]:
    """Assign names to files, in order."""
    shards: list[list[str]] = [[]]
    shard_size = 0
    for name, weight in weights.items():
        if shards[-1] and shard_size + weight.nbytes > max_shard:
            shards.append([])
            shard_size = 0
        shards[-1].append(name)
        shard_size += weight.nbytes
    return shards


def _write_file(path: Path, weights: Mapping[str, LazyWeight], tick: Callable[[str], None]) -> None:
    """Write one safetensors file; wider dtypes come first, so that all tensors are aligned."""
    tags = {dtype: tag for tag, dtype in DTYPES.items()}
    order = sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        weight = weights[name]
        start, end = end, end + weight.nbytes
        header[name] = {
            "dtype": tags[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for name in order:
            file.write(_to_bytes(weights[name]))
            tick(path.name)


def _to_bytes(weight: LazyWeight) -> memoryview:
    """Read a weight's numbers as bytes."""
    tensor = weight.read().cpu().contiguous()
    assert (tuple(tensor.shape), tensor.dtype) == (weight.shape, weight.dtype)
    return tensor.flatten().view(torch.uint8).numpy().data


def merge_listings(
    files: Mapping[Path, Mapping[str, LazyWeight]], index: Path
) -> dict[str, LazyWeight]:
    """Merge the weights of a folder's files.

    Args:
        files: Weights of each file.
        index: The folder's index, which may be missing.

    Raises:
        ModelFormatError: Two files hold a weight of one name, or a weight is not in the file that the index names.
    """
    merged: dict[str, LazyWeight] = {}
    actual: dict[str, str] = {}
    for file, weights in files.items():
        if repeated := sorted(merged.keys() & weights.keys()):
            name = repeated[0]
            raise ModelFormatError(f"{file} holds {name}, which {actual[name]} holds too")
        merged |= weights
        actual |= dict.fromkeys(weights, file.name)
    expected = _weight_map(index) if index.is_file() else actual
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise ModelFormatError(
                f"{index} has {name} in {expected.get(name, 'no file')}, but it is in "
                f"{actual.get(name, 'none')}; copy the folder again"
            )
    return merged
