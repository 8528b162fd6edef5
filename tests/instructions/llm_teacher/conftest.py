"""Servers on this machine for the tests of the LLM teacher, and annotated images to write about."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.teacher_server import write_coco


@pytest.fixture(autouse=True)
def _loopback(loopback: None) -> None:
    """Allow connections to this machine only."""


@pytest.fixture
def coco(tmp_path: Path) -> Callable[[int], Path]:
    """Return a function that writes a COCO folder of `count` images."""
    return lambda count: write_coco(tmp_path / f"coco{count}", count)
