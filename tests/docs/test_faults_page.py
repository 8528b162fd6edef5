"""docs/faults.md compared with the tests that it names."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"
SIZES = {"A": 13, "B": 14, "C": 13, "D": 9, "E": 7, "F": 11, "G": 12, "H": 7, "I": 8}
"""Number of rows by area."""


def test_every_fault_is_listed_with_tests_that_exist() -> None:
    """Each of the 94 rows once, in order, with at least one test."""
    rows = re.findall(r"^\| ([A-I]\d+) \| .+ \| .+ \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert [number for number, _ in rows] == [
        f"{area}{index}" for area, size in SIZES.items() for index in range(1, size + 1)
    ]
    for number, tests in rows:
        names = re.findall(r"`(\S+?\.py)::(\w+)`", tests)
        assert names, number
        for file, name in names:
            text = (TESTS / file).read_text()
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), f"{number}: {file}::{name}"
