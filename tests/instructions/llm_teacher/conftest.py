"""Teachers on this machine, and annotated images for them to write about."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.teacher_server import write_coco


@pytest.fixture(autouse=True)
def _loopback(loopback: None) -> None:
    """Let these tests reach this machine, and no other."""


@pytest.fixture
def coco(tmp_path: Path) -> Callable[[int], Path]:
    """Write a COCO folder of so many images."""
    return lambda count: write_coco(tmp_path / f"coco{count}", count)
