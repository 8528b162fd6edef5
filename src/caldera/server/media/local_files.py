"""A `file:` URL in, the bytes of a file under the server's media folder out; nothing outside of it is ever opened."""

import os
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes

from caldera.server.media.errors import (
    EMPTY,
    FILE_TOO_LARGE,
    FILES_DISABLED,
    NOT_UNDER_ROOT,
    MediaError,
)

_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_below_root(url: str, root: Path | None, max_bytes: int) -> bytes:
    """Read a file below `root`: each step from there is opened by itself, and no link is followed.

    Args:
        url: `file:///` and an absolute path, percent-encoded.
        root: The media folder as an absolute path without links; None where there is none.
        max_bytes: Longer files are not read.

    Raises:
        MediaError: There is no such plain file under the folder (whatever else may be there), or it is too long.
    """
    if root is None:
        raise MediaError(FILES_DISABLED)
    names = _relative_parts(url, root)
    try:
        content = _open_without_links(root, names, max_bytes)
    except (OSError, ValueError):
        raise MediaError(NOT_UNDER_ROOT) from None
    if len(content) > max_bytes:
        raise MediaError(FILE_TOO_LARGE)
    if not content:
        raise MediaError(EMPTY)
    return content


def _relative_parts(url: str, root: Path) -> list[bytes]:
    """Return the names that lead from the root to the file.

    Raises:
        MediaError: The path does not lie below it by its names alone.
    """
    prefix, encoded = url[:8], url[8:]
    names = unquote_to_bytes(encoded).split(b"/")
    bases = [os.fsencode(part) for part in root.parts[1:]]
    below = names[len(bases) :]
    if prefix.lower() != "file:///" or names[: len(bases)] != bases or not below:
        raise MediaError(NOT_UNDER_ROOT)
    if any(name in (b"", b".", b"..") or b"\0" in name or b"\\" in name for name in below):
        raise MediaError(NOT_UNDER_ROOT)
    return below


def _open_without_links(root: Path, names: list[bytes], max_bytes: int) -> bytes:
    """Read a file by the names that lead to it, up to one byte more than allowed.

    Raises:
        OSError: A step is a link, is missing or may not be read.
        ValueError: It is no plain file.
    """
    *folders, last = names
    at = os.open(root, _OPEN_FLAGS | os.O_DIRECTORY)
    try:
        for folder in folders:
            below = os.open(folder, _OPEN_FLAGS | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        file = os.open(
            last, _OPEN_FLAGS | os.O_NONBLOCK, dir_fd=at
        )  # a pipe would else wait for a writer
    finally:
        os.close(at)
    with os.fdopen(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError("no plain file")
        return opened.read(max_bytes + 1)
