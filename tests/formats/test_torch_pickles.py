"""Torch's files are read as data: every tensor comes out as torch itself reads it, and nothing in them is ever run."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from caldera.errors import ModelFormatError
from caldera.formats.torch_pickles import read_pickle


def test_it_reads_what_torch_reads(tmp_path: Path) -> None:
    """Kinds of numbers, views of shared storages, empty ones, scalars, parameters and modules' versions."""
    base = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    given = OrderedDict(
        half=torch.randn(3, 7).half(),
        brain=torch.randn(11).bfloat16(),
        double=torch.randn(2, 3, 5).double(),
        whole=torch.arange(7),
        small=torch.arange(7, dtype=torch.int8),
        flags=torch.tensor([True, False, True]),
        rows=base[1:4],
        turned=base.T,
        every_other=base[::2, 1::3],
        empty=torch.zeros(0, 4),
        scalar=torch.tensor(3.5),
        parameter=nn.Parameter(torch.randn(2, 2)),
    )
    given._metadata = {"": {"version": 1}}  # type: ignore[attr-defined] # as nn.Module.state_dict has it
    torch.save(given, tmp_path / "w.bin")

    found = read_pickle(tmp_path / "w.bin")

    expected = torch.load(tmp_path / "w.bin", weights_only=True)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        read = weight.read()
        assert torch.equal(read, expected[name]), name
        assert (weight.shape, weight.dtype) == (tuple(read.shape), read.dtype)


def test_writing_to_what_was_read_does_not_reach_the_file(tmp_path: Path) -> None:
    """The numbers are mapped, but the file's are only read."""
    torch.save({"a": torch.zeros(9)}, tmp_path / "w.bin")
    before = (tmp_path / "w.bin").read_bytes()
    read_pickle(tmp_path / "w.bin")["a"].read().fill_(7)
    assert (tmp_path / "w.bin").read_bytes() == before


SENTINEL = "CALDERA_SENTINEL"


class Runs:
    """Unpickled by Python, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


def repacked(folder: Path, program: bytes) -> Path:
    """Return a file as torch.save writes it, with another pickle inside."""
    kept = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, kept)
    file = folder / "w.bin"
    with zipfile.ZipFile(kept) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            own = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, program if own else old.read(entry.filename))
    return file


def programs(sentinel: Path) -> dict[str, bytes]:
    """Return pickles that each make a file when Python reads them, by the instruction they use."""
    words = f"touch {sentinel}".encode()
    touch = b"(X" + struct.pack("<I", len(words)) + words
    return {
        "reduce": pickle.dumps(Runs(sentinel), protocol=2),
        "reduce in a dictionary": pickle.dumps({"a": Runs(sentinel)}, protocol=2),
        "protocol 4": pickle.dumps(Runs(sentinel), protocol=4),
        "inst": b"(S'touch " + str(sentinel).encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'touch " + str(sentinel).encode() + b"'\no.",
        "build": b"cbuiltins\nexec\n" + touch + b"tR}b.",
        "newobj": b"\x80\x02cos\nsystem\n" + touch + b"t\x81.",
        "by a known name's module": b"\x80\x02ctorch.serialization\nos.system\n" + touch + b"tR.",
        "eval": b'\x80\x02cbuiltins\neval\n(S\'__import__("pathlib").Path("'
        + str(sentinel).encode()
        + b"\").touch()'\ntR.",
        "extension": b"\x80\x02\x82\x01.",
    }


@pytest.mark.parametrize("which", sorted(programs(Path("x"))))
def test_a_program_is_refused_and_never_run(tmp_path: Path, which: str) -> None:
    """Whatever instruction would call something, the file it would make is not made (fault E1)."""
    sentinel = tmp_path / SENTINEL
    file = repacked(tmp_path, programs(sentinel)[which])

    with pytest.raises(ModelFormatError, match=r"could run code; nothing of it was run") as caught:
        read_pickle(file)

    assert not sentinel.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["reduce", "inst", "obj", "eval"])
def test_the_programs_are_real(tmp_path: Path, which: str) -> None:
    """Python's own reader is taken in by them: the test above could fail."""
    sentinel = tmp_path / SENTINEL
    pickle.loads(programs(sentinel)[which])
    assert sentinel.exists()


def test_a_name_that_is_refused_is_told(tmp_path: Path) -> None:
    """The message says what the file would have called."""
    file = repacked(tmp_path, programs(tmp_path / SENTINEL)["reduce"])
    with pytest.raises(ModelFormatError, match=r"the name 'posix\.system'"):
        read_pickle(file)


EDITS = {
    "longer than its storage": (b"K\x02K\x03\x86", b"K\x02K\x04\x86"),  # shape (2, 3) -> (2, 4)
    "more numbers than bytes": (b"K\x06tq", b"K\x60tq"),  # 6 numbers -> 96
    "backwards": (b"K\x03K\x01\x86", b"J\xfd\xff\xff\xffK\x01\x86"),  # strides (3, 1) -> (-3, 1)
    "unfinished": (b"s.", b"s"),
}
"""Changes to the pickle of a tensor of shape (2, 3), by what they do."""

CONTENTS = {
    "bare": pickle.dumps({"a": 1}, protocol=2),
    "no archive": b"hello" * 50,
}
"""Files that are no zip archive."""

PICKLES = {
    "no tensor": pickle.dumps({"a": 5}, protocol=2),
    "no dictionary": pickle.dumps([5], protocol=2),
}
"""Pickles of something else."""


def changed(folder: Path, how: str) -> Path:
    """Return a file of torch's that is damaged in one way."""
    file = folder / "w.bin"
    torch.save({"a": torch.arange(6.0).reshape(2, 3)}, file)
    if how in EDITS:
        with zipfile.ZipFile(file) as archive:
            program = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
        old, new = EDITS[how]
        assert program.count(old) == 1
        _rewrite(file, program=program.replace(old, new))
    elif how in PICKLES:
        _rewrite(file, program=PICKLES[how])
    elif how in CONTENTS:
        file.write_bytes(CONTENTS[how])
    elif how == "packed":
        _rewrite(file, packing=zipfile.ZIP_DEFLATED)
    elif how == "legacy":
        torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-300])
    elif how == "no data":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("readme", "x")
    return file


def _rewrite(file: Path, program: bytes | None = None, packing: int = zipfile.ZIP_STORED) -> None:
    """Write a file of torch's anew, with another pickle, or with packed records: zeros pack a thousandfold."""
    with zipfile.ZipFile(file) as old:
        records = {entry.filename: old.read(entry.filename) for entry in old.infolist()}
    with zipfile.ZipFile(file, "w", packing) as new:
        for name, content in records.items():
            new.writestr(name, program if program and name.endswith("data.pkl") else content)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bare", "is a bare pickle, not weights"),
        ("legacy", "format of torch before 1.6, which is not read; have its source saved again"),
        ("cut", "is broken or cut"),
        ("no archive", "is no file of weights that torch.save wrote"),
        ("packed", "is packed"),
        ("longer than its storage", "lies outside its 6 numbers|more than its 6 numbers"),
        ("more numbers than bytes", "has 96 numbers, its record 24 bytes"),
        ("backwards", "strides"),
        ("unfinished", "is broken or cut"),
        ("no tensor", "'a', which is no tensor"),
        ("no dictionary", "something else than a dictionary"),
        ("no data", r"has no data\.pkl"),
    ],
)
def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path, how: str, message: str) -> None:
    """Other formats, cut files, packed ones, and tensors outside their bytes get a line that says so."""
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_pickle(changed(tmp_path, how))
    assert "\n" not in str(caught.value)


def test_an_archive_that_python_cannot_read_is_refused(tmp_path: Path) -> None:
    """Encrypted, patched, or of a later version: whatever zipfile raises for it, it is told in one line."""
    file = tmp_path / "w.bin"
    torch.save({"a": torch.zeros(3)}, file)
    whole = file.read_bytes()
    entry = whole.index(b"PK\x01\x02")  # of the central directory: version at 6, flags at 8
    for place, value in ((6, 0xFF), (8, 0x01), (8, 0x20)):
        changed = bytearray(whole)
        changed[entry + place] |= value
        file.write_bytes(changed)
        with pytest.raises(ModelFormatError, match=r"is broken or cut \(.*\); copy it again"):
            read_pickle(file)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """A shard that is not there is named."""
    with pytest.raises(ModelFormatError, match=r"w\.bin is missing"):
        read_pickle(tmp_path / "w.bin")
