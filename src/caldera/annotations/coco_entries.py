"""Entries of a COCO annotation file, each validated on its own; what is wrong with one is a fault of its image."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caldera.annotations.image_files import normalize_name
from caldera.errors import AnnotationError, shorten_value
from caldera.files.skipped_items import SkippedItems

_EMPTY_CAPTIONS = ("nan", "null", "none", "n/a", "#n/a", "<na>")
"""Texts that programs write for a missing caption."""

_NO_CATEGORY = ("", "none")
"""Names of supercategories that mean none."""


@dataclass(frozen=True, slots=True)
class BoxEntry:
    """An annotated box in the units of its file."""

    location: str
    category: str
    left: float
    top: float
    width: float
    height: float
    area: float
    """Area of the object as the file has it; 0 if it has none."""

    is_crowd: bool
    is_whole: bool = False
    """Whether the file has whole numbers, as in 10, not 10.0."""


@dataclass(slots=True)
class ImageEntry:
    """An image of a file with its annotations."""

    location: str
    key: str
    """Id as text; empty if the entry has none."""

    name: str
    """File name as in the entry; empty if the entry has none."""

    size: tuple[float, float] | None = None
    """Annotated width and height."""

    fault: str = ""
    """First reason not to use the image, without its location."""

    fault_location: str = ""
    captions: list[str] = field(default_factory=list)
    boxes: list[BoxEntry] = field(default_factory=list)
    positions: set[tuple[str, float, float, float, float]] = field(default_factory=set)
    """Categories and numbers of the boxes."""

    uncounted: set[str] = field(default_factory=set)
    """Categories of boxes that were not read, or that were not looked for."""

    absent: frozenset[str] | None = None
    partial: frozenset[str] = frozenset()
    """Ids of the categories that LVIS knows to be absent, and of those not boxed everywhere; None: not LVIS's."""

    def set_fault(self, location: str, reason: str) -> None:
        """Mark the image as unusable; the first reason is kept."""
        if not self.fault:
            self.fault_location, self.fault = location, reason


def clean_caption(value: object) -> str:
    """Return a caption on one line; empty for what stands for a missing one: null, NaN, 'NaN' or blanks."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return "" if text.lower() in _EMPTY_CAPTIONS else text


def to_key(value: object) -> str:
    """Return an id, a number or text, as text; empty if it is no id."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return str(int(value)) if math.isfinite(value) and value == int(value) else ""


def _to_number(value: object) -> float:
    """Return a number or a text of a number; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


class CocoFile:
    """The content of one annotation file: images, and their captions, boxes or both."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        """Read the images and categories; annotations follow in `read_annotations`."""
        self.path = path
        self._annotations = _list_of(content, "annotations", path)
        self.images = list(_read_images(path, _list_of(content, "images", path)))
        self.has_captions = any("caption" in entry for entry in self._dicts())
        self.has_boxes = any("bbox" in entry or "category_id" in entry for entry in self._dicts())
        if not self.has_captions and not self.has_boxes:
            self.has_boxes = bool(content.get("categories"))
            self.has_captions = not self.has_boxes
        self._names: dict[str, str] = {}
        self._ambiguous: set[str] = set()
        self.parents: dict[str, set[str]] = defaultdict(set)
        """Categories that contain another one, by its name; they are no category of their own."""

        self._category_faults: list[tuple[str, str]] = []
        self._read_categories(content.get("categories"))

    def _dicts(self) -> Iterator[dict[str, Any]]:
        return (entry for entry in self._annotations if isinstance(entry, dict))

    @property
    def categories(self) -> tuple[str, ...]:
        """Names that annotators could choose from; a category above others is not among them."""
        roots = {name for names in self.parents.values() for name in names}
        return tuple(dict.fromkeys(name for name in self._names.values() if name not in roots))

    def _read_categories(self, entries: object) -> None:
        """Read names by id, and the categories that are above others (Roboflow's root)."""
        above: dict[str, set[str]] = defaultdict(set)
        spellings: dict[str, str] = {}
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            location = f"{self.path}: categories.{index}"
            fields = entry if isinstance(entry, dict) else {}
            key, name = to_key(fields.get("id")), fields.get("name")
            if not key or not isinstance(name, str) or not name.strip():
                needed = "a category needs an id and a name; boxes of it make their image invalid"
                self._category_faults.append((location, f"{shorten_value(entry)}: {needed}"))
                continue
            # Two spellings of a name are one category.
            name = spellings.setdefault(name.strip().lower(), name.strip())
            if self._names.get(key, name) != name:
                self._ambiguous.add(key)
                # The second name is a category all the same, with an id that no box can have.
                key = f"{key} {index}"
            self._names[key] = name
            parent = fields.get("supercategory")
            if isinstance(parent, str) and parent.strip().lower() not in _NO_CATEGORY:
                above[name].add(parent.strip())
        names = set(self._names.values())
        for name, parents in above.items():
            self.parents[name] = (parents & names) - {name}

    def owners(self, other: "CocoFile | None") -> dict[str, ImageEntry]:
        """Return the image of each id; images that claim the same id or name are marked unless one owns it.

        An entry owns them if the other file has it too, or if its name ends with its id, as COCO's do.
        """
        pairs = {(image.key, image.name) for image in other.images} if other else set()

        def evidence(image: ImageEntry) -> int:
            return ((image.key, image.name) in pairs) + (image.key == _number_in(image.name))

        for values in ([entry.key for entry in self.images], [entry.name for entry in self.images]):
            claims: dict[str, list[ImageEntry]] = defaultdict(list)
            for value, image in zip(values, self.images, strict=True):
                claims[value].append(image)
            for value, entries in claims.items():
                if value and len(entries) > 1:
                    _mark_claims(value, entries, [evidence(entry) for entry in entries])
        owners = {image.key: image for image in self.images if image.key and not image.fault}
        for image in self.images:
            # An unusable image keeps its annotations, by the number in its name if its id is wrong.
            if image.fault:
                is_free = image.key and image.key not in owners
                owners.setdefault(image.key if is_free else _number_in(image.name), image)
        return owners

    def read_annotations(
        self, owners: dict[str, ImageEntry], skipped: SkippedItems, *, with_boxes: bool
    ) -> int:
        """Give each image its captions and boxes; return the number of entries of no image.

        An entry of an image that the file does not list is only counted: lists are often shortened.
        """
        for location, reason in self._category_faults if with_boxes else ():
            skipped.note(location, reason)
        unlisted: Counter[str] = Counter()
        num_invalid = 0
        for index, entry in enumerate(self._annotations):
            location = f"{self.path}: annotations.{index}"
            fields = entry if isinstance(entry, dict) else {}
            key = to_key(fields.get("image_id"))
            if not key:
                num_invalid += 1
                reason = f"{location}: {shorten_value(entry)} has no image_id; correct or remove it"
                skipped.add_or_raise(location, AnnotationError(reason))
            elif key not in owners:
                unlisted[key] += 1
            else:
                self._read_caption(location, fields, owners[key], skipped)
                if with_boxes:
                    self._read_box(location, fields, owners[key], skipped)
        for image in self.images:
            if image.absent is not None:
                boxed = {box.category for box in image.boxes}
                image.uncounted |= {
                    name
                    for key, name in self._names.items()
                    if key in image.partial or not (key in image.absent or name in boxed)
                }
        if unlisted:
            reason = f"annotations of {len(unlisted)} images are not used, as 'images' does not list them"
            skipped.note(str(self.path), reason)
        return num_invalid

    def _read_caption(
        self, location: str, entry: dict[str, Any], image: ImageEntry, skipped: SkippedItems
    ) -> None:
        """Add the caption of an entry to an image, if it should have one."""
        if "caption" not in entry and self.has_boxes:
            return
        if caption := clean_caption(entry.get("caption")):
            image.captions.append(caption)
        else:
            skipped.note(location, "the caption is empty, null or no text; it is not used")

    def _read_box(
        self, location: str, entry: dict[str, Any], image: ImageEntry, skipped: SkippedItems
    ) -> None:
        """Add the box of an entry to an image, if it should have one; an invalid one marks the image."""
        if self.has_captions and "bbox" not in entry and "category_id" not in entry:
            return
        key, crowd = to_key(entry.get("category_id")), entry.get("iscrowd")
        is_crowd = (
            0 if crowd is None else _to_number(int(crowd) if isinstance(crowd, bool) else crowd)
        )
        if key not in self._names or key in self._ambiguous:
            listed = "lists with two names" if key in self._ambiguous else "does not list"
            image.set_fault(
                f"{location}.category_id",
                f"a box of image {image.name} has category {shorten_value(entry.get('category_id'))}, which the file "
                f"{listed}; correct it or add it to 'categories'",
            )
            return
        if is_crowd not in (0, 1):
            image.set_fault(
                f"{location}.iscrowd", f"{shorten_value(crowd)} is neither 0 nor 1; correct it"
            )
        category = self._names[key]
        bbox = entry.get("bbox")
        values = bbox if isinstance(bbox, list) else []
        numbers = [_to_number(value) for value in values]
        if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
            image.set_fault(
                f"{location}.bbox",
                f"{shorten_value(bbox)} of image {image.name} is no [left, top, width, height]; correct or remove it",
            )
        elif numbers[2] <= 0 or numbers[3] <= 0:
            skipped.note(f"{location}.bbox", f"box {numbers} has no area; it is not used")
        else:
            left, top, width, height = numbers
            area = max(0.0, _to_number(entry.get("area") or 0))
            is_whole = all(isinstance(value, int) for value in values)
            position = (category, left, top, width, height)
            if position in image.positions:
                reason = f"box {numbers} is there twice; it is used once"
                skipped.note(f"{location}.bbox", reason)
                return
            image.positions.add(position)
            image.boxes.append(BoxEntry(location, *position, area, is_crowd == 1, is_whole))
            return
        if is_crowd != 1:
            image.uncounted.add(category)


def _number_in(name: str) -> str:
    """Return the number at the end of a file name, without zeros before it: '000000000139.jpg' -> '139'."""
    digits = re.search(r"(\d+)\.\w+$", name)
    return str(int(digits[1])) if digits else ""


def _list_of(content: dict[str, Any], name: str, path: Path) -> list[object]:
    """Return a list of the file, or raise AnnotationError."""
    value = content.get(name)
    if not isinstance(value, list):
        got = f"{name!r} is {shorten_value(value)}" if name in content else f"it has no {name!r}"
        raise AnnotationError(f"{path} is not COCO's annotation JSON: {got}; it should be a list")
    return value


def _read_images(path: Path, entries: Iterable[object]) -> Iterator[ImageEntry]:
    """Yield every image, the invalid ones marked."""
    for index, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        name, key = fields.get("file_name"), to_key(fields.get("id"))
        width, height = (_to_number(fields.get(side)) for side in ("width", "height"))
        size = (width, height) if 0 < width < math.inf and 0 < height < math.inf else None
        location = f"{path}: images.{index}"
        name = name if isinstance(name, str) and name.strip() else ""
        image = ImageEntry(location, key, normalize_name(name), size)
        if isinstance(absent := fields.get("neg_category_ids"), list):
            partial = fields.get("not_exhaustive_category_ids")
            image.absent = frozenset(map(to_key, absent))
            image.partial = frozenset(map(to_key, partial if isinstance(partial, list) else ()))
        for field_name, value in (("file_name", name), ("id", key)):
            if not value:
                got = shorten_value(fields.get(field_name))
                reason = f"{got} is no {field_name} of an image; correct or remove the entry"
                image.set_fault(location, reason)
        yield image


def _mark_claims(value: str, entries: list[ImageEntry], evidence: list[int]) -> None:
    """Mark all entries with the same id or name but the one with the most evidence; all if two have as much."""
    best = max(evidence)
    owner = evidence.index(best)
    same = {(entry.key, entry.name) for entry in entries}
    is_known = len(same) == 1 or (best > 0 and evidence.count(best) == 1)
    for index, entry in enumerate(entries):
        if not (is_known and index == owner):
            reason = f"{value} is the id or file_name of two images; remove or correct one of them"
            entry.set_fault(entry.location, reason)
