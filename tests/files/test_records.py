"""Tests of the streaming reader of records: any chunk size gives the records and error messages of the json module."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.errors import InputError
from caldera.files import records as record_files
from caldera.files.records import read_records

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder that the examples of a property share."""
    return tmp_path_factory.mktemp("records")


def read_all(path: Path, chunk: int) -> list[object] | str:
    """Return all records, or the error message, with `chunk` bytes read at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_files, "_CHUNK", chunk)
        try:
            return [record for _, record in read_records(path)]
        except InputError as error:
            return str(error)


@given(
    st.lists(VALUES, min_size=1, max_size=4),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(1, 60),
)
def test_any_list_is_read_back(
    folder: Path, values: list[object], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    """Chunks may split words, numbers and characters; a byte order mark is optional."""
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    path = folder / "values.json"
    path.write_bytes(f" {text}\n".encode("utf-8" if ascii_only else "utf-8-sig"))
    assert read_all(path, chunk) == values


@given(
    st.lists(VALUES, min_size=1, max_size=3),
    st.integers(0, 200),
    st.sampled_from(["", ",", "]", "x", '"', "\\", "\n", "{", "1e", "-"]),
    st.integers(1, 60),
)
def test_broken_json_is_described_as_by_the_json_module(
    folder: Path, values: list[object], position: int, insert: str, chunk: int
) -> None:
    """Truncated or damaged anywhere: line, column and reason are those of Python's parser on the full text."""
    text = json.dumps([0, *values], indent=1)
    # After the first value: an empty list has another message.
    position = 4 + position % (len(text) - 4)
    text = text[:position] if insert == "" else text[:position] + insert + text[position + 1 :]
    path = folder / "broken.json"
    path.write_text(text)
    try:
        expected = json.loads(text)
    except json.JSONDecodeError as error:
        expected = f"{path} is broken JSON at line {error.lineno} column {error.colno}: {error.msg}"
    assert read_all(path, chunk) == expected


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_byte_that_is_not_utf8_is_reported_with_its_offset(tmp_path: Path, name: str) -> None:
    """The offset counts from the start of the file, whatever the chunk size."""
    path = tmp_path / name
    content = b'["\xc3\xa9",\n7]' if name == "a.json" else b'"\xc3\xa9"\n7\n'
    path.write_bytes(content + b" \xff")
    message = f"{path} is not UTF-8 text (byte {len(content) + 1}); save it as UTF-8"
    for chunk in (1, 2, 3, 50):
        assert read_all(path, chunk) == message


def test_valid_records_are_yielded_before_the_broken_one(tmp_path: Path) -> None:
    """The error is raised when its record is reached."""
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"b": 2}, {"c" 3}]')
    records = read_records(path)
    assert next(records) == (f"{path}[0]", {"a": 1})
    assert next(records) == (f"{path}[1]", {"b": 2})
    with pytest.raises(InputError, match=r"line 1 column 27: Expecting ':' delimiter"):
        next(records)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 1}]', "broken JSON at line 1 column 10: Expecting value"),
        ("image,caption", "broken JSON at line 1 column 1: Expecting value"),
        ("[1] 2", "broken JSON at line 1 column 5: Extra data"),
        (" \n", "is empty"),
        ("[ ]", "holds an empty list"),
        ("[" * 100_000, "is nested too deeply"),
        (f"[{'9' * 5000}]", "holds a number too long to read"),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_a_file_without_a_list_of_records_is_an_input_error(
    tmp_path: Path, content: str, message: str, chunk: int
) -> None:
    """The message says what is wrong, whatever the chunk size."""
    path = tmp_path / "a.json"
    path.write_text(content)
    assert message in str(read_all(path, chunk))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSONL", ".txt", ""])
@pytest.mark.parametrize(
    ("content", "locations"),
    [
        ('[{"a": 1}, {"a": 2}]', ["[0]", "[1]"]),
        ('\ufeff\n [\n{"a": 1},\n{"a": 2}]', ["[0]", "[1]"]),
        ('{"a": 1}\n\n{"a": 2}\n', [":1", ":3"]),
        ('\r\n{"a": 1}\r\n{"a": 2}', [":2", ":3"]),
        ('{\n"a": 1}\n{\n"a": 2\n}', [":1", ":3"]),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_the_content_decides_how_a_file_is_read(
    tmp_path: Path, suffix: str, content: str, locations: list[str], chunk: int
) -> None:
    """A list, lines, or objects over several lines give the same records under any suffix."""
    path = tmp_path / f"a{suffix}"
    path.write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_files, "_CHUNK", chunk)
        read = list(read_records(path))
    assert read == [(f"{path}{end}", {"a": n}) for n, end in enumerate(locations, start=1)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_the_number_of_bytes_read_is_reported(tmp_path: Path, name: str) -> None:
    """The counts add up to the size of the file."""
    path = tmp_path / name
    records = [{"id": number, "text": "\N{SNOWMAN}" * 9} for number in range(40)]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]")
    counts: list[int] = []
    assert [record for _, record in read_records(path, counts.append)] == records
    assert sum(counts) == path.stat().st_size


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Ten times the records take no more memory."""
    import tracemalloc

    peaks = []
    for count in (2_000, 20_000):
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps([{"text": "x" * 1000}] * count))
        tracemalloc.start()
        assert sum(1 for _ in read_records(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 2e7
