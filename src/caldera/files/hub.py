"""Names of the Hugging Face Hub, and snapshots of its repositories in its own cache.

`huggingface_hub` gives the cache and the API, with their environment variables (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT,
HF_TOKEN, HF_HUB_OFFLINE, proxies). It is imported only when a name is used.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os.path import lexists
from pathlib import Path

from caldera import __version__
from caldera.errors import OutputError, UsageError
from caldera.files.atomic import free_bytes, translate_os_errors, write_atomic
from caldera.files.hub_cache import (
    COMMIT,
    HubFile,
    HubName,
    Listing,
    RepoType,
    cache_folder,
    cached_listing,
    has_size,
    listed_file,
    write_list,
)
from caldera.files.hub_errors import (
    HubError,
    HubUnreachableError,
    Retries,
    hub_errors,
    reading_answer,
)
from caldera.files.hub_transfer import RemoteFile, fetch, link
from caldera.progress import Progress

log = logging.getLogger(__name__)

_MB = 1_000_000
_MAX_READ = 100 * _MB
"""Largest file that is read to choose others."""

_OFFLINE = "and --offline or HF_HUB_OFFLINE forbids to ask the Hub; run once without"
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
class Snapshot:
    """Chosen files of a repository at one commit."""

    listing: Listing
    files: tuple[HubFile, ...]

    @property
    def folder(self) -> Path:
        """Folder of the files in the cache."""
        return self.listing.folder

    @property
    def commit(self) -> str:
        """The commit."""
        return self.listing.commit

    @property
    def pinned(self) -> str:
        """Name with the commit, ORG/NAME@COMMIT."""
        return self.listing.pinned

    def missing(self) -> list[HubFile]:
        """Return the files that the snapshot in the cache lacks, or has with another size."""
        return [file for file in self.files if not has_size(self.folder / file.path, file.size)]


Read = Callable[[HubFile], bytes]
"""Returns the content of a small file that is needed to choose others; raises HubError if it cannot be read."""

Choose = Callable[[Listing, Read], Sequence[HubFile]]
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
    is_snapshot = folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name)
    if not is_snapshot or kind not in ("models", "datasets") or len(parts) != 2:
        return None
    return f"{'/'.join(parts)}@{folder.name}"


def find_snapshot(name: HubName, choose: Choose) -> Snapshot:
    """Return the files to use of a repository at its current commit.

    Only the list of its files is downloaded, and what `choose` reads; of a commit whose list is in the cache, nothing.
    Offline, or if the Hub cannot be reached, it is the complete snapshot in the cache.

    Args:
        name: The repository.
        choose: Chooses from its files.

    Raises:
        HubError: There is no such repository or revision, it must not be read, or it lacks files.
    """
    from huggingface_hub import constants

    cached = cached_listing(name)
    if constants.is_offline_mode():
        return _cached_snapshot(name, cached, choose)
    if cached is not None and cached.is_complete and cached.commit == name.revision:
        listing = cached
    else:
        try:
            with hub_errors(f"read {name}", name.repo_id, name.repo_type):
                listing = _ask(name)
        except HubUnreachableError as error:
            try:
                snapshot = _cached_snapshot(name, cached, choose)
            except HubError:
                raise error from None
            log.warning("%s; using the copy in the cache, %s", error, snapshot.pinned)
            return snapshot
    return Snapshot(listing, tuple(choose(listing, partial(_read, listing))))


def _cached_snapshot(name: HubName, cached: Listing | None, choose: Choose) -> Snapshot:
    """Return the snapshot in the cache; raise HubError if it lacks files, or is not known to have all."""
    if cached is None:
        raise HubError(f"{name} is not in the cache {cache_folder()}, {_OFFLINE}")
    if cached.is_complete:
        snapshot = Snapshot(cached, tuple(choose(cached, partial(_read_cached, cached))))
        if missing := snapshot.missing():
            raise HubError(
                f"{name} is not completely in the cache {cache_folder()}: {len(missing)} of "
                f"{len(snapshot.files)} files are missing, such as {missing[0].path}, {_OFFLINE}"
            )
        return snapshot
    unknown = (
        f"the cache {cache_folder()} has files of {cached.pinned}, but not the Hub's list of them"
    )
    # A model that lacks a file is rejected when it is loaded; a data set would only be smaller.
    if name.repo_type == "dataset":
        raise HubError(f"{unknown}: whether they are all is not known, {_OFFLINE}")
    try:
        files = tuple(choose(cached, partial(_read_cached, cached)))
    except HubError as error:
        raise HubError(f"{unknown}; of these alone, {error}; {_OFFLINE}") from None
    log.warning("%s: files besides these, such as a tokenizer, may be missing", unknown)
    return Snapshot(cached, files)


def download(
    snapshots: Sequence[Snapshot],
    progress: Progress,
    before_file: Callable[[Path], None] = lambda path: None,
) -> None:
    """Download what the cache lacks of snapshots, after logging its size; an interrupted download is resumed.

    Args:
        snapshots: From `find_snapshot`.
        progress: Reports the megabytes.
        before_file: Called with the place of each file before it is downloaded; its error ends the download.

    Raises:
        HubError: A file cannot be read, or is not what the Hub lists.
        OutputError: There is too little space on the disk.
    """
    missing = {
        snapshot: [_remote_file(snapshot.listing, file) for file in snapshot.missing()]
        for snapshot in dict.fromkeys(snapshots)
    }
    _check_space(missing)
    for snapshot, files in missing.items():
        # What is chosen from this list, now or later, is then known to be complete or not, also offline.
        write_list(snapshot.listing)
        if files:
            _fetch_all(snapshot.listing, files, progress, before_file)
        ref = snapshot.listing.name.ref
        if snapshot.commit != ref.name and (
            not ref.is_file() or ref.read_text(errors="replace") != snapshot.commit
        ):
            # Only now does the name mean this commit offline: an older complete one was usable until here.
            write_atomic(ref, snapshot.commit)


def _remote_file(listing: Listing, file: HubFile) -> RemoteFile:
    """Return where a file is, and its place in the cache."""
    from huggingface_hub import hf_hub_url

    name = listing.name
    return RemoteFile(
        hf_hub_url(name.repo_id, file.path, repo_type=name.repo_type, revision=listing.commit),
        file.size,
        file.digest,
        title=f"{file.path} of {listing.pinned}",
        blob=name.storage / "blobs" / file.digest,
        link=listing.folder / file.path,
    )


def _check_space(missing: dict[Snapshot, list[RemoteFile]]) -> None:
    """Log the sizes of downloads and the free space; raise OutputError if they do not fit."""
    total, cache = 0, cache_folder()
    free = free_bytes(cache)
    for snapshot, files in missing.items():
        size = sum(file.size - file.num_present for file in files)
        total += size
        if files:
            text = "%s: %d files to download, %s; %s are free in %s"
            log.info(
                text,
                snapshot.pinned,
                len(files),
                _format_size(size),
                _format_size(free),
                cache,
            )
    if total > free:
        raise OutputError(
            f"cannot download {_format_size(total)}: {_format_size(free)} are free in {cache}; free space, or set "
            "HF_HUB_CACHE to a folder on another disk"
        )


def _fetch_all(
    listing: Listing,
    files: Sequence[RemoteFile],
    progress: Progress,
    before_file: Callable[[Path], None],
) -> None:
    """Download files in their order."""
    total = sum(file.size for file in files)
    num_bytes = sum(file.num_present for file in files)
    name = listing.name
    task = progress.task(f"MB of {name}", -(-total // _MB), num_bytes // _MB)
    with _download_errors(name), task as advance:

        def on_bytes(size: int) -> None:
            nonlocal num_bytes
            before, num_bytes = num_bytes, num_bytes + size
            if steps := num_bytes // _MB - before // _MB:
                advance(steps)

        for file in files:
            before_file(file.link)
            fetch(file, on_bytes)
            link(file)


@contextmanager
def _download_errors(name: HubName) -> Iterator[None]:
    """Turn errors of a download into those that state what to do."""
    # Errors of responses are OSErrors too, so they are translated first.
    with (
        translate_os_errors(cache_folder()),
        hub_errors(f"download {name}", name.repo_id, name.repo_type),
    ):
        yield


def _read(listing: Listing, file: HubFile) -> bytes:
    """Return the content of a small file, which is downloaded if the cache lacks it; it is no part of the snapshot."""
    if listing.find(file) is None:
        if file.size > _MAX_READ:
            raise HubError(
                f"{file.path} of {listing.pinned} has {_format_size(file.size)}, needed are at most "
                f"{_format_size(_MAX_READ)}; choose another revision"
            )
        with _download_errors(listing.name):
            fetch(_remote_file(listing, file), on_bytes=lambda size: None)
    return _read_cached(listing, file)


def _read_cached(listing: Listing, file: HubFile) -> bytes:
    """Return the content of a file in the cache."""
    path = listing.find(file)
    if path is None:
        raise HubError(f"{file.path} of {listing.pinned} is not in the cache, {_OFFLINE}")
    return path.read_bytes()


def _ask(name: HubName) -> Listing:
    """Return the files at the current commit, as the Hub lists them."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    api, retries, info = HfApi(library_name="caldera", library_version=__version__), Retries(), None
    with reading_answer(str(name)):
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
        commit = info.sha or ""
        if not COMMIT.fullmatch(commit):
            raise ValueError(commit)
        files = (
            listed_file(
                entry.rfilename, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None
            )
            for entry in getattr(info, "siblings", None) or ()
        )
        return Listing(name, commit, tuple(files))


def _format_size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
