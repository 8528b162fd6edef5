"""Cache of `huggingface_hub`: its folders, and the list of the files of each commit.

A snapshot has the files that somebody asked for, and may lack others of the repository. All are in the list
`trees/COMMIT.json`, a file of `huggingface_hub` 2, which caldera reads and writes too; a commit never changes.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from caldera.files.atomic import translate_os_errors, write_json
from caldera.files.hub_errors import NOT_THE_HUBS, HubError

RepoType = Literal["model", "dataset"]

COMMIT = re.compile(r"[0-9a-f]{40}")

_FORMAT_VERSION = 1
"""Version of the format of lists in `huggingface_hub`."""

_SHA1, _SHA256 = COMMIT, re.compile(r"[0-9a-f]{64}")
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]")
"""Characters that no path of a file has: controls, halves of surrogate pairs, and the separator of Windows."""

_MAX_PATH, _MAX_PART = 1024, 255
"""Bytes of a path in a repository, and of each part, which file systems limit."""


@dataclass(frozen=True, slots=True)
class HubName:
    """Name of a repository on the Hub, `ORG/NAME[@REVISION]`."""

    repo_id: str
    revision: str | None = None
    """Branch, tag or commit; the default branch if None."""

    repo_type: RepoType = "model"

    def __str__(self) -> str:
        """Return the name as users write it."""
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"

    @property
    def storage(self) -> Path:
        """Folder of the repository in the cache."""
        return cache_folder() / f"{self.repo_type}s--{self.repo_id.replace('/', '--')}"

    @property
    def ref(self) -> Path:
        """File with the commit of a branch or tag."""
        return self.storage / "refs" / (self.revision or "main")


@dataclass(frozen=True, slots=True)
class HubFile:
    """File in a repository."""

    path: str
    size: int
    blob_id: str = ""
    """SHA-1 of git, of the content or of the pointer to it; empty if the list is that of the cache."""

    sha256: str | None = None
    """SHA-256 of the content, if it is in git-lfs."""

    @property
    def digest(self) -> str:
        """Digest of the content, and name of its blob in the cache."""
        return self.sha256 or self.blob_id


@dataclass(frozen=True, slots=True)
class Listing:
    """Files of a repository at one commit."""

    name: HubName
    commit: str
    files: tuple[HubFile, ...]
    is_complete: bool = True
    """Whether the Hub lists these files; if not, they are those in the cache, and there may be more."""

    @property
    def folder(self) -> Path:
        """Folder of the snapshot in the cache."""
        return self.name.storage / "snapshots" / self.commit

    @property
    def pinned(self) -> str:
        """Name with the commit, ORG/NAME@COMMIT."""
        return f"{self.name.repo_id}@{self.commit}"

    def find(self, file: HubFile) -> Path | None:
        """Return a path of a file's content in the cache; None if it is not there, or has another size."""
        blob = (self.name.storage / "blobs" / file.digest,) if file.digest else ()
        paths = (self.folder / file.path, *blob)
        return next((path for path in paths if has_size(path, file.size)), None)


def cache_folder() -> Path:
    """Return the folder of the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def has_size(path: Path, size: int) -> bool:
    """Return whether a path is a file, or a link to one, of this size in bytes."""
    return path.is_file() and path.stat().st_size == size


def listed_file(path: object, size: object, blob_id: object, sha256: object = None) -> HubFile:
    """Return a file of a list.

    Raises:
        ValueError: The list is not one of the Hub.
        HubError: The path leaves the repository, or no file system takes it.
    """
    if not isinstance(path, str) or type(size) is not int or not 0 <= size < 2**63:
        raise ValueError(path)
    if not _SHA1.fullmatch(str(blob_id)) or not (sha256 is None or _SHA256.fullmatch(str(sha256))):
        raise ValueError(blob_id)
    parts = PurePosixPath(path).parts
    if _UNUSABLE.search(path) or not parts or parts[0] == "/" or ".." in parts or _is_long(parts):
        quoted = ascii(path) if len(path) <= _MAX_PART else f"{path[:_MAX_PART]!a}..."
        raise HubError(
            f"the Hub lists a file {quoted}, which is no path for a file here; check HF_ENDPOINT, or choose another "
            "revision"
        )
    return HubFile("/".join(parts), size, str(blob_id), None if sha256 is None else str(sha256))


def _is_long(parts: tuple[str, ...]) -> bool:
    sizes = [len(part.encode()) for part in parts]
    return max(sizes) > _MAX_PART or sum(sizes) + len(sizes) > _MAX_PATH


def cached_listing(name: HubName) -> Listing | None:
    """Return the files of a repository's commit, without a request; None if it is not in the cache.

    Raises:
        HubError: The cache cannot be read.
    """
    try:
        commit = _cached_commit(name)
        folder = Listing(name, commit, ()).folder
        if not COMMIT.fullmatch(commit) or not folder.is_dir():
            return None
        listed = _read_list(name, commit)
        files = tuple(_files_in(folder)) if listed is None else listed
        return Listing(name, commit, files, is_complete=listed is not None)
    except OSError as error:
        raise HubError(
            f"cannot read the cache {cache_folder()}: {error.strerror}; check HF_HUB_CACHE"
        ) from None


def _cached_commit(name: HubName) -> str:
    """Return the commit that a name has in the cache; another text if it has none."""
    if name.revision and COMMIT.fullmatch(name.revision):
        return name.revision
    return name.ref.read_text(errors="replace").strip() if name.ref.is_file() else ""


def _files_in(folder: Path) -> Iterator[HubFile]:
    """Yield the files of a snapshot."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield HubFile(path.relative_to(folder).as_posix(), path.stat().st_size)


def _list_file(name: HubName, commit: str) -> Path:
    return name.storage / "trees" / f"{commit}.json"


def _read_list(name: HubName, commit: str) -> tuple[HubFile, ...] | None:
    """Return the files that the Hub lists at a commit; None if that is not known, or cannot be understood."""
    try:
        stored = json.loads(_list_file(name, commit).read_bytes())
        if stored["format_version"] != _FORMAT_VERSION:
            return None
        return tuple(
            listed_file(path, entry["size"], entry["blob_id"], entry.get("lfs_sha256"))
            for path, entry in stored["files"].items()
        )
    except (FileNotFoundError, HubError, *NOT_THE_HUBS):
        return None


def write_list(listing: Listing) -> None:
    """Store the files that the Hub lists, unless they are stored.

    Raises:
        OutputError: The cache cannot be written.
    """
    with translate_os_errors(cache_folder()):
        if not listing.is_complete or _read_list(listing.name, listing.commit) is not None:
            return
        entries = {file.path: _to_entry(file) for file in listing.files}
        path = _list_file(listing.name, listing.commit)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format_version": _FORMAT_VERSION, "files": entries})


def _to_entry(file: HubFile) -> dict[str, Any]:
    """Return a file in the format of `huggingface_hub`."""
    lfs = {} if file.sha256 is None else {"lfs_sha256": file.sha256, "lfs_size": file.size}
    return {"size": file.size, "blob_id": file.blob_id, **lfs}
