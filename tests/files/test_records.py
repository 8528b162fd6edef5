"""Records come out of a file one by one, whatever is read at a time; what is broken is told as json tells it."""

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
    """A folder that the examples of a property share."""
    return tmp_path_factory.mktemp("records")


def told(path: Path, chunk: int) -> list[object] | str:
    """All records, or what is said against the file, when so many bytes are read at a time."""
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
def test_any_list_comes_out_whole(
    folder: Path, values: list[object], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    """As it went in, in pieces that cut words, numbers and characters apart, with a byte order mark or not."""
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    path = folder / "values.json"
    path.write_bytes(f" {text}\n".encode("utf-8" if ascii_only else "utf-8-sig"))
    assert told(path, chunk) == values


@given(
    st.lists(VALUES, min_size=1, max_size=3),
    st.integers(0, 200),
    st.sampled_from(["", ",", "]", "x", '"', "\\", "\n", "{", "1e", "-"]),
    st.integers(1, 60),
)
def test_what_is_broken_is_told_as_json_tells_it(
    folder: Path, values: list[object], place: int, put: str, chunk: int
) -> None:
    """Cut or damaged anywhere: line, column and reason are those of Python's parser on the whole text."""
    text = json.dumps([0, *values], indent=1)
    place = 4 + place % (
        len(text) - 4
    )  # behind the first value, as an empty list is told otherwise
    text = text[:place] if put == "" else text[:place] + put + text[place + 1 :]
    path = folder / "broken.json"
    path.write_text(text)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        said = f"{path} is broken JSON at line {error.lineno} column {error.colno}: {error.msg}"
        assert told(path, chunk) == said
    else:
        assert told(path, chunk) == whole


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_byte_that_is_no_text_is_told_with_its_place(tmp_path: Path, name: str) -> None:
    """Counted from the file's start, whatever was read before."""
    path = tmp_path / name
    content = b'["\xc3\xa9",\n7]' if name == "a.json" else b'"\xc3\xa9"\n7\n'
    path.write_bytes(content + b" \xff")
    for chunk in (1, 2, 3, 50):
        assert told(path, chunk) == f"{path} is not UTF-8 text (byte {len(content) + 1}); save it as UTF-8"  # fmt: skip


def test_good_records_come_before_the_broken_one(tmp_path: Path) -> None:
    """A file is read as far as it can be."""
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
        ('{"id": 1}', "holds one JSON value that is not a list"),
        ('{"id": 1}\n{"id": 2}', "broken JSON at line 2 column 1: Extra data"),
        ("[1] 2", "broken JSON at line 1 column 5: Extra data"),
        (" \n", "is empty"),
        ("[ ]", "holds an empty list"),
        ("[" * 100_000, "is nested too deeply"),
        (f"[{'9' * 5000}]", "holds a number too long to read"),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_another_file_is_refused(tmp_path: Path, content: str, message: str, chunk: int) -> None:
    """With what it should be."""
    path = tmp_path / "a.json"
    path.write_text(content)
    assert message in str(told(path, chunk))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_reading_is_told_by_bytes(tmp_path: Path, name: str) -> None:
    """All of them by the end."""
    path = tmp_path / name
    records = [{"id": number, "text": "\N{SNOWMAN}" * 9} for number in range(40)]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]")
    read: list[int] = []
    assert [record for _, record in read_records(path, read.append)] == records
    assert sum(read) == path.stat().st_size


def test_a_long_file_is_not_held_as_a_whole(tmp_path: Path) -> None:
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
