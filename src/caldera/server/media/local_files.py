"""Files below the server's media folder, named by `file:` URLs; nothing outside the folder is ever opened."""

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
    """Read a file below `root`, opening each folder on the way by itself and following no link.

    Args:
        url: `file:///` and an absolute path, percent-encoded.
        root: The media folder as an absolute path without links; None if there is none.
        max_bytes: Limit on the file's length.

    Raises:
        MediaError: There is no such regular file below the folder, or it is too long or empty.
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
    """Return the path parts from the root to the file; raise MediaError if the path leaves the root."""
    prefix, encoded = url[:8], url[8:]
    names = unquote_to_bytes(encoded).split(b"/")
    root_names = [os.fsencode(part) for part in root.parts[1:]]
    below = names[len(root_names) :]
    if prefix.lower() != "file:///" or names[: len(root_names)] != root_names or not below:
        raise MediaError(NOT_UNDER_ROOT)
    if any(name in (b"", b".", b"..") or b"\0" in name or b"\\" in name for name in below):
        raise MediaError(NOT_UNDER_ROOT)
    return below


def _open_without_links(root: Path, names: list[bytes], max_bytes: int) -> bytes:
    """Read up to `max_bytes` + 1 bytes of the file at `names` below `root`."""
    *folders, file_name = names
    folder_fd = os.open(root, _OPEN_FLAGS | os.O_DIRECTORY)
    try:
        for folder in folders:
            next_fd = os.open(folder, _OPEN_FLAGS | os.O_DIRECTORY, dir_fd=folder_fd)
            os.close(folder_fd)
            folder_fd = next_fd
        # without O_NONBLOCK, opening a pipe would wait for a writer
        file_fd = os.open(file_name, _OPEN_FLAGS | os.O_NONBLOCK, dir_fd=folder_fd)
    finally:
        os.close(folder_fd)
    with os.fdopen(file_fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(file_fd).st_mode):
            raise ValueError("not a regular file")
        return file.read(max_bytes + 1)
