"""Tests of journals: appended lines are read back, and a truncated last line is moved away."""

from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError
from caldera.files.journal import JournalFile, journal_lines


def test_appended_lines_are_read_back_with_their_offsets(tmp_path: Path) -> None:
    """A reopened journal continues after its last line."""
    path = tmp_path / "run" / "journal.jsonl"
    lines: list[dict[str, Any]] = [{"text": "é\n"}, {"text": "\ud800"}, {"number": 3}]
    offsets = []
    for line in lines:
        journal = JournalFile(path)
        offsets.append(journal.append(line))
        journal.flush()
        assert journal.line_at(offsets[-1]) == line
        journal.close()
    assert list(journal_lines(path)) == list(zip(offsets, lines, strict=True))


def test_a_truncated_last_line_is_moved_to_another_file(tmp_path: Path) -> None:
    """The complete lines before it remain, and the next line follows them."""
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    journal = JournalFile(path)
    assert journal.append({"c": 3}) == len(b'{"a": 1}\n')
    journal.close()
    assert [line for _, line in journal_lines(path)] == [{"a": 1}, {"c": 3}]
    assert (tmp_path / "truncated.jsonl").read_bytes() == b'{"b": \n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"b": \n{"c": 3}\n', r"journal\.jsonl:2 is broken"),
        ("[1]\n", r"journal\.jsonl:1 is not a line of a journal"),
    ],
)
def test_a_broken_line_is_an_input_error(tmp_path: Path, content: str, message: str) -> None:
    """The message has the line number."""
    path = tmp_path / "journal.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        list(journal_lines(path))
    with pytest.raises(InputError, match=r"cannot read .*missing\.jsonl"):
        list(journal_lines(tmp_path / "missing.jsonl"))
