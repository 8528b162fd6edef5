"""Tests of image paths that users enter."""

from pathlib import Path

import pytest

from caldera.errors import ImageError
from caldera.images.decoding import resolve_image_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://x.org/a.png", "is a web address; download"),
        ("file:///etc/passwd", "is a web address"),
        ("{folder}", "is a folder"),
        ("{folder}/no.png", "does not exist"),
        ("{folder}/text.png", "is a text file, not an image"),
        ("/dev/zero", "is not a regular file"),
    ],
)
def test_only_image_files_are_opened(tmp_path: Path, text: str, message: str) -> None:
    """Web addresses, folders, devices and other files are rejected with one line."""
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match=message):
        resolve_image_path(text.replace("{folder}", str(tmp_path)))


def test_quotes_and_home_are_resolved(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is dropped on a terminal is quoted."""
    monkeypatch.setenv("HOME", str(photos))
    assert resolve_image_path(f"'{photos}/1.png' ") == photos / "1.png"
    assert resolve_image_path("~/1.png") == photos / "1.png"


def test_a_dropped_path_may_contain_backslashes(photos: Path, tmp_path: Path) -> None:
    """Terminals escape spaces by a backslash; a file whose name contains one is used as it is."""
    spaced, slashed = tmp_path / "my photo (1).png", tmp_path / "a\\b.png"
    for path in (spaced, slashed):
        path.write_bytes((photos / "1.png").read_bytes())
    assert resolve_image_path(f"{tmp_path}/my\\ photo\\ \\(1\\).png") == spaced
    assert resolve_image_path(str(slashed)) == slashed


def test_a_name_that_is_too_long_is_one_line() -> None:
    """A name that no file system allows is rejected like any image that cannot be read."""
    with pytest.raises(ImageError, match=r"cannot be read: File name too long"):
        resolve_image_path("x" * 300 + ".png")
