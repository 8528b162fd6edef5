"""The documentation site builds without a warning, and its pages ask no other host for anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_site_builds_and_requests_nothing_from_outside(tmp_path: Path) -> None:
    """Scripts, styles, fonts and images are files of the site; only links that a reader clicks lead elsewhere."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    loads = re.compile(
        r"<(?:script|img|iframe|link(?! rel=.canonical))\b[^>]*?(?:src|href)=\"?(?:https?:)?//",
        re.IGNORECASE,
    )
    assert [str(page) for page in pages if loads.search(page.read_text("utf-8"))] == []
    styles = list((tmp_path / "site").rglob("*.css"))
    assert styles
    assert not [
        style
        for style in styles
        if re.search(r"url\([\"']?(?:https?:)?//|@import", style.read_text("utf-8"))
    ]
