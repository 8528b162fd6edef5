"""Data sets named on the Hugging Face Hub: `ORG/NAME[@REVISION][:FILE]`, of which one file or folder is imported."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from caldera.conversation.arrow_files import files_of_split
from caldera.datasets.origins import HubOrigin
from caldera.errors import InputError
from caldera.files.hub import Read, download, find_snapshot, parse_hub_name
from caldera.files.hub_cache import HubFile, HubName, Listing
from caldera.files.hub_errors import HubError
from caldera.progress import Progress

log = logging.getLogger(__name__)

_TEXT = re.compile(r"(?P<name>(?:(?:hf|https?):)?[^:]+)(?::(?P<file>.*))?")
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".JPG", ".PNG")
_TABLES = (".parquet", ".arrow")
_FILES = {
    "llava": (".json", ".jsonl", *_TABLES),
    "captions": (".csv", ".tsv", ".txt", ".json", ".jsonl"),
}
"""Suffixes of the files that an importer of one file reads; tables of a folder are read together."""

_FOLDERS = {
    "vqa": (".json",),
    "scienceqa": (".json",),
    "coco": (".json", *_IMAGES),
    "folders": (".csv", ".json", *_IMAGES),
}
"""Suffixes of the files in a folder that an importer reads."""

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_DESCRIPTIONS = ("dataset_infos.json", "dataset_dict.json", "dataset_info.json", "state.json")
"""Files that the `datasets` library writes next to the data."""

_MAX_LISTED = 20
"""Candidates that a message lists."""


@dataclass(frozen=True, slots=True)
class HubDataset:
    """Data set on the Hub, and what to take of it."""

    name: HubName
    file: str
    """Path of a file or folder in the repository; empty if the user named none."""

    def choose(
        self, files: Sequence[HubFile], kind: str, split: str | None, *, with_images: bool
    ) -> tuple[str, list[HubFile]]:
        """Return the file or folder to import, and the files to download for it.

        Raises:
            HubError: There is none, or there are several.
        """
        files = [file for file in files if PurePosixPath(file.path).name not in _DESCRIPTIONS]
        if kind in _FOLDERS:
            chosen = [
                file for file in _below(files, self.file) if file.path.endswith(_FOLDERS[kind])
            ]
            if not chosen:
                raise HubError(
                    f"{self} has no file that `data import {kind}` reads; {_listing(files)}"
                )
            return self.file, chosen
        candidates = _candidates(files, _FILES[kind])
        for path in [path for path in candidates if self.file and not _is_below(path, self.file)]:
            del candidates[path]
        if len(candidates) != 1:
            state = (
                "several data files" if candidates else f"no file that `data import {kind}` reads"
            )
            advice = f"; choose one: {self.name}:FILE" if candidates else ""
            raise HubError(f"{self} has {state}{advice}; {_listing(files, candidates)}")
        [(path, chosen)] = candidates.items()
        if chosen[0].path.endswith(_TABLES):
            chosen = self._of_split(chosen, split)
        elif with_images:
            folder = str(PurePosixPath(path).parent)
            chosen += [file for file in _below(files, folder) if file.path.endswith(_IMAGES)]
        return path, chosen

    def _of_split(self, tables: list[HubFile], split: str | None) -> list[HubFile]:
        """Return the tables of one split."""
        by_path = {PurePosixPath(file.path): file for file in tables}
        try:
            return [by_path[path] for path in files_of_split([*by_path], split, f"{self} has")]
        except InputError as error:
            raise HubError(str(error)) from None

    def __str__(self) -> str:
        """Return the text that names it."""
        return f"{self.name}:{self.file}" if self.file else str(self.name)


def parse_hub_dataset(text: str) -> HubDataset | None:
    """Return the data set on the Hub that a text names; None if it is a path.

    Raises:
        UsageError: It is the address of a model.
    """
    if Path(text).exists() or (match := _TEXT.fullmatch(text)) is None:
        return None
    name = parse_hub_name(match["name"], "dataset")
    return None if name is None else HubDataset(name, (match["file"] or "").strip("/"))


def fetch_dataset(
    dataset: HubDataset, kind: str, split: str | None, *, with_images: bool, progress: Progress
) -> tuple[Path, HubOrigin]:
    """Download what an importer reads of a data set, and return its path and where it is from.

    Args:
        dataset: The data set.
        kind: Name of the importer.
        split: Split of tables.
        with_images: Whether to download image files in the folder of a file, too.
        progress: Reports the megabytes.

    Raises:
        HubError: The data set cannot be read, has no such file, or several.
        OutputError: There is too little space on the disk.
    """
    path = ""

    def choose(listing: Listing, _: Read) -> Sequence[HubFile]:
        nonlocal path
        path, chosen = dataset.choose(listing.files, kind, split, with_images=with_images)
        archives = [file for file in listing.files if file.path.endswith(_ARCHIVES)]
        if archives and kind != "scienceqa":
            log.info(
                "%s also has %s: unpack them for --images if they are needed",
                dataset,
                _sizes(archives),
            )
        return chosen

    snapshot = find_snapshot(dataset.name, choose)
    download([snapshot], progress)
    origin = HubOrigin(dataset=dataset.name.repo_id, revision=snapshot.commit, file=path)
    return snapshot.folder / path, origin


def _candidates(files: Iterable[HubFile], suffixes: tuple[str, ...]) -> dict[str, list[HubFile]]:
    """Return the files of each file or folder that can be imported, by its path."""
    candidates: dict[str, list[HubFile]] = {}
    for file in files:
        path = PurePosixPath(file.path)
        if path.suffix in suffixes:
            name = str(path.parent) if path.suffix in _TABLES else file.path
            candidates.setdefault("" if name == "." else name, []).append(file)
    return candidates


def _below(files: Iterable[HubFile], folder: str) -> list[HubFile]:
    return [file for file in files if folder in ("", ".") or _is_below(file.path, folder)]


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _listing(files: Sequence[HubFile], candidates: dict[str, list[HubFile]] | None = None) -> str:
    """Return the candidates, or else the files, with their sizes."""
    sizes = {
        path or ".": sum(file.size for file in parts) for path, parts in (candidates or {}).items()
    } or {file.path: file.size for file in files}
    texts = [f"{path} ({size / 1e6:,.1f} MB)" for path, size in [*sizes.items()][:_MAX_LISTED]]
    return f"it has {', '.join(texts)}{', ...' if len(sizes) > _MAX_LISTED else ''}"


def _sizes(files: Sequence[HubFile]) -> str:
    return ", ".join(f"{file.path} ({file.size / 1e6:,.1f} MB)" for file in files[:_MAX_LISTED])
