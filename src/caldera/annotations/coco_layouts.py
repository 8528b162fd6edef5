"""Layouts of COCO folders: annotation files and image folders, found by content.

COCO's own layout is `annotations/captions_SPLIT.json`, `annotations/instances_SPLIT.json` and the images in `SPLIT/`.
Tools write other names next to other folders: Label Studio `result.json` and `images/`, Roboflow
`SPLIT/_annotations.coco.json` next to the images, FiftyOne `labels.json` and `data/`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldera.annotations.tool_formats import to_coco
from caldera.errors import AnnotationError, UnknownNameError

_PREFIXES = ("captions_", "instances_")
"""Beginnings of COCO's file names."""

_IMAGE_FOLDERS = ("images", "data", "imgs", "img", "photos")
"""Names of folders next to an annotation file that tools put images into."""

_MAX_FILES = 200
"""JSON files that are read in search of annotations."""


@dataclass(frozen=True, slots=True)
class CocoSource:
    """Annotation files of one split, and folders that may have its images, the likeliest first."""

    captions: Path | None
    boxes: Path | None
    image_folders: tuple[Path, ...]
    contents: Mapping[Path, dict[str, Any]]
    """Content of the files that were read already."""

    def read(self, path: Path) -> dict[str, Any]:
        """Return the content of one of the files."""
        return self.contents[path] if path in self.contents else read_object(path)


def find_source(
    path: Path, split: str | None, captions: Path | None = None, boxes: Path | None = None
) -> CocoSource:
    """Return the annotations in a folder, or those of given files, with images in the folder."""
    if captions or boxes:
        files = [file for file in (boxes, captions) if file]
        folders = [*image_folders(path, split)]
        folders += [folder for file in files for folder in _folders_near(file, split)]
        return CocoSource(captions, boxes, tuple(dict.fromkeys(folders)), {})
    if path.is_file():
        return _from_content(path.parent, None, {path: read_object(path)})
    folder = path / "annotations"
    names = sorted(file.name for prefix in _PREFIXES for file in folder.glob(f"{prefix}*.json"))
    if not names:
        return _from_content(path, split, _search(path))
    splits = [name[:-5].partition("_")[2] for name in names]
    with_captions = [
        split for name, split in zip(names, splits, strict=True) if name.startswith(_PREFIXES[0])
    ]
    # A split without captions must be named if there is one with captions.
    choices = splits if split is not None else with_captions or splits
    split = _choose_split(path, list(dict.fromkeys(choices)), split)
    pair = [folder / f"{prefix}{split}.json" for prefix in _PREFIXES]
    existing = [file if file.exists() else None for file in pair]
    return CocoSource(existing[0], existing[1], tuple(image_folders(path, split)), {})


def image_folders(folder: Path, split: str | None) -> list[Path]:
    """Return the folders that may have the images, the likeliest first."""
    names = [split, f"images/{split}"] if split else []
    nearby = [folder / name for name in (*names, *_IMAGE_FOLDERS)]
    return [*nearby, folder]


def _folders_near(file: Path, split: str | None) -> list[Path]:
    """Return the folders near an annotation file that may have its images."""
    parents = [file.parent, *([file.parent.parent] if file.parent.name == "annotations" else ())]
    return [
        folder
        for parent in parents
        for name in (split, file.stem)
        for folder in image_folders(parent, name)
    ]


def _choose_split(folder: Path, splits: list[str], split: str | None) -> str:
    """Return the requested split, or the only one."""
    if split is not None:
        if split not in splits:
            raise UnknownNameError(f"split of {folder}", split, splits)
        return split
    if len(splits) > 1:
        raise AnnotationError(f"{folder} has several splits; name one with --split: {splits}")
    return splits[0]


def _search(folder: Path) -> dict[Path, dict[str, Any]]:
    """Return the content of every JSON file near the top of a folder that has annotations."""
    contents: dict[Path, dict[str, Any]] = {}
    faults: list[str] = []
    patterns = ("*.json", "*/*.json", "*/*/*.json")
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    for file in files[:_MAX_FILES]:
        try:
            contents[file] = read_object(file)
        except AnnotationError as error:
            # Other JSON files are no fault, unless none has annotations.
            faults.append(str(error))
    if not contents:
        raise AnnotationError(
            f"no annotations: {folder}/annotations has no captions_*.json or instances_*.json, and no other JSON file "
            f"of {folder} is COCO's; give the folder that holds them, or a file with --instances or --captions"
            + (f" ({'; '.join(faults[:2])})" if faults else "")
        )
    return contents


def _from_content(
    folder: Path, split: str | None, contents: dict[Path, dict[str, Any]]
) -> CocoSource:
    """Choose the files of a split by what they hold."""
    by_split: dict[str, list[Path]] = {}
    for file in contents:
        by_split.setdefault(_split_of(file, folder), []).append(file)
    split = _choose_split(folder, list(by_split), split)
    files = by_split[split]
    captions = [file for file in files if _has_any(contents[file], "caption")]
    boxes = [file for file in files if _has_any(contents[file], "bbox", "category_id")]
    for option, matching in (("--captions", captions), ("--instances", boxes)):
        if len(matching) > 1:
            names = [str(file.relative_to(folder)) for file in matching]
            raise AnnotationError(f"{folder} has several files; name one with {option}: {names}")
    if not captions and not boxes:
        boxes = files[:1]
    file = (boxes or captions)[0]
    # Next to the file first: names of other splits are often the same.
    folders = [file.parent, *_folders_near(file, split), *image_folders(folder, split)]
    return CocoSource(
        captions[0] if captions else None,
        boxes[0] if boxes else None,
        tuple(dict.fromkeys(folders)),
        contents,
    )


def _split_of(file: Path, folder: Path) -> str:
    """Return the split of a file: that of COCO's names, else the folder it is in."""
    for prefix in (*_PREFIXES, "person_keypoints_"):
        if file.name.startswith(prefix):
            return file.stem.removeprefix(prefix)
    parents = [part for part in file.relative_to(folder).parts[:-1] if part != "annotations"]
    return "/".join(parents) or "default"


def _has_any(content: dict[str, Any], *fields: str) -> bool:
    """Return whether any annotation has one of the fields."""
    entries = content["annotations"]
    return any(isinstance(entry, dict) and not entry.keys().isdisjoint(fields) for entry in entries)


def read_object(path: Path) -> dict[str, Any]:
    """Return the content of a COCO file, or of VIA's or datumaro's own format as COCO's; or raise AnnotationError."""
    try:
        content: Any = json.loads(path.read_bytes() or b"null")
    except OSError as error:
        raise AnnotationError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is broken JSON: {error}") from error
    if content is None:
        raise AnnotationError(f"{path} is empty; it should be COCO's annotation JSON")
    converted = to_coco(content)
    if converted is None:
        got = f"a {type(content).__name__}" if not isinstance(content, dict) else "an object with "
        if isinstance(content, dict):
            got += ", ".join(list(map(str, content))[:6]) or "no field"
        raise AnnotationError(
            f"{path} is not COCO's annotation JSON: it holds {got}; it should have 'images' and 'annotations'"
        )
    return converted
