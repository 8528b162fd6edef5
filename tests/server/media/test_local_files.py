"""Tests of `file:` URLs against a real server."""

import os
from pathlib import Path

import pytest

from tests.server.server_process import (
    ServerProcess,
    image_part,
    make_image,
)

PNG = make_image()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "file:///etc/no-such", "/etc/passwd", "/etc/no-such", "C:\\x", "\\\\host\\share", "x.png",
        "",
    ],
)  # fmt: skip
def test_files_are_disabled_by_default(server: ServerProcess, url: str) -> None:
    """A path is not an image, and the message is the same whether the file exists or not."""
    answer = server.ask("What?", image_part(url))
    assert (answer.status, answer.code) == (400, "invalid_image_url")
    other = server.ask("What?", image_part(url.replace("passwd", "other")))
    assert answer.error == other.error


def test_no_path_leaves_the_media_folder(
    fetching_server: ServerProcess, media_folder: Path
) -> None:
    """Dots, links, sibling folders, pipes, devices and folders: status 400 with one message for all."""
    outside = media_folder.parent / "database"
    outside.mkdir(exist_ok=True)
    (media_folder / "within").mkdir(exist_ok=True)
    for folder in (media_folder, media_folder / "within", outside, media_folder.parent):
        (folder / "x y.png").write_bytes(PNG)
    (media_folder / "long.png").write_bytes(PNG + bytes(300_000))
    if not (media_folder / "pipe").exists():
        os.mkfifo(media_folder / "pipe")
        (media_folder / "link.png").symlink_to(outside / "x y.png")
        (media_folder / "away").symlink_to(outside)
    for valid in ("x%20y.png", "within/x%20y.png"):
        by_url = fetching_server.ask("What is it?", image_part(f"file://{media_folder}/{valid}"))
        assert by_url.text == fetching_server.ask("What is it?", PNG).text
    texts = set()
    for invalid in (
        "/../x%20y.png", "/%2e%2e/x%20y.png", "/within/../x%20y.png", "/link.png", "/away/x%20y.png", "base/x%20y.png",
        "/pipe", "/within", "", "/", "//x%20y.png", "/no.png", "/x%20y.png%00", "/within%2f..%2f..%2fx%20y.png",
    ):  # fmt: skip
        answer = fetching_server.ask("What?", image_part(f"file://{media_folder}{invalid}"))
        assert (answer.status, answer.code) == (400, "image_file_not_found"), invalid
        texts.add(answer.error["message"])
    for url in (
        "file:///dev/zero",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "file:etc",
    ):
        answer = fetching_server.ask("What?", image_part(url))
        assert (answer.status, answer.code) == (400, "image_file_not_found"), url
        texts.add(answer.error["message"])
    assert len(texts) == 1
    long = fetching_server.ask("What?", image_part(f"file://{media_folder}/long.png"))
    assert (long.status, long.code) == (400, "image_file_too_large")
