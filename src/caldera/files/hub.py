"""Names of the Hugging Face Hub, and snapshots of its repositories in its own cache.

`huggingface_hub` gives the cache and the API, with their environment variables (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT,
HF_TOKEN, HF_HUB_OFFLINE, proxies). It is imported only when a name is used.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from os.path import lexists
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from caldera.errors import OutputError, UsageError
from caldera.files.atomic import free_bytes, translate_os_errors, write_atomic
from caldera.files.hub_errors import HubError, HubUnreachableError, Retries, hub_errors
from caldera.files.hub_transfer import RemoteFile, fetch
from caldera.progress import Progress

log = logging.getLogger(__name__)

RepoType = Literal["model", "dataset"]

_MB = 1_000_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REPO = r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
_REVISION = r"(?P<revision>\w[\w./-]*)"
_NAME = re.compile(rf"(?!.*\.\.){_REPO}(?:@{_REVISION})?")
_ADDRESS = re.compile(
    r"(?!.*\.\.)(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:(?P<kind>model|dataset|space)s/)?"
    f"{_REPO}(?:@{_REVISION}|/tree/{_REVISION.replace('revision', 'tree')})?/?"
)
_FILE_SUFFIXES = re.compile(
    r"\.(bin|ckpt|csv|gguf|jinja|jsonl?|onnx|parquet|pth?|py|safetensors|tsv|txt|yaml|zip)",
    re.IGNORECASE,
)
"""Suffixes of files; a text that ends in one is a path."""


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


@dataclass(frozen=True, slots=True)
class HubFile:
    """File in a repository."""

    path: str
    size: int
    digest: str = ""
    """SHA-256 of the content, or git's SHA-1 of a small file; empty if the list is that of the cache."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Chosen files of a repository at one commit."""

    name: HubName
    commit: str
    files: tuple[HubFile, ...]

    @property
    def folder(self) -> Path:
        """Folder of the files in the cache."""
        return _storage(self.name) / "snapshots" / self.commit

    @property
    def pinned(self) -> str:
        """Name with the commit, ORG/NAME@COMMIT."""
        return f"{self.name.repo_id}@{self.commit}"


Choose = Callable[[HubName, Sequence[HubFile]], Sequence[HubFile]]
"""Chooses the files of a repository to download, in this order; raises HubError if files are missing."""


def parse_hub_name(text: str, repo_type: RepoType = "model") -> HubName | None:
    """Return the Hub name that a text means; None if it is a path.

    A text is a path if it exists, if its first part is a folder here, or if it ends like a file. The addresses
    `hf://ORG/NAME` and `https://huggingface.co/ORG/NAME` are never paths.

    Raises:
        UsageError: It is the address of another type of repository.
    """
    if address := _ADDRESS.fullmatch(text):
        if address["kind"] not in (None, repo_type):
            raise UsageError(
                f"{text} is the address of a {address['kind']}; needed is a {repo_type}"
            )
        return HubName(address["repo"], address["revision"] or address["tree"], repo_type)
    name = _NAME.fullmatch(text)
    if name is None or lexists(text) or Path(name["repo"]).parent.is_dir():
        return None
    if _FILE_SUFFIXES.fullmatch(Path(name["repo"]).suffix):
        return None
    return HubName(name["repo"], name["revision"], repo_type)


def hub_source(folder: Path) -> str | None:
    """Return ORG/NAME@COMMIT of a folder that is a snapshot in a Hub cache; None for any other."""
    kind, *parts = folder.parent.parent.name.split("--")
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    if not is_snapshot or kind not in ("models", "datasets") or len(parts) != 2:
        return None
    return f"{'/'.join(parts)}@{folder.name}"


def find_snapshot(name: HubName, choose: Choose) -> Snapshot:
    """Return the files to use of a repository at its current commit; only the list of its files is downloaded.

    Offline, or if the Hub cannot be reached, it is the complete snapshot in the cache.

    Args:
        name: The repository.
        choose: Chooses from its files.

    Raises:
        HubError: There is no such repository or revision, it must not be read, or it lacks files.
    """
    from huggingface_hub import constants

    try:
        cached = _cached_snapshot(name, choose)
    except OSError as error:
        raise HubError(
            f"cannot read the cache {_cache()}: {error.strerror}; check HF_HUB_CACHE"
        ) from None
    if cached is not None and cached.commit == name.revision:
        return cached
    if constants.is_offline_mode():
        if cached is None:
            raise HubError(
                f"{name} is not, or not completely, in the cache {constants.HF_HUB_CACHE}, and --offline or "
                "HF_HUB_OFFLINE forbids to ask the Hub; run once without"
            )
        return cached
    try:
        with hub_errors(f"read {name}", name.repo_id, name.repo_type):
            return _listed_snapshot(name, choose)
    except HubUnreachableError as error:
        if cached is None:
            raise
        log.warning("%s; using the copy in the cache, %s", error, cached.pinned)
        return cached


def download(snapshots: Sequence[Snapshot], progress: Progress) -> None:
    """Download what the cache lacks of snapshots, after logging its size; an interrupted download is resumed.

    Args:
        snapshots: From `find_snapshot`.
        progress: Reports the megabytes.

    Raises:
        HubError: A file cannot be read, or is not what the Hub lists.
        OutputError: There is too little space on the disk.
    """
    missing = {snapshot: _missing_files(snapshot) for snapshot in dict.fromkeys(snapshots)}
    _check_space(missing)
    for snapshot, files in missing.items():
        if files:
            _fetch_all(snapshot, files, progress)
        ref = _ref(snapshot.name)
        if snapshot.commit != ref.name and (
            not ref.is_file() or ref.read_text(errors="replace") != snapshot.commit
        ):
            # Only now does the name mean this commit offline: an older complete one was usable until here.
            write_atomic(ref, snapshot.commit)


def _missing_files(snapshot: Snapshot) -> list[RemoteFile]:
    """Return the files that the cache lacks."""
    from huggingface_hub import hf_hub_url

    name, storage = snapshot.name, _storage(snapshot.name)
    return [
        RemoteFile(
            hf_hub_url(
                name.repo_id,
                file.path,
                repo_type=name.repo_type,
                revision=snapshot.commit,
            ),
            file.size,
            file.digest,
            title=f"{file.path} of {snapshot.pinned}",
            blob=storage / "blobs" / file.digest,
            link=snapshot.folder / file.path,
        )
        for file in snapshot.files
        if not (snapshot.folder / file.path).is_file()
    ]


def _check_space(missing: dict[Snapshot, list[RemoteFile]]) -> None:
    """Log the sizes of downloads and the free space; raise OutputError if they do not fit."""
    total, cache = 0, _cache()
    free = free_bytes(cache)
    for snapshot, files in missing.items():
        size = sum(file.size - file.num_present for file in files)
        total += size
        if files:
            text = "%s: %d files to download, %s; %s are free in %s"
            log.info(
                text, snapshot.pinned, len(files), _format_size(size), _format_size(free), cache
            )
    if total > free:
        raise OutputError(
            f"cannot download {_format_size(total)}: {_format_size(free)} are free in {cache}; free space, or set "
            "HF_HUB_CACHE to a folder on another disk"
        )


def _fetch_all(snapshot: Snapshot, files: Sequence[RemoteFile], progress: Progress) -> None:
    """Download files in their order."""
    total = sum(file.size for file in files)
    num_bytes = sum(file.num_present for file in files)
    name = snapshot.name
    task = progress.task(f"MB of {name}", -(-total // _MB), num_bytes // _MB)
    in_words = hub_errors(f"download {name}", name.repo_id, name.repo_type)
    # Errors of responses are OSErrors too, so they are translated first.
    with translate_os_errors(_cache()), in_words, task as advance:

        def on_bytes(size: int) -> None:
            nonlocal num_bytes
            before, num_bytes = num_bytes, num_bytes + size
            if steps := num_bytes // _MB - before // _MB:
                advance(steps)

        for file in files:
            fetch(file, on_bytes)


def _listed_snapshot(name: HubName, choose: Choose) -> Snapshot:
    """Return the chosen files at the current commit, as the Hub lists them."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    api, retries, info = HfApi(library_name="caldera"), Retries(), None
    while info is None:
        try:
            info = api.repo_info(
                name.repo_id,
                repo_type=name.repo_type,
                revision=name.revision,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                files_metadata=True,
            )
        except HfHubHTTPError as error:
            retries.wait(error)
        except (JSONDecodeError, LookupError, TypeError, AttributeError):
            break
    commit = getattr(info, "sha", None)
    files = [_listed_file(entry) for entry in getattr(info, "siblings", None) or ()]
    if not _COMMIT.fullmatch(str(commit)) or None in files:
        raise HubError(
            f"{constants.ENDPOINT} does not answer as the Hub does when asked for {name}; check HF_ENDPOINT"
        )
    return Snapshot(name, str(commit), tuple(choose(name, [file for file in files if file])))


def _listed_file(entry: Any) -> HubFile | None:  # noqa: ANN401 - the class differs between releases
    """Return a file of the Hub's list; None if the entry is invalid, or its path leaves the repository."""
    lfs, path = entry.lfs, PurePosixPath(entry.rfilename)
    digest = str(lfs.sha256 if lfs else entry.blob_id)
    is_inside = not path.is_absolute() and ".." not in path.parts and "\\" not in entry.rfilename
    if not is_inside or type(entry.size) is not int or not _DIGEST.fullmatch(digest):
        return None
    return HubFile(str(path), entry.size, digest)


def _cached_snapshot(name: HubName, choose: Choose) -> Snapshot | None:
    """Return the snapshot in the cache, if it has all files that are needed."""
    ref = _ref(name)
    commit = (
        ref.name
        if _COMMIT.fullmatch(ref.name)
        else ref.read_text(errors="replace")
        if ref.is_file()
        else ""
    )
    snapshot = Snapshot(name, commit.strip(), ())
    if not _COMMIT.fullmatch(snapshot.commit) or not snapshot.folder.is_dir():
        return None
    files = [
        HubFile(path.relative_to(snapshot.folder).as_posix(), path.stat().st_size)
        for path in sorted(snapshot.folder.rglob("*"))
        if path.is_file()
    ]
    try:
        return Snapshot(name, snapshot.commit, tuple(choose(name, files)))
    except HubError:
        return None


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _storage(name: HubName) -> Path:
    """Return the folder of a repository in the cache."""
    return _cache() / f"{name.repo_type}s--{name.repo_id.replace('/', '--')}"


def _ref(name: HubName) -> Path:
    """Return the file with the commit of a branch or tag."""
    return _storage(name) / "refs" / (name.revision or "main")


def _format_size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
