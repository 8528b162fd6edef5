"""Torch's files give the tensors that torch itself reads, and no code in them is ever run."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from caldera.errors import ModelFormatError
from caldera.formats.torch_pickles import read_pickle


def test_every_tensor_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    """Dtypes, views of shared storages, empty tensors, scalars, parameters and modules' versions are supported."""
    base = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    tensors = OrderedDict(
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
    tensors._metadata = {"": {"version": 1}}  # type: ignore[attr-defined] # as nn.Module.state_dict has it
    torch.save(tensors, tmp_path / "w.bin")

    weights = read_pickle(tmp_path / "w.bin")

    expected = torch.load(tmp_path / "w.bin", weights_only=True)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        tensor = weight.read()
        assert torch.equal(tensor, expected[name]), name
        assert (weight.shape, weight.dtype) == (tuple(tensor.shape), tensor.dtype)


def test_changes_to_a_tensor_do_not_reach_the_file(tmp_path: Path) -> None:
    """The numbers are mapped copy-on-write."""
    torch.save({"a": torch.zeros(9)}, tmp_path / "w.bin")
    before = (tmp_path / "w.bin").read_bytes()
    read_pickle(tmp_path / "w.bin")["a"].read().fill_(7)
    assert (tmp_path / "w.bin").read_bytes() == before


SENTINEL = "CALDERA_SENTINEL"


class Runs:
    """Object that creates a file when Python unpickles it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


def repacked(folder: Path, program: bytes) -> Path:
    """Return a file of torch.save with another pickle inside."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    file = folder / "w.bin"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, program if is_pickle else old.read(entry.filename))
    return file


def programs(sentinel: Path) -> dict[str, bytes]:
    """Return pickles that create a file when Python reads them, by the instruction they use."""
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


@pytest.mark.parametrize("instruction", sorted(programs(Path("x"))))
def test_a_program_is_rejected_and_never_run(tmp_path: Path, instruction: str) -> None:
    """For every instruction that would call something, the file is not created (fault E1)."""
    sentinel = tmp_path / SENTINEL
    file = repacked(tmp_path, programs(sentinel)[instruction])

    with pytest.raises(ModelFormatError, match=r"could run code; nothing of it was run") as caught:
        read_pickle(file)

    assert not sentinel.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("instruction", ["reduce", "inst", "obj", "eval"])
def test_the_programs_are_real(tmp_path: Path, instruction: str) -> None:
    """Python's own reader runs them, so the test above could fail."""
    sentinel = tmp_path / SENTINEL
    pickle.loads(programs(sentinel)[instruction])
    assert sentinel.exists()


def test_a_rejected_name_is_in_the_message(tmp_path: Path) -> None:
    """The message names the function that the file would have called."""
    file = repacked(tmp_path, programs(tmp_path / SENTINEL)["reduce"])
    with pytest.raises(ModelFormatError, match=r"the name 'posix\.system'"):
        read_pickle(file)


EDITS = {
    "longer than its storage": (b"K\x02K\x03\x86", b"K\x02K\x04\x86"),  # shape (2, 3) -> (2, 4)
    "more numbers than bytes": (b"K\x06tq", b"K\x60tq"),  # 6 numbers -> 96
    "backwards": (b"K\x03K\x01\x86", b"J\xfd\xff\xff\xffK\x01\x86"),  # strides (3, 1) -> (-3, 1)
    "unfinished": (b"s.", b"s"),
}
"""Changes to the pickle of a tensor of shape (2, 3), by effect."""

CONTENTS = {
    "bare": pickle.dumps({"a": 1}, protocol=2),
    "no archive": b"hello" * 50,
}
"""Files that are not zip archives."""

PICKLES = {
    "no tensor": pickle.dumps({"a": 5}, protocol=2),
    "no dictionary": pickle.dumps([5], protocol=2),
}
"""Pickles of other values."""


def changed(folder: Path, how: str) -> Path:
    """Return a file of torch.save that is damaged in one way."""
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
    """Rewrite a file of torch.save with another pickle, or with compressed records."""
    with zipfile.ZipFile(file) as old:
        records = {entry.filename: old.read(entry.filename) for entry in old.infolist()}
    with zipfile.ZipFile(file, "w", packing) as new:
        for name, content in records.items():
            new.writestr(name, program if program and name.endswith("data.pkl") else content)


UNSUPPORTED = {
    "expanded": torch.arange(3.0)[:, None].expand(3, 5),
    "sparse": torch.eye(3).to_sparse(),
    "complex": torch.zeros(2, dtype=torch.complex64),
    "negated view": torch.zeros(2, dtype=torch.complex64).conj().imag,
    "float8": torch.zeros(2).to(torch.float8_e4m3fn),
    "meta": torch.zeros(3, device="meta"),
    "nested": {"b": torch.zeros(3)},
    "array": np.zeros(3),
    "module": nn.Linear(2, 3),
}
"""Values that are not dense tensors of the supported types."""


@pytest.mark.parametrize("kind", sorted(UNSUPPORTED))
def test_unsupported_tensors_are_rejected(tmp_path: Path, kind: str) -> None:
    """Tensors that are not dense, of other types, or that repeat numbers are rejected by name, not misread."""
    torch.save({"a": UNSUPPORTED[kind]}, tmp_path / "w.bin")
    with pytest.raises(ModelFormatError, match=r"w\.bin (holds|is broken)"):
        read_pickle(tmp_path / "w.bin")


def test_tied_and_overlapping_tensors_are_read(tmp_path: Path) -> None:
    """Tensors that share a storage are read with their own numbers."""
    base = torch.arange(15.0).reshape(5, 3)
    torch.save({"tied": base, "twin": base, "head": base[:3], "tail": base[2:]}, tmp_path / "w.bin")
    weights = read_pickle(tmp_path / "w.bin")
    assert torch.equal(weights["tied"].read(), weights["twin"].read())
    assert torch.equal(weights["head"].read(), base[:3])
    assert torch.equal(weights["tail"].read(), base[2:])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bare", "is a bare pickle, not weights"),
        (
            "legacy",
            "format of torch before 1.6, which is not supported; load it with torch and save it again",
        ),
        ("cut", "is broken or truncated"),
        ("no archive", "is not a file of weights that torch.save wrote"),
        ("packed", "is compressed"),
        ("longer than its storage", "storage that is not resizable"),
        ("more numbers than bytes", "a has a storage of 384 bytes; no record has that size"),
        ("backwards", "strides"),
        ("unfinished", "is broken or truncated"),
        ("no tensor", "'a', which is not a tensor"),
        ("no dictionary", "a list instead of a dictionary"),
        ("no data", r"has no data\.pkl"),
    ],
)
def test_other_files_are_rejected(tmp_path: Path, how: str, message: str) -> None:
    """Other formats, truncated or compressed files, and tensors outside their bytes get one line each."""
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_pickle(changed(tmp_path, how))
    assert "\n" not in str(caught.value)


def test_an_unreadable_archive_is_rejected(tmp_path: Path) -> None:
    """Encrypted, patched or newer archives get one line, whatever zipfile raises for them."""
    file = tmp_path / "w.bin"
    torch.save({"a": torch.zeros(3)}, file)
    content = file.read_bytes()
    entry = content.index(b"PK\x01\x02")  # of the central directory: version at 6, flags at 8
    for offset, value in ((6, 0xFF), (8, 0x01), (8, 0x20)):
        changed = bytearray(content)
        changed[entry + offset] |= value
        file.write_bytes(changed)
        with pytest.raises(ModelFormatError, match=r"is broken or truncated \(.*\); copy it again"):
            read_pickle(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message names a missing shard."""
    with pytest.raises(ModelFormatError, match=r"w\.bin is missing"):
        read_pickle(tmp_path / "w.bin")
