"""docs/serving.md says which fault each test does to the server; here that is held against the tests."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNTS = {"A": 13, "B": 14, "C": 13, "D": 9, "I": 8}
ROWS = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]


def row_tests() -> dict[str, set[str]]:
    """Return the tests whose docstring begins with rows, by row."""
    found: dict[str, set[str]] = {row: set() for row in ROWS}
    for path in sorted((ROOT / "tests" / "chat").rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                begin = re.match(r"((?:[A-I][0-9]+(?:, )?)+):", ast.get_docstring(node) or "")
                for row in re.findall(r"[A-I][0-9]+", begin[1]) if begin else ():
                    found[row].add(f"{path.name}::{node.name}")
    return found


def table() -> dict[str, set[str]]:
    """Return what the page says, by row: tests as `file::name`."""
    page = (ROOT / "docs" / "serving.md").read_text()
    lines = re.findall(r"^\| ([A-I][0-9]+) \|(.*)\|$", page, re.MULTILINE)
    assert [row for row, _ in lines] == ROWS
    return {row: set(re.findall(r"`(test_\w+\.py::\w+)`", rest)) for row, rest in lines}


def test_the_page_names_the_tests_of_every_row() -> None:
    """Each row is there once, in order, with all of its tests."""
    said, there = table(), row_tests()
    assert all(said.values())
    for row in ROWS:
        assert there[row] <= said[row], row
    everywhere = {
        f"{path.name}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert set().union(*said.values()) <= everywhere
