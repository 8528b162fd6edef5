"""Units of boxes: other ones are recognized over a whole file, and what may be two is unclear."""

import pytest

from caldera.annotations.box_units import SizedBoxes, Unit, contradiction, detect_unit
from caldera.annotations.coco_entries import BoxEntry

Numbers = tuple[float, float, float, float]
SIZE = (400, 300)

PIXELS: list[list[Numbers]] = [
    [(200.5, 150.0, 90.5, 75.25), (10.0, 20.0, 30.0, 40.0)],
    [(300.0, 10.0, 80.5, 200.0)],
    [(30.0, 5.0, 50.5, 60.5)],
]
"""Boxes of three images."""


def boxed(
    images: list[list[Numbers]], area: float = 0.0, *, is_whole: bool = False
) -> list[SizedBoxes]:
    """Return images of one size, with a fraction of the true area of each object; 0 for none."""
    result = []
    for boxes, pixels in zip(images, PIXELS, strict=False):
        areas = [area * width * height for _, _, width, height in pixels]
        entries = [
            BoxEntry("", "cow", *box, size, False, is_whole)
            for box, size in zip(boxes, areas, strict=False)
        ]
        result.append(SizedBoxes(SIZE, entries))
    return result


def scaled(across: float, down: float) -> list[list[Numbers]]:
    """Return the boxes in another unit."""
    return [
        [(left * across, top * down, width * across, height * down) for left, top, width, height in boxes]
        for boxes in PIXELS
    ]  # fmt: skip


CORNERS = [[(x, y, x + width, y + height) for x, y, width, height in boxes] for boxes in PIXELS]


@pytest.mark.parametrize(
    ("images", "area", "unit"),
    [
        (PIXELS, 0.0, "pixels"),
        (PIXELS, 0.8, "pixels"),
        (scaled(1 / 400, 1 / 300), 0.0, "fractions"),
        (scaled(1 / 400, 1 / 300), 0.8, "fractions"),
        (scaled(1 / 4, 1 / 3), 0.8, "percent"),
        (scaled(1 / 4, 1 / 3), 0.0, "unclear"),
        (CORNERS, 0.0, "corners"),
        (CORNERS, 1.0, "corners"),
        ([[(x / 400, y / 300, 0.9, 0.9) for x, y, _, _ in boxes] for boxes in PIXELS], 0.0, "unclear"),
        ([], 0.0, "pixels"),
    ],
)  # fmt: skip
def test_the_unit_of_a_file_is_that_of_most_of_its_boxes(
    images: list[list[Numbers]], area: float, unit: Unit
) -> None:
    """Percent needs the area of objects to be certain; centers in place of corners exceed the image."""
    assert detect_unit(boxed(images, area)) == unit


def test_a_box_at_the_origin_does_not_tell_corners_from_sizes() -> None:
    """Its area is that of both; one box elsewhere decides for the file, and none leaves it in pixels."""
    at_origin = BoxEntry("", "cow", 0.0, 0.0, 100.0, 75.0, 7500.0, False, True)
    elsewhere = BoxEntry("", "cow", 0.0, 75.0, 100.0, 150.0, 7500.0, False, True)

    assert detect_unit([SizedBoxes(SIZE, [at_origin, elsewhere])]) == "corners"
    assert detect_unit([SizedBoxes(SIZE, [at_origin])]) == "pixels"
    assert contradiction(SizedBoxes(SIZE, [at_origin, elsewhere])) is not None


def test_whole_numbers_are_pixels_and_a_single_small_box_too() -> None:
    """A small folder of boxes near the corner is nothing unusual."""
    assert detect_unit(boxed([[(10, 20, 30, 40), (5, 5, 60, 70)]], is_whole=True)) == "pixels"
    assert detect_unit([SizedBoxes((224, 224), boxed([[(10.5, 20, 30, 40)]])[0].boxes)]) == "pixels"


@pytest.mark.parametrize(
    ("boxes", "area", "reason"),
    [
        (PIXELS[0], 0.9, None),
        ([(0.5, 0.5, 0.2, 0.25)], 0.0, "looks like fractions, but most"),
        (scaled(1 / 4, 1 / 3)[0], 0.9, "is smaller than the area of its object"),
        (CORNERS[0], 1.0, "has the area of [left, top, right, bottom]"),
    ],
)
def test_an_image_of_another_unit_than_the_file_is_noticed(
    boxes: list[Numbers], area: float, reason: str | None
) -> None:
    """By boxes below a pixel, or by the area of the objects."""
    fault = contradiction(boxed([boxes], area)[0])
    assert (fault is None) == (reason is None)
    assert fault is None or reason is None or reason in fault[1]
