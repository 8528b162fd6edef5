"""Transfer of one file of the Hugging Face Hub into its cache: resumed where it ended, and checked by digest.

`huggingface_hub` begins a file again after every interruption, and does not compare the content with the digest that
the Hub lists. The layout is that of its cache: content in `blobs/DIGEST`, links to it in `snapshots/COMMIT`.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from io import BufferedRandom
from pathlib import Path
from typing import Any

from caldera import __version__
from caldera.files.hub_cache import has_size
from caldera.files.hub_errors import HubError, HubUnreachableError, Retries, http_error

_SHA256_LENGTH = 64
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_RANGE_START = re.compile(r"bytes (\d{1,18})-")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """File of the Hub, and its place in the cache."""

    url: str
    size: int
    digest: str
    """SHA-256 of the content, or git's SHA-1 of a small file."""

    title: str
    """Path and repository, for messages."""

    blob: Path
    """Place of the content."""

    link: Path
    """Place in the snapshot."""

    @property
    def partial(self) -> Path:
        """Place of the content until it is complete; the suffix is that of `huggingface_hub`, whose tools remove it."""
        return self.blob.with_name(f"{self.blob.name}.caldera.incomplete")

    @property
    def num_present(self) -> int:
        """Bytes that are in the cache."""
        if has_size(self.blob, self.size):
            return self.size
        return min(self.size, self.partial.stat().st_size) if self.partial.is_file() else 0


def fetch(file: RemoteFile, on_bytes: Callable[[int], None]) -> None:
    """Download the content of a file, or the rest of it; of two processes, the second waits for the first.

    Args:
        file: The file.
        on_bytes: Called with the number of bytes of each chunk; negative if the server begins again.

    Raises:
        HubError: The content is not what the Hub lists.
        HTTPError: The file cannot be read.
        OSError: The disk is full, or the cache cannot be written.
    """
    file.blob.parent.mkdir(parents=True, exist_ok=True)
    with file.partial.open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if has_size(file.blob, file.size):
            file.partial.unlink(missing_ok=True)
            return
        _complete(file, stream, on_bytes)
        stream.flush()
        _check_content(file, stream)
        file.partial.replace(file.blob)


def link(file: RemoteFile) -> None:
    """Place a link to the content in the snapshot, in place of what is there and has another size.

    Raises:
        HubError: There is a folder, or the link leads nowhere.
        OSError: The cache cannot be written.
    """
    folder = file.link.parent
    folder.mkdir(parents=True, exist_ok=True)
    if has_size(file.link, file.size):
        return
    if file.link.is_dir():
        raise HubError(f"{file.link} is a folder in place of a file; remove it, and run again")
    file.link.unlink(missing_ok=True)
    # A link is relative to where its folder really is.
    blob = file.blob.parent.resolve() / file.blob.name
    with suppress(FileExistsError):
        file.link.symlink_to(os.path.relpath(blob, folder.resolve()))
    if not has_size(file.link, file.size):
        raise HubError(
            f"{file.link} does not lead to the content of {file.title}; remove {folder}, and run again"
        )


def _complete(file: RemoteFile, stream: BufferedRandom, on_bytes: Callable[[int], None]) -> None:
    """Append the missing bytes, in as many requests as it takes."""
    # The process that held the lock may have written since the file was opened.
    retries, longest = Retries(), stream.seek(0, os.SEEK_END)
    while stream.tell() < file.size:
        failure: Exception = HubUnreachableError(
            f"cannot download {file.title}: the server sends {longest:,} of its {file.size:,} bytes; run again later"
        )
        try:
            for size in _receive(file, stream):
                on_bytes(size)
        except http_error() as error:
            failure = error
        if stream.tell() > longest:
            retries, longest = Retries(), stream.tell()
        if stream.tell() < file.size:
            _reject_pointer(file, stream)
            retries.wait(failure)


def _receive(file: RemoteFile, stream: BufferedRandom) -> Iterator[int]:
    """Write the response to one request, and yield the number of bytes of each chunk."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined] # not in an __all__
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    # A compressed response could not be resumed.
    headers = {
        **build_hf_headers(library_name="caldera", library_version=__version__),
        "Accept-Encoding": "identity",
    }
    if start := stream.tell():
        headers["Range"] = f"bytes={start}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # A redirect to another host is followed without the token.
    with get_session().stream("GET", file.url, headers=headers, timeout=timeout) as response:
        if not start or response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            hf_raise_for_status(response)
        first = _first_byte(response)
        if first != start:
            _empty(stream)
            yield -start
            if first != 0:
                return
        # Chunks as they arrive: what is gathered to a larger one is lost when a connection breaks.
        for chunk in response.iter_bytes():
            stream.write(chunk)
            yield len(chunk)
            if stream.tell() > file.size:
                return


def _first_byte(response: Any) -> int | None:  # noqa: ANN401 - of either HTTP library
    """Return the position in the file at which a response begins; None if it has no part of the file."""
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return 0 if response.is_success else None
    match = _RANGE_START.match(response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _check_content(file: RemoteFile, stream: BufferedRandom) -> None:
    """Raise HubError, and remove the content, if it is not what the Hub lists, or only a pointer to it."""
    _reject_pointer(file, stream)
    is_sha256 = len(file.digest) == _SHA256_LENGTH
    stream.seek(0)
    digest = hashlib.file_digest(
        stream,
        hashlib.sha256 if is_sha256 else lambda: hashlib.sha1(b"blob %d\0" % file.size),  # as git's
    ).hexdigest()
    if digest != file.digest:
        _empty(stream)
        raise HubError(
            f"{file.title} has the digest {digest}, the Hub lists {file.digest}; it was removed: run again, and if "
            "that repeats, a proxy or mirror changes files"
        )


def _reject_pointer(file: RemoteFile, stream: BufferedRandom) -> None:
    """Raise HubError if the content is a pointer of git-lfs."""
    stream.seek(0)
    is_pointer = stream.read(len(_LFS_POINTER)) == _LFS_POINTER
    stream.seek(0, os.SEEK_END)
    if is_pointer:
        _empty(stream)
        raise HubError(
            f"{file.title} is a git-lfs pointer in place of the content: it was uploaded or mirrored without git-lfs; "
            "use another copy of the repository"
        )


def _empty(stream: BufferedRandom) -> None:
    """Remove the content."""
    stream.seek(0)
    stream.truncate()
