"""Unit of the boxes of a file: pixels, fractions of the image, percent of it, or corners in place of sizes.

COCO's boxes are `[left, top, width, height]` in pixels. Other units are recognized over the whole file, and only where
pixels are next to impossible; what could be either is `unclear`, so that no wrong facts are derived from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from caldera.annotations.coco_entries import BoxEntry

Unit = Literal["pixels", "fractions", "percent", "corners", "unclear"]

UNIT_SIZES: dict[str, float] = {"fractions": 1.0, "percent": 100.0}
"""Extent of the whole image in units other than pixels."""

TOLERANCE = 1.0
"""Pixels by which a box may exceed the image before it is clipped: COCO's coordinates are rounded."""

_UNCLEAR_ODDS = 10.0
"""Odds against pixels from which boxes that all end below 100 are no longer taken for pixels."""

_WHOLE_ODDS = 0.03
"""Change of the odds by a box of whole numbers, which percent rarely are."""

_AREA_ODDS = 0.01
"""Change of the odds by boxes that suit the area of their objects."""

_MIN_PERCENT_IMAGES = 3
"""Images from which boxes that are far below the area of their objects are percent; below, they are unclear."""

_AREA_RATIO = 1.5
"""Area of an object over that of its box above which the two have different units."""


@dataclass(frozen=True, slots=True)
class SizedBoxes:
    """Boxes of one image, and its size in pixels."""

    size: tuple[float, float]
    boxes: Sequence[BoxEntry]

    @property
    def fits(self) -> bool:
        """True if all boxes are inside the image, read as pixels."""
        return all(fits_inside(box, self.size) for box in self.boxes)


def fits_inside(box: BoxEntry, size: tuple[float, float], tolerance: float = TOLERANCE) -> bool:
    """Return whether a box lies inside a rectangle at the origin."""
    return (
        box.left >= -tolerance
        and box.top >= -tolerance
        and box.left + box.width <= size[0] + tolerance
        and box.top + box.height <= size[1] + tolerance
    )


def detect_unit(images: Sequence[SizedBoxes]) -> Unit:
    """Return the unit of the boxes of a file; most images must agree, so that a few invalid ones decide nothing."""
    images = [image for image in images if image.boxes]
    boxes = [box for image in images for box in image.boxes]
    if not images:
        return "pixels"
    if 2 * sum(_is_fraction(box) for box in boxes) > len(boxes):
        num_outside = sum(not fits_inside(box, (1, 1), 0.01) for box in boxes if _is_fraction(box))
        # Centers in place of corners exceed the image.
        return "unclear" if num_outside > max(1, len(boxes) // 10) else "fractions"
    failing = [image for image in images if not image.fits]
    if 2 * len(failing) > len(images) and all(_could_be_corners(image) for image in images):
        return "corners"
    if _have_areas_of_corners(boxes):
        return "corners"
    if all(fits_inside(box, (100, 100), 0.5) for box in boxes):
        return _pixels_or_percent(images, failing)
    return "pixels"


def contradiction(image: SizedBoxes) -> tuple[BoxEntry, str] | None:
    """Return a box that cannot be in pixels, in a file of pixels, and the reason; None if there is none."""
    for box in image.boxes:
        if _is_fraction(box):
            return box, "looks like fractions, but most boxes of the file are in pixels"
    if all(fits_inside(box, (100, 100), 0.5) for box in image.boxes):
        for box in image.boxes:
            if _is_below_area(box):
                reason = f"is smaller than the area of its object, {box.area:g}; one of them is not in pixels"
                return box, reason
    if _have_areas_of_corners(image.boxes):
        reason = "has the area of [left, top, right, bottom], not of [left, top, width, height]"
        return image.boxes[0], reason
    return None


def _pixels_or_percent(images: Sequence[SizedBoxes], failing: Sequence[SizedBoxes]) -> Unit:
    """Return the unit of boxes that all end below 100."""
    if 2 * len(failing) > len(images):
        return "unclear"
    odds = 1.0
    for image in images:
        # The chance that a box of a large image lies by accident in its first 100 x 100 pixels.
        chance = min(1.0, 100 / image.size[0]) * min(1.0, 100 / image.size[1])
        for box in image.boxes:
            odds *= (_WHOLE_ODDS if box.is_whole else 1.0) / chance
    boxes = [box for image in images for box in image.boxes]
    if 2 * sum(map(_is_below_area, boxes)) > len(boxes):
        return "percent" if len(images) >= _MIN_PERCENT_IMAGES else "unclear"
    if all(box.area > 0 for box in boxes):
        odds *= _AREA_ODDS
    return "pixels" if odds < _UNCLEAR_ODDS else "unclear"


def _is_fraction(box: BoxEntry) -> bool:
    """Return whether all four numbers are at most 1, as no box in pixels is."""
    return max(box.left, box.top, box.width, box.height) <= 1.0


def _is_below_area(box: BoxEntry) -> bool:
    """Return whether a box is too small for the area of its object."""
    return box.area > _AREA_RATIO * box.width * box.height + 1


def _could_be_corners(image: SizedBoxes) -> bool:
    """Return whether all boxes are inside the image if they are [left, top, right, bottom]."""
    return all(
        box.left < box.width <= image.size[0] + TOLERANCE
        and box.top < box.height <= image.size[1] + TOLERANCE
        for box in image.boxes
    )


def _have_areas_of_corners(boxes: Sequence[BoxEntry]) -> bool:
    """Return whether the objects' areas are those of the boxes read as [left, top, right, bottom].

    A box at the origin is the same either way, so it decides nothing.
    """
    areas_of_sizes = [
        _is_near(box.area, box.width * box.height, 0.05)
        for box in boxes
        if _has_area_as_corners(box)
    ]
    return len(areas_of_sizes) == len(boxes) and not all(areas_of_sizes)


def _has_area_as_corners(box: BoxEntry) -> bool:
    """Return whether an object's area is that of its box if it is [left, top, right, bottom]."""
    if box.area <= 0 or box.left >= box.width or box.top >= box.height:
        return False
    return _is_near(box.area, (box.width - box.left) * (box.height - box.top), 0.01)


def _is_near(value: float, other: float, share: float) -> bool:
    """Return whether two numbers differ by at most a share of the second."""
    return abs(value - other) <= share * other
