"""Boxes of a COCO file as fractions of the displayed images, by what its numbers mean over all images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from caldera.annotations.annotated_image import Instance
from caldera.annotations.box_frames import (
    Frame,
    FrameMatch,
    common_frame,
    match_frames,
    to_displayed,
)
from caldera.annotations.box_units import (
    TOLERANCE,
    UNIT_SIZES,
    SizedBoxes,
    Unit,
    contradiction,
    detect_unit,
    fits_inside,
)
from caldera.annotations.boxes import Box
from caldera.annotations.coco_entries import BoxEntry, CocoFile, ImageEntry
from caldera.errors import AnnotationError, ImageError, UnknownNameError
from caldera.files.skipped_items import SkippedItems
from caldera.images.decoding import ImageHeader, read_image_header

_UNUSABLE_UNITS: dict[Unit, str] = {
    "corners": "is [left, top, right, bottom] like most of the file; write [left, top, width, height]",
    "unclear": "may be in pixels, in percent or in fractions, like all of the file; name it with --boxes",
}
"""What is wrong with each box of a file, by its unit."""


@dataclass(slots=True)
class ListedImage:
    """An image with its annotations, before they are checked."""

    entry: ImageEntry
    boxes: ImageEntry | None
    """Entry of the file of boxes; None if it does not list the image."""

    path: Path
    header: ImageHeader | None = None
    match: FrameMatch = field(default_factory=FrameMatch)

    @property
    def annotated_size(self) -> tuple[float, float] | None:
        """Size that the boxes refer to, if the annotations have it."""
        return (self.boxes and self.boxes.size) or self.entry.size

    @property
    def fault(self) -> tuple[str, str] | None:
        """Location and reason of the first fault."""
        for entry in (self.entry, self.boxes):
            if entry and entry.fault:
                return entry.fault_location, entry.fault
        return None

    @property
    def box_entries(self) -> Sequence[BoxEntry]:
        """Boxes of the image in the units of the file."""
        return self.boxes.boxes if self.boxes else ()


@dataclass(frozen=True, slots=True)
class BoxMeaning:
    """Unit and frame of boxes as the user gives them; None is decided by the files."""

    unit: Unit | None = None
    frame: Frame | None = None


def parse_box_meaning(text: str | None) -> BoxMeaning:
    """Parse a unit, a frame or both: 'percent', 'displayed', 'pixels,stored'."""
    units: dict[str, Unit] = {"pixels": "pixels", "fractions": "fractions", "percent": "percent"}
    frames: dict[str, Frame] = {"stored": "stored", "displayed": "displayed"}
    meaning = BoxMeaning()
    for word in text.split(",") if text else ():
        if word in frames:
            meaning = replace(meaning, frame=frames[word])
        elif word in units:
            meaning = replace(meaning, unit=units[word])
        else:
            raise UnknownNameError("unit or frame of boxes", word, [*units, *frames])
    return meaning


class BoxReader:
    """Converts the boxes of a file, after what its numbers mean was decided over all images."""

    def __init__(
        self,
        box_file: CocoFile | None,
        images: Sequence[ListedImage],
        skipped: SkippedItems,
        meaning: BoxMeaning,
    ) -> None:
        """Read the headers of the images that have boxes."""
        usable: list[ListedImage] = []
        for image in images if box_file else ():
            if image.fault or not image.box_entries:
                continue
            try:
                image.header = read_image_header(image.path)
            except ImageError as error:
                image.entry.set_fault(image.entry.location, str(error))
                continue
            image.match = match_frames(image.annotated_size, image.header)
            usable.append(image)
        self._parents = box_file.parents if box_file else {}
        self._skipped = skipped
        self._meaning = meaning
        is_resized = any(image.match.is_resized for image in usable)
        self._unit: Unit = meaning.unit or detect_unit([_sized(image) for image in usable])
        if self._unit == "percent" and is_resized and not meaning.unit:
            # The areas that show percent are those of another size.
            self._unit = "unclear"
        if self._unit in UNIT_SIZES and box_file:
            skipped.note(str(box_file.path), f"boxes are read as {self._unit} of the image")
        self._frame: Frame | None = meaning.frame or common_frame(
            (image.match, image.header) for image in usable if image.header
        )
        # Boxes that exceed the resized image show that they refer to the annotated size.
        self._trusts_resized = self._unit in UNIT_SIZES or any(
            image.match.is_resized and not _fits_file(image) for image in usable
        )

    def read(self, image: ListedImage) -> tuple[Instance, ...]:
        """Return the boxes of an image, or raise AnnotationError."""
        header = image.header
        if header is None:
            return ()
        self._check_unit(image)
        frame = self._choose_frame(image, header)
        size = image.annotated_size or _size_in(frame, header)
        tolerance = TOLERANCE
        if self._unit in UNIT_SIZES:
            extent = UNIT_SIZES[self._unit]
            size, tolerance = (extent, extent), extent / 100
        instances: list[Instance] = []
        for entry in image.box_entries:
            box = _to_box(entry, image.entry.name, size, tolerance)
            if frame == "stored":
                box = to_displayed(box, header.orientation)
            instances.append(Instance(entry.category, box, entry.is_crowd))
        location = f"image {image.entry.name}"
        if header.orientation > 1:
            orientation = f"by EXIF orientation {header.orientation}"
            self._skipped.note(location, f"boxes are those of the {frame} image, {orientation}")
        if image.match.is_resized:
            self._skipped.note(location, f"boxes are scaled: {_describe_sizes(image, header)}")
        return tuple(instances)

    def uncounted(self, image: ListedImage) -> frozenset[str]:
        """Return the categories of an image that can be neither counted nor absent."""
        if image.boxes is None:
            return frozenset()
        present = {entry.category for entry in image.box_entries} | image.boxes.uncounted
        above = {parent for category in present for parent in self._parents.get(category, ())}
        return frozenset(image.boxes.uncounted | above)

    def _check_unit(self, image: ListedImage) -> None:
        """Raise AnnotationError if the unit of the boxes of the file or of the image is not certain."""
        entry = image.box_entries[0]
        reason = _UNUSABLE_UNITS.get(self._unit)
        is_certain = self._meaning.unit or self._unit in UNIT_SIZES
        if not reason and not is_certain and (fault := contradiction(_sized(image))):
            entry, reason = fault
        if reason:
            numbers = [entry.left, entry.top, entry.width, entry.height]
            raise AnnotationError(
                f"{entry.location}.bbox: box {numbers} of image {image.entry.name} {reason}"
            )

    def _choose_frame(self, image: ListedImage, header: ImageHeader) -> Frame:
        """Return the frame of an image's boxes, or raise AnnotationError if it is not certain."""
        match, name = image.match, image.entry.name
        location = (image.boxes or image.entry).location
        if not match.frames or (match.is_resized and not self._trusts_resized):
            reason = "its boxes may refer to either" if match.frames else "the shapes differ"
            raise AnnotationError(
                f"{location}: image {name} is {_describe_sizes(image, header)}; {reason}: correct the size or the file"
            )
        if header.orientation == 1 or len(match.frames) == 1:
            return match.frames[0]
        if self._frame is None:
            raise AnnotationError(
                f"{location}: image {name} has EXIF orientation {header.orientation}, and it is not known whether its "
                "boxes are those of the stored or of the displayed image; name it with --boxes"
            )
        return self._frame


def _describe_sizes(image: ListedImage, header: ImageHeader) -> str:
    """Return the annotated size and that of the file in words."""
    width, height = image.annotated_size or header.upright_size
    turned = f" with EXIF orientation {header.orientation}" if header.orientation > 1 else ""
    return f"annotated as {width:g} x {height:g}, but has {header.width} x {header.height} pixels{turned}"


def _size_in(frame: Frame, header: ImageHeader) -> tuple[float, float]:
    return (header.width, header.height) if frame == "stored" else header.upright_size


def _sized(image: ListedImage) -> SizedBoxes:
    """Return the boxes of an image with the annotated size, or that of the file."""
    size = image.annotated_size or (image.header and image.header.upright_size)
    return SizedBoxes(size or (1, 1), image.box_entries)


def _fits_file(image: ListedImage) -> bool:
    """Return whether all boxes would fit the image file if its pixels were those of the boxes."""
    if image.header is None:
        return True
    size = _size_in(image.match.frames[0], image.header)
    return all(fits_inside(box, size) for box in image.box_entries)


def _to_box(entry: BoxEntry, name: str, size: tuple[float, float], tolerance: float) -> Box:
    """Return a box as fractions of a size, or raise AnnotationError if it lies outside."""
    right, bottom = entry.left + entry.width, entry.top + entry.height
    box = Box(
        max(0.0, entry.left / size[0]),
        max(0.0, entry.top / size[1]),
        min(1.0, right / size[0]),
        min(1.0, bottom / size[1]),
    )
    if not fits_inside(entry, size, tolerance) or box.area <= 0:
        numbers = [entry.left, entry.top, entry.width, entry.height]
        raise AnnotationError(
            f"{entry.location}.bbox: box {numbers} of image {name} does not lie inside its "
            f"{size[0]:g} x {size[1]:g} pixels; correct or remove it"
        )
    return box
