"""A file that `torch.save` wrote in, its tensors by name out; nothing of it is run.

Such a file is a zip archive of one pickle and the tensors' bytes. A pickle is a program, and Python's own reader
carries it out. Here it is only read: of its instructions those that tensors, numbers, text and dictionaries are written
with, onto a stack of plain values. No name that it gives is looked up, and nothing is called.
"""

import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caldera.errors import ModelFormatError
from caldera.formats.safetensors_files import LazyWeight, memory_mapped

_MAX_PROGRAM = 64_000_000
"""Bytes of the pickle itself, which holds names and shapes; a large model's are below one million."""

_STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
"""Kinds of numbers by the names that torch.save gives them."""

_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_DICTIONARY = "collections OrderedDict"
_KNOWN = {*_STORAGES, _TENSOR, _PARAMETER, _DICTIONARY}

_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""How torch.save's files began before version 1.6."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a record in a zip archive: its mark, and the lengths of its name and of what follows the name."""


@dataclass(frozen=True, slots=True)
class _GlobalRef:
    """A name that the pickle gives; it is never looked up."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """The bytes that tensors are cut out of."""

    record: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, slots=True)
class _TensorView:
    """A tensor: where in its storage it lies."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _UnsafePickleError(Exception):
    """The pickle holds what no dictionary of tensors holds."""


_MARK = object()
"""On the stack: where a group of values begins."""


class _Reader:
    """Reads the instructions of a pickle onto a stack of plain values."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, program: bytes) -> Any:  # noqa: ANN401 - whatever it holds
        """Return the value that a pickle describes.

        Raises:
            _RefusedError: It holds an instruction or a name that is not among the known ones.
            ValueError: It is cut or broken; so do LookupError and AttributeError tell.
        """
        for instruction, argument, _ in pickletools.genops(program):
            name = instruction.name
            if name == "STOP":
                return self._stack.pop()
            if name in _PLAIN:
                self._stack.append(argument)
            elif name in _FRESH:
                self._stack.append(_FRESH[name]())
            elif name in _OPCODES:
                _OPCODES[name](self, argument)
            else:
                raise _UnsafePickleError(f"the pickle instruction {name}")
        raise ValueError("it does not end")

    def _group(self) -> list[Any]:
        """Take the values down to the last mark off the stack."""
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _recall(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _name(self, name: str) -> None:
        """Take a name down if it is a known one."""
        if name not in _KNOWN:
            raise _UnsafePickleError(f"the name {name.replace(' ', '.')!r}")
        self._stack.append(_GlobalRef(name))

    def _tuple(self, count: int | None) -> None:
        """Join values to a tuple."""
        values = self._group() if count is None else [self._stack.pop() for _ in range(count)][::-1]
        self._stack.append(tuple(values))

    def _add(self, values: list[Any]) -> None:
        """Add to the list on the stack."""
        if not isinstance(self._stack[-1], list):
            raise _UnsafePickleError("a list that is none")
        self._stack[-1].extend(values)

    def _set(self, values: list[Any]) -> None:
        """Add names and values to the dictionary on the stack."""
        if not isinstance(self._stack[-1], dict) or len(values) % 2:
            raise _UnsafePickleError("a dictionary that is none")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str):
                raise _UnsafePickleError(f"a key of type {type(key).__name__}")
            self._stack[-1][key] = value

    def _storage(self) -> None:
        """Read which record of the archive holds a tensor's bytes."""
        match self._stack.pop():
            case ("storage", _GlobalRef(kind), str(record), str(), int(count)) if kind in _STORAGES:
                self._stack.append(_Storage(record, _STORAGES[kind], count))
            case _:
                raise _UnsafePickleError("a reference to something outside")

    def _build(self) -> None:
        """Read a tensor or a dictionary where Python would call a function."""
        arguments, function = self._stack.pop(), self._stack.pop()
        match function, arguments:
            case _GlobalRef(name), () if name == _DICTIONARY:
                self._stack.append({})
            case _GlobalRef(name), (
                _Storage() as storage,
                int(at),
                tuple(shape),
                tuple(stride),
                *_,
            ) if name == _TENSOR and all(type(each) is int for each in (*shape, *stride)):
                self._stack.append(_TensorView(storage, at, shape, stride))
            case _GlobalRef(name), (_TensorView() as cut, *_) if name == _PARAMETER:
                self._stack.append(cut)
            case _:
                raise _UnsafePickleError("a call")

    def _skip_attributes(self) -> None:
        """Pass over what a dictionary of weights says of its modules' versions."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            raise _UnsafePickleError("attributes")


_PLAIN = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
"""Instructions that put their argument on the stack."""

_FRESH: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK,
}
"""Instructions that put a value on the stack."""

_OPCODES: dict[str, Callable[[_Reader, Any], None]] = {
    "PROTO": lambda reader, argument: None,
    "BINPUT": _Reader._remember,
    "LONG_BINPUT": _Reader._remember,
    "BINGET": _Reader._recall,
    "LONG_BINGET": _Reader._recall,
    "GLOBAL": _Reader._name,
    "TUPLE": lambda reader, argument: reader._tuple(None),
    "TUPLE1": lambda reader, argument: reader._tuple(1),
    "TUPLE2": lambda reader, argument: reader._tuple(2),
    "TUPLE3": lambda reader, argument: reader._tuple(3),
    "APPEND": lambda reader, argument: reader._add([reader._stack.pop()]),
    "APPENDS": lambda reader, argument: reader._add(reader._group()),
    "SETITEM": lambda reader, argument: reader._set([reader._stack.pop(-2), reader._stack.pop()]),
    "SETITEMS": lambda reader, argument: reader._set(reader._group()),
    "BINPERSID": lambda reader, argument: reader._storage(),
    "REDUCE": lambda reader, argument: reader._build(),
    "BUILD": lambda reader, argument: reader._skip_attributes(),
}
"""Instructions that do more with the stack."""


def read_pickle(file: Path) -> dict[str, LazyWeight]:
    """List the tensors of a file that `torch.save` wrote from a dictionary of them.

    Raises:
        ModelFolderError: It is missing, cut, broken, of another format, or holds anything but named tensors.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(len(_LEGACY))
        if not head.startswith(b"PK\x03\x04"):
            raise ModelFormatError(f"{file} {_other_format(head)}")
        records, program = _open_archive(file)
        found = _Reader().read(program)
        if not isinstance(found, dict):
            raise _UnsafePickleError("something else than a dictionary at its top")
        return {name: _weight(file, name, cut, records) for name, cut in found.items()}
    except FileNotFoundError:
        raise ModelFormatError(f"{file} is missing; copy the model folder again") from None
    except _UnsafePickleError as error:
        raise ModelFormatError(
            f"{file} holds {error}, which a file of weights does not need and which could run code; nothing of it was "
            "run: take the weights as safetensors, or from a source you trust"
        ) from None
    except (OSError, ValueError, LookupError, AttributeError, zipfile.BadZipFile) as error:
        raise ModelFormatError(f"{file} is broken or cut ({error}); copy it again") from None
    except (
        RuntimeError
    ) as error:  # zipfile's word for what is encrypted, patched, or of a later version
        raise ModelFormatError(f"{file} is broken or cut ({error}); copy it again") from None


def _other_format(head: bytes) -> str:
    """Say what a file is that is no zip archive."""
    if head.startswith(_LEGACY):
        return (
            "is in the format of torch before 1.6, which is not read; have its source saved again, with "
            "torch.save of a newer torch or as safetensors"
        )
    if head.startswith(b"\x80"):
        return "is a bare pickle, not weights from torch.save; it was not opened"
    return "is no file of weights that torch.save wrote; copy it again"


def _open_archive(file: Path) -> tuple[dict[str, tuple[int, int]], bytes]:
    """Return where the records of an archive lie, (offset, bytes) by name, and its pickle.

    Raises:
        ValueError: A record is packed, lies outside the file or over another, or the bytes' order is another one.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        top = next((each.filename for each in entries if each.filename.endswith("data.pkl")), "")
        stem = top.removesuffix("data.pkl")
        if not stem.endswith("/") or stem.count("/") != 1:
            raise ValueError("the archive has no data.pkl")
        if len({each.filename for each in entries}) != len(entries):
            raise ValueError("the archive holds a record twice")
        records = {}
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"its record {entry.filename} is packed")
            records[entry.filename.removeprefix(stem)] = _record_offset(file, entry)
        _check_no_overlap(file, records)
        if records["data.pkl"][1] > _MAX_PROGRAM:
            raise ValueError(f"its pickle has {records['data.pkl'][1]:,} bytes")
        order = archive.read(f"{stem}byteorder") if "byteorder" in records else b"little"
        if order != b"little":
            raise ValueError("its numbers are big-endian")
        return records, archive.read(top)


def _record_offset(file: Path, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Return where a record's bytes begin, and how many they are.

    Raises:
        ValueError: There is none.
    """
    with file.open("rb") as opened:
        opened.seek(entry.header_offset)
        head = opened.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size:
        raise ValueError(f"its record {entry.filename} lies outside")
    mark, name_length, extra_length = _LOCAL_HEADER.unpack(head)
    if mark != b"PK\x03\x04":
        raise ValueError(f"its record {entry.filename} is not where it should be")
    return entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length, entry.file_size


def _check_no_overlap(file: Path, records: dict[str, tuple[int, int]]) -> None:
    """Check that records lie in the file, one behind the other.

    Raises:
        ValueError: They do not.
    """
    places = sorted((start, start + size) for start, size in records.values())
    if places[-1][1] > file.stat().st_size:
        raise ValueError("a record is longer than the file")
    if any(end > start for (_, end), (start, _) in pairwise(places)):
        raise ValueError("two records lie over each other")


def _weight(file: Path, name: str, cut: object, records: dict[str, tuple[int, int]]) -> LazyWeight:
    """Return a tensor of an archive as a weight.

    Raises:
        _RefusedError: It is something else.
        ValueError: It lies outside its storage, or that outside its record.
    """
    if not isinstance(cut, _TensorView):
        raise _UnsafePickleError(f"{name!r}, which is no tensor")
    storage = cut.storage
    start, size = records[f"data/{storage.record}"]
    if not 0 <= storage.count * storage.dtype.itemsize <= size:
        raise ValueError(f"{name} has {storage.count} numbers, its record {size} bytes")
    if len(cut.shape) != len(cut.stride) or min((cut.offset, *cut.shape, *cut.stride)) < 0:
        raise ValueError(f"{name} has shape {cut.shape} and strides {cut.stride}")
    empty = prod(cut.shape) == 0
    last = sum((each - 1) * step for each, step in zip(cut.shape, cut.stride, strict=True))
    if not empty and cut.offset + last >= storage.count:
        raise ValueError(f"{name} lies outside its {storage.count} numbers")
    if prod(cut.shape) > storage.count:
        raise ValueError(f"{name} has shape {cut.shape}, more than its {storage.count} numbers")

    def read() -> Tensor:
        if empty:
            return torch.empty(cut.shape, dtype=storage.dtype)
        begin = start + cut.offset * storage.dtype.itemsize
        flat = memory_mapped(file, begin, last + 1, storage.dtype)
        return flat.as_strided(cut.shape, cut.stride)

    return LazyWeight(cut.shape, storage.dtype, read)
