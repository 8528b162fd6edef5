"""Safetensors files are listed before they are read, written one tensor at a time, and rejected if inconsistent."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from caldera.errors import ModelFormatError
from caldera.formats.safetensors_files import (
    DTYPES,
    INDEX,
    WEIGHTS,
    from_memory,
    memory_mapped,
    read_safetensors,
    weight_files,
    write_weights,
)
from caldera.formats.weight_names import read_weights


def sample_tensors() -> dict[str, torch.Tensor]:
    """Return tensors of every dtype, an empty one, a scalar, and one with an odd number of bytes."""
    torch.manual_seed(5)
    tensors = {tag: torch.randn(3, 5).mul(9).to(dtype) for tag, dtype in DTYPES.items()}
    extra = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "odd": tensors["U8"][0]}
    return {**tensors, **extra}


@pytest.mark.parametrize(("max_shard", "files"), [(10**9, 1), (130, 5), (1, 13)])
def test_written_files_are_read_by_safetensors_own_reader(
    tmp_path: Path, max_shard: int, files: int
) -> None:
    """In one file or several, every tensor is read back by safetensors and by caldera."""
    tensors = sample_tensors()
    ticked: list[str] = []

    write_weights(
        tmp_path, {n: from_memory(t) for n, t in tensors.items()}, max_shard, ticked.append
    )

    reference: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        reference |= load_file(file)
    weights = read_weights(tmp_path)
    assert reference.keys() == weights.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(reference[name], tensor)
        assert torch.equal(weights[name].read(), tensor)
        assert weights[name].nbytes == tensor.nbytes
    assert len(weight_files(tmp_path)) == files
    assert (tmp_path / INDEX).exists() == (files > 1)
    assert len(ticked) == len(tensors)


@given(
    offset=st.integers(0, 9001),
    count=st.integers(0, 700),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
)
@settings(max_examples=60)
def test_numbers_are_mapped_at_any_offset(
    tmp_path_factory: pytest.TempPathFactory, offset: int, count: int, dtype: torch.dtype
) -> None:
    """Aligned or not, within a page or across several, the bytes are those of the file."""
    file = tmp_path_factory.getbasetemp() / "bytes"
    content = bytes(number * 7 % 251 for number in range(12_000))
    file.write_bytes(content)
    mapped = memory_mapped(file, offset, count, dtype)
    expected = content[offset : offset + count * dtype.itemsize]
    assert mapped.view(torch.uint8).numpy().tobytes() == expected


def raw(file: Path, header: bytes | dict[str, object], data: bytes) -> None:
    """Write a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def entry(name: str, start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    """Return one entry of a header."""
    return {name: {"dtype": dtype, "shape": [1], "data_offsets": [start, end]}}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{" + ONE + b"," + ONE + b"}", b"\0" * 4, "holds 'a' twice"),
        ({**entry("a", 0, 4), **entry("b", 0, 4)}, b"\0" * 4, "invalid offset"),
        ({**entry("a", 0, 4), **entry("b", 2, 6)}, b"\0" * 6, "invalid offset"),
        (entry("a", 0, 4), b"\0" * 3, "is broken or truncated"),
        (entry("a", 0, 4), b"\0" * 9, "is broken or truncated"),
        (entry("a", 0, 1, "F8_E4M3"), b"\0", "numbers of type F8_E4M3, known: .*BF16"),
        (b"[]", b"", "is broken or truncated"),
        (b"{", b"", "is broken or truncated"),
    ],
)
def test_a_broken_header_is_rejected(
    tmp_path: Path, header: bytes | dict[str, object], data: bytes, message: str
) -> None:
    """Repeated names, overlapping, missing or surplus bytes, and unknown dtypes get one line each (fault E2)."""
    raw(tmp_path / WEIGHTS, header, data)
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_safetensors(tmp_path / WEIGHTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Q", 2**60) + b"{}", "is broken or truncated .*header too large"),
        (b"\x80\x02}q\x00.", "is a pickle, under another name; it was not opened"),
        (b"", "is broken or truncated"),
    ],
)
def test_other_files_are_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    """A header of 2^60 bytes, a pickle and an empty file are rejected (faults E1, E2)."""
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelFormatError, match=message):
        read_safetensors(tmp_path / WEIGHTS)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"a": "../x.safetensors"}, r"names '\.\./x\.safetensors', outside"),
        ({"a": "/x.safetensors"}, "names '/x.safetensors', outside"),
        ({"a": ".."}, r"names '\.\.', outside"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "two.safetensors is missing"),
        ({"b": "one.safetensors"}, "has a in no file, but it is in one.safetensors"),
        (
            {"a": "one.safetensors", "c": "one.safetensors"},
            "has c in one.safetensors, but it is in none",
        ),
        ({}, "is not an index"),
        ({"a": 5}, "is not an index"),
    ],
)
def test_an_index_that_does_not_fit_is_rejected(
    tmp_path: Path, index: dict[str, object], message: str
) -> None:
    """Files outside the folder, missing files, and weights in other files than listed are rejected (faults E5, E6)."""
    save_file({"a": torch.zeros(3)}, tmp_path / "one.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ModelFormatError, match=message):
        read_weights(tmp_path)


def test_a_link_to_elsewhere_is_rejected(tmp_path: Path) -> None:
    """A weight file that is a link is not followed, unless to a blob of a Hugging Face cache."""
    folder = tmp_path / "m"
    folder.mkdir()
    save_file({"a": torch.zeros(3)}, tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFormatError, match=r"is a link to .*, outside the folder; rejected"):
        read_weights(folder)


def test_torch_files_are_not_opened_instead_of_safetensors(tmp_path: Path) -> None:
    """For a folder with only a pickle the message names the command that converts it (fault E1)."""
    with pytest.raises(ModelFormatError, match=r"has no model\.safetensors; check the path"):
        read_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ModelFormatError, match=r"pytorch_model\.bin is a pickle.* caldera import"):
        read_weights(tmp_path)
