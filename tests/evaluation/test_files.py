"""Readers of official files: content decides how a file is read, and every fault names its place."""

import csv
import sys
from pathlib import Path

import pytest

from caldera.errors import InputError
from caldera.evaluation.answer_files import read_answers
from caldera.evaluation.files import json_start, read_first_line, read_json, read_rows
from tests.evaluation.answer_formats import write_json, write_table


def test_excels_unicode_text_is_read(tmp_path: Path) -> None:
    """It is UTF-16 with tabs."""
    (tmp_path / "a.txt").write_text("index\tprediction\n7\tJa\u2026\n", "utf-16")
    assert read_rows(tmp_path / "a.txt") == [
        (f"{tmp_path / 'a.txt'}:2", {"index": "7", "prediction": "Ja\u2026"})
    ]


def test_pandas_marks_of_whole_numbers_are_removed(tmp_path: Path) -> None:
    """Next to an empty cell, pandas writes the numbers of a column as 7.0; empty rows at the end are no answers."""
    rows = [{"index": 7.0, "prediction": 2.0}, {"index": 8.0, "prediction": 2.5}]
    empty = {"index": None, "prediction": None}
    path = write_table(tmp_path / "a.xlsx", [*rows, empty])
    assert read_answers(path) == {"7": "2", "8": "2.5"}
    assert read_answers(write_json(tmp_path / "a.json", rows)) == {"7": "2", "8": "2.5"}
    (tmp_path / "a.csv").write_text("index,prediction\n7.0,2.0\n8.0,2.5\n")
    assert read_answers(tmp_path / "a.csv") == {"7": "2.0", "8": "2.5"}, "texts may be 2.0"
    (tmp_path / "a.csv").write_text("index,prediction\n7.0,2.0\n8.0,-3.0\n")
    assert read_answers(tmp_path / "a.csv") == {"7": "2", "8": "-3"}
    assert read_rows(tmp_path / "a.csv")[0][1] == {"index": "7.0", "prediction": "2.0"}


def test_a_first_line_may_be_no_json(tmp_path: Path) -> None:
    """It may go on, or be nested too deep; a byte order mark is no part of it."""
    path = tmp_path / "a.jsonl"
    for content in (b"", b"{\n", b"index\tanswer", b'"' + b"x" * 99_999 + b'"', b"[" * 60_000):
        path.write_bytes(content)
        assert read_first_line(path) is None
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{')
    assert read_first_line(path) == {"a": 1}
    with pytest.raises(InputError, match=r"cannot read .*nowhere"):
        read_first_line(tmp_path / "nowhere")


def test_a_spreadsheet_names_the_extra_if_openpyxl_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the command that installs it."""
    path = write_table(tmp_path / "a.xlsx", [{"index": 7, "prediction": "x"}])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"needs openpyxl: pip install 'caldera\[xlsx\]'"):
        read_answers(path)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("\ufeff [1]", "["),
        (" " * 9999 + "{}", "{"),
        ("ä" * 9999, ""),
        ('{"a": 1}\n{"a": 2}', "{"),
        ("index\tanswer", ""),
        ("PK\x03\x04", ""),
    ],
)
def test_json_is_told_from_tables(tmp_path: Path, text: str, start: str) -> None:
    """By the first character after a byte order mark and white space."""
    (tmp_path / "a.bin").write_text(text, "utf-8")
    assert json_start(tmp_path / "a.bin") == start


def test_the_first_character_is_found_without_reading_the_file(tmp_path: Path) -> None:
    """The reader that follows reads it, and names the broken byte far behind."""
    (tmp_path / "a.json").write_bytes(b'{"a": "' + b"x" * 9999 + b"\xff")
    assert json_start(tmp_path / "a.json") == "{"
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".txt"])
def test_json_is_a_value_or_lines(tmp_path: Path, suffix: str) -> None:
    """Under any suffix; one line of a .jsonl is a list of one."""
    path = tmp_path / f"a{suffix}"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_json(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{\n "a": 1\n}\n')
    assert read_json(path) == {"a": 1}
    path.write_text('{"a": 1}\n')
    assert read_json(path) == ([{"a": 1}] if suffix == ".jsonl" else {"a": 1})
    path.write_text('{"a": 1}\n{"a":}\n')
    with pytest.raises(InputError, match=rf"a{suffix}:2 is broken JSON at column 6"):
        read_json(path)


def test_long_cells_are_read_and_other_readers_keep_their_limit(tmp_path: Path) -> None:
    """A cell may hold an image in base64; csv's limit is one of the whole process."""
    usual_limit, file = csv.field_size_limit(), tmp_path / "answers.tsv"
    file.write_text(f"index\timage\n1\t{'x' * (usual_limit + 1)}\n")
    [(_, row)] = read_rows(file)
    assert len(row["image"]) == usual_limit + 1
    assert csv.field_size_limit() == usual_limit
    file.write_text("index\n1\t2\n")
    with pytest.raises(InputError, match="not as many cells"):
        read_rows(file)
    assert csv.field_size_limit() == usual_limit
