"""Weight files in, their tensors by name before any is read; tensors in, safetensors out, one tensor at a time.

Nothing here holds more than the tensor at hand: what is read is mapped from its file and let go of again.
"""

import json
import mmap
import struct
from collections.abc import Callable, Mapping
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
"""Bytes of tensors in one file that is written."""

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
"""Kinds of numbers by safetensors' names."""

TORCH_SUFFIXES = (".bin", ".pt", ".pth")
"""Endings of torch's own files."""

_LENGTH = struct.Struct("<Q")
"""A safetensors file begins with the length of its header."""

_MAGICS = {b"PK\x03\x04": "a zip archive, as torch.save writes", b"\x80": "a pickle"}


@dataclass(frozen=True, slots=True)
class LazyWeight:
    """A tensor whose shape is known and whose numbers are not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Returns the numbers; each call reads them anew."""

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return prod(self.shape) * self.dtype.itemsize


def from_memory(tensor: Tensor) -> LazyWeight:
    """Return a tensor in memory as a weight."""
    return LazyWeight(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach())


def memory_mapped(file: Path, offset: int, count: int, dtype: torch.dtype) -> Tensor:
    """Map numbers from a file: they are read as they are used, and what is written to them stays in memory.

    Args:
        file: Of any format.
        offset: Byte where they begin.
        count: How many they are.
        dtype: What they are.
    """
    if count == 0:
        return torch.empty(0, dtype=dtype)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with file.open("rb") as opened:
        length = offset - start + count * dtype.itemsize
        pages = mmap.mmap(opened.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    if offset % dtype.itemsize:
        return torch.frombuffer(bytearray(pages[offset - start :]), dtype=dtype)
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=offset - start)


def weight_files(folder: Path, whole: str = WEIGHTS, index: str = INDEX) -> list[Path]:
    """List the weight files of a folder.

    Args:
        folder: A model folder.
        whole: The name of the file where there is one.
        index: The name of the file that lists several.

    Raises:
        ModelFolderError: There are none, or one lies outside the folder.
    """
    if not (folder / index).is_file():
        if not (folder / whole).exists():
            raise ModelFormatError(f"{folder} has no {whole}; {_other_formats(folder)}")
        return [check_inside_folder(folder / whole)]
    names = set(_weight_map(folder / index).values())
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ModelFormatError(f"{folder / index} names {name!r}, outside the folder; refused")
    return [check_inside_folder(folder / name) for name in sorted(names)]


def _other_formats(folder: Path) -> str:
    """Say what to do about a folder without the weights that were looked for."""
    pickled = sorted(each.name for each in folder.glob("*") if each.suffix in TORCH_SUFFIXES)
    if pickled:
        return (
            f"{pickled[0]} is a pickle, which is not opened here: bring it in with caldera import"
        )
    return "check the path"


def _weight_map(file: Path) -> dict[str, str]:
    """Read an index: the file of each weight.

    Raises:
        ModelFolderError: It is none.
    """
    try:
        names = json.loads(file.read_bytes())["weight_map"]
        if names and all(isinstance(each, str) for each in names.values()):
            return names
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise ModelFormatError(f"{file} is not an index of weights")


def check_inside_folder(file: Path) -> Path:
    """Refuse a file of a model folder that is a link, but for those of a Hugging Face cache, which all lead to blobs.

    Raises:
        ModelFolderError: It is a link to elsewhere.
    """
    if file.is_symlink():
        target = file.readlink()
        blob = len(target.parts) == len(_BLOB) + 1 and target.parts[:-1] == _BLOB
        if not blob or (file.parent / target).is_symlink():
            raise ModelFormatError(
                f"{file} is a link to {target}, outside the folder; refused: copy the folder with its files (cp -rL)"
            )
    return file


_BLOB = ("..", "..", "blobs")
"""Where the links of a Hugging Face cache's snapshots lead."""


def read_safetensors(file: Path) -> dict[str, LazyWeight]:
    """List the tensors of a safetensors file.

    Raises:
        ModelFolderError: It is missing, cut, broken, or of another format.
    """
    try:
        with safe_open(file, "pt"):  # checks the header against the file, to the last byte
            pass
        with file.open("rb") as opened:
            (length,) = _LENGTH.unpack(opened.read(_LENGTH.size))
            header = json.loads(opened.read(length), object_pairs_hook=_unique_keys)
        header.pop("__metadata__", None)
        return {name: _weight(file, 8 + length, said) for name, said in header.items()}
    except FileNotFoundError:
        raise ModelFormatError(f"{file} is missing; copy the model folder again") from None
    except SafetensorError as error:
        raise ModelFormatError(_why_broken(file, error)) from None
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise ModelFormatError(f"{file} is broken or cut ({error}); copy it again") from None


def _why_broken(file: Path, error: Exception) -> str:
    """Say why a file is no safetensors file."""
    with file.open("rb") as opened:
        head = opened.read(4)
    for magic, kind in _MAGICS.items():
        if head.startswith(magic):
            return (
                f"{file} is {kind}, by another name; it was not opened: give it back its suffix .bin and run "
                "caldera import"
            )
    return f"{file} is broken or cut ({error}); copy it again"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object whose names occur once.

    Raises:
        ValueError: One occurs twice.
    """
    names = sorted(name for name, _ in pairs)
    if twice := [name for name, following in pairwise(names) if name == following]:
        raise ValueError(f"it holds {twice[0]!r} twice")
    return dict(pairs)


def _weight(file: Path, begin: int, said: dict[str, Any]) -> LazyWeight:
    """Return what a header says of one tensor; `begin` is the byte where numbers begin.

    Raises:
        ValueError: It holds numbers of a kind that models are not made of.
    """
    if said["dtype"] not in DTYPES:
        raise ValueError(f"it holds numbers of type {said['dtype']}, known: {', '.join(DTYPES)}")
    dtype, shape = DTYPES[said["dtype"]], tuple(said["shape"])
    start = begin + said["data_offsets"][0]
    return LazyWeight(
        shape, dtype, lambda: memory_mapped(file, start, prod(shape), dtype).view(shape)
    )


def write_weights(
    folder: Path,
    weights: Mapping[str, LazyWeight],
    max_shard: int = MAX_SHARD,
    tick: Callable[[str], None] = lambda file: None,
) -> None:
    """Write safetensors tensor by tensor, in several files and an index where one would be too large.

    Args:
        folder: Stands.
        weights: By the names they get on disk.
        max_shard: Bytes of tensors in a file; a single tensor may be larger.
        tick: Called after each tensor with the file that it is in.
    """
    shards = _shards(weights, max_shard)
    many = len(shards) > 1
    where: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if many else WEIGHTS
        where |= dict.fromkeys(names, file)
        _write_file(folder / file, {name: weights[name] for name in names}, tick)
    if many:
        total = sum(each.nbytes for each in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def _shards(weights: Mapping[str, LazyWeight], max_shard: int) -> list[list[str]]:
    """Part names into files, in order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, each in weights.items():
        if shards[-1] and filled + each.nbytes > max_shard:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += each.nbytes
    return shards


def _write_file(path: Path, weights: Mapping[str, LazyWeight], tick: Callable[[str], None]) -> None:
    """Write one safetensors file; larger numbers stand first, so that all are aligned."""
    tags = {dtype: tag for tag, dtype in DTYPES.items()}
    order = sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        each = weights[name]
        start, end = end, end + each.nbytes
        header[name] = {
            "dtype": tags[each.dtype],
            "shape": list(each.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for name in order:
            file.write(_bytes_of(weights[name]))
            tick(path.name)


def _bytes_of(weight: LazyWeight) -> memoryview:
    """Read a weight's numbers as bytes."""
    tensor = weight.read().cpu().contiguous()
    assert (tuple(tensor.shape), tensor.dtype) == (weight.shape, weight.dtype)
    return tensor.flatten().view(torch.uint8).numpy().data


def merge_listings(
    files: Mapping[Path, Mapping[str, LazyWeight]], index: Path
) -> dict[str, LazyWeight]:
    """Join the weights of a folder's files.

    Args:
        files: What each file holds.
        index: What says so, if it is there.

    Raises:
        ModelFolderError: Two files hold a weight of one name, or a weight is not where the index says.
    """
    found: dict[str, LazyWeight] = {}
    where: dict[str, str] = {}
    for file, weights in files.items():
        if twice := sorted(found.keys() & weights.keys()):
            raise ModelFormatError(f"{file} holds {twice[0]}, which {where[twice[0]]} holds too")
        found |= weights
        where |= dict.fromkeys(weights, file.name)
    said = _weight_map(index) if index.is_file() else where
    for name in sorted(said.keys() | where.keys()):
        if said.get(name) != where.get(name):
            raise ModelFormatError(
                f"{index} has {name} in {said.get(name, 'no file')}, but it is in "
                f"{where.get(name, 'none')}; copy the folder again"
            )
    return found
