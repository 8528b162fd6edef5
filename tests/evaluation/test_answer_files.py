"""Answer files: all layouts give the same texts, and every fault is an error that lists the ids."""

import json
from pathlib import Path

import pytest

from caldera.errors import InputError
from caldera.evaluation.answer_files import read_answers

RECORDS = [
    {"question_id": 7, "prompt": "?", "text": "Yes"},
    {"question_id": "8", "text": "No\u2028!"},
]


def write(path: Path, content: object) -> Path:
    """Write JSON lines or JSON, by the suffix."""
    lines = content if isinstance(content, list) else [content]
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    path.write_text(text if path.suffix == ".jsonl" else json.dumps(content), "utf-8")
    return path


def test_all_layouts_give_the_same_texts(tmp_path: Path) -> None:
    """JSON lines, a JSON list, lines under a .json name, an object, a table and a folder give the same texts."""
    expected = {"7": "Yes", "8": "No\u2028!"}
    lines = write(tmp_path / "a.jsonl", RECORDS)
    assert read_answers(lines) == expected
    assert read_answers(write(tmp_path / "b.json", RECORDS)) == expected
    misnamed = tmp_path / "c.json"
    misnamed.write_text(lines.read_text("utf-8"), "utf-8")
    assert read_answers(misnamed) == expected
    assert read_answers(write(tmp_path / "d.json", expected)) == expected
    table = tmp_path / "e.tsv"
    table.write_text("index\tquestion\tprediction\n7\t?\tYes\n8\t?\tNo\u2028!\n", "utf-8")
    assert read_answers(table) == expected
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, record in enumerate(RECORDS):
        write(folder / f"2_{number}.jsonl", [record])
    assert read_answers(folder) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "a.jsonl is empty; nothing can be scored"),
        ("a.json", "[]", "should hold a list of JSON objects"),
        ("a.json", "{}", "holds no answers"),
        ("a.jsonl", '{"id": 1, "text": "x"}\n{"id":', "a.jsonl:2 is broken JSON at column 7"),
        ("a.json", '{"1": "a", "2": "b", "1": "c"}', "has these keys twice: 1"),
        ("a.jsonl", '{"id": 1, "text": "x"}\n' * 2, "has 1 ids more than once: 1; keep one"),
        ("a.jsonl", '{"text": "x"}', "1 answers have no id, the first .*; expected one of question_id"),
        ("a.jsonl", '{"id": 1, "label": "x"}', "its answer under one of text, .*; it has id, label"),
        ("a.jsonl", '{"id": 1, "text": ["x", "y"]}', "text should be one text, got \\['x', 'y'\\]"),
        ("a.jsonl", '{"id": 1, "text": {"a": "x"}}', "text should be one text, got {'a': 'x'}"),
        ("a.jsonl", '{"id": [1], "text": "x"}', "the id should be a number or a text"),
        ("a.json", '{"1": "x", "2": {"text": "x"}}', "the answer to '2' should be a text"),
        ("a.tsv", "index\tprediction\n1\tx\ty\n", "a.tsv:2 has not as many cells as the heading"),
        ("a.csv", "index,prediction\n", "has a heading but no rows"),
        ("a.csv", "index,prediction,prediction\n1,x,y\n", "has columns twice: prediction"),
        ("a.csv", "PK\x03\x04", "is no .xlsx spreadsheet"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    """The error names the place and what was expected."""
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_answers(file)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """A missing file, a folder without answers, and text that is not UTF-8 are errors."""
    with pytest.raises(InputError, match=r"cannot read .*none\.jsonl: No such file"):
        read_answers(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"holds no file of answers"):
        read_answers(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 1, "text": "\xff"}')
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_answers(tmp_path / "a.jsonl")


def test_long_lists_of_names_are_truncated(tmp_path: Path) -> None:
    """Errors about a file with 300 fields, or with 300 repeated keys, list ten names."""
    other = {f"v1_{number}": "" for number in range(300)}
    (tmp_path / "one.jsonl").write_text(json.dumps({"id": 1, **other}))
    with pytest.raises(InputError, match=r"it has id, v1_0, .* and 291 more") as caught:
        read_answers(tmp_path / "one.jsonl")
    assert len(str(caught.value)) < 600
    twice = ", ".join(f'"{name}": ""' for name in [*other, *other])
    (tmp_path / "two.json").write_text(f"{{{twice}}}")
    with pytest.raises(InputError, match=r"these keys twice: v1_0, .* and 290 more"):
        read_answers(tmp_path / "two.json")
