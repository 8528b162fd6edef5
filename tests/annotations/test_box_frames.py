"""Frames of boxes: all eight EXIF orientations, and sizes before and after an image was resized."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.box_frames import FrameMatch, match_frames, to_displayed
from caldera.annotations.boxes import Box
from caldera.annotations.coco import CocoOptions, read_coco
from caldera.errors import AnnotationError, UnknownNameError
from caldera.files.skipped_items import SkippedItems
from caldera.images.decoding import ImageHeader

WIDTH, HEIGHT = 40, 20


def photo(orientation: int) -> Image.Image:
    """Return a stored image with one bright rectangle, of 12 x 4 pixels at (4, 2)."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[2:6, 4:16] = 255
    image = Image.fromarray(pixels)
    image.getexif()[274] = orientation
    return image


def bright_box(image: Image.Image) -> Box:
    """Return the box of the bright pixels as fractions."""
    left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    return Box(left / image.width, top / image.height, right / image.width, bottom / image.height)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_stored_box_is_turned_as_the_image_is(orientation: int) -> None:
    """The box of the displayed image is the one that Pillow shows."""
    image = photo(orientation)
    turned = to_displayed(bright_box(image), orientation)
    displayed_box = bright_box(ImageOps.exif_transpose(image))
    assert [turned.left, turned.top, turned.right, turned.bottom] == pytest.approx(
        [displayed_box.left, displayed_box.top, displayed_box.right, displayed_box.bottom]
    )


@pytest.mark.parametrize(
    ("annotated", "stored", "orientation", "expected"),
    [
        ((40, 20), (40, 20), 1, FrameMatch(("stored", "displayed"))),
        ((40, 20), (40, 20), 3, FrameMatch(("stored", "displayed"))),
        ((40, 20), (40, 20), 6, FrameMatch(("stored",))),
        ((20, 40), (40, 20), 6, FrameMatch(("displayed",))),
        ((30, 30), (30, 30), 8, FrameMatch(("stored", "displayed"))),
        ((80, 40), (40, 20), 6, FrameMatch(("stored",), is_resized=True)),
        ((33, 67), (40, 20), 5, FrameMatch(("displayed",), is_resized=True)),
        ((20, 40), (40, 20), 1, FrameMatch()),
        ((41, 30), (40, 20), 1, FrameMatch()),
        (None, (40, 20), 6, FrameMatch(("stored", "displayed"))),
    ],
)
def test_a_size_matches_the_stored_or_the_displayed_image(
    annotated: tuple[int, int] | None,
    stored: tuple[int, int],
    orientation: int,
    expected: FrameMatch,
) -> None:
    """Equal, resized with rounded sides, or of another shape."""
    assert match_frames(annotated, ImageHeader("JPEG", *stored, orientation)) == expected


def write(folder: Path, images: list[tuple[int, tuple[int, int], list[float]]]) -> Path:
    """Write photos with an orientation, the annotated size, and one box each."""
    (folder / "images").mkdir()
    content: dict[str, list[object]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "lamp"}],
    }
    for number, (orientation, (width, height), bbox) in enumerate(images):
        image = photo(orientation)
        image.save(folder / "images" / f"{number}.jpg", exif=image.getexif())
        content["images"].append(
            {"id": number, "file_name": f"{number}.jpg", "width": width, "height": height}
        )
        content["annotations"].append({"image_id": number, "category_id": 1, "bbox": bbox})
    (folder / "labels.json").write_text(json.dumps(content))
    return folder


def corners(annotations: AnnotationSet, index: int) -> list[float]:
    """Return the corners of the box of an image."""
    [instance] = annotations.images[index].instances
    return [instance.box.left, instance.box.top, instance.box.right, instance.box.bottom]


STORED = [4.0, 2.0, 12.0, 4.0]
"""The rectangle in stored pixels."""


def test_other_images_tell_the_frame_that_an_orientation_keeps(tmp_path: Path) -> None:
    """An image on its side, whose size tells that stored pixels are annotated, tells it for one upside down."""
    sizes = (WIDTH, HEIGHT)
    folder = write(tmp_path, [(3, sizes, STORED), (6, sizes, STORED), (1, sizes, STORED)])
    skipped = SkippedItems()
    annotations = read_coco(folder, skipped)
    for index, orientation in enumerate((3, 6, 1)):
        displayed_box = to_displayed(Box(0.1, 0.1, 0.4, 0.3), orientation)
        expected = [
            displayed_box.left,
            displayed_box.top,
            displayed_box.right,
            displayed_box.bottom,
        ]
        assert corners(annotations, index) == pytest.approx(expected)
    assert [note.location for note in skipped.notes] == ["image 0.jpg", "image 1.jpg"]


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_without_another_image_the_frame_must_be_given(tmp_path: Path, orientation: int) -> None:
    """The image is invalid, or its box is what the user says."""
    folder = write(tmp_path, [(orientation, (WIDTH, HEIGHT), STORED)])
    with pytest.raises(AnnotationError, match=rf"EXIF orientation {orientation}, .* with --boxes"):
        read_coco(folder, SkippedItems())
    displayed = read_coco(folder, SkippedItems(), CocoOptions(boxes="displayed"))
    assert corners(displayed, 0) == pytest.approx([0.1, 0.1, 0.4, 0.3])
    stored = read_coco(folder, SkippedItems(), CocoOptions(boxes="pixels,stored"))
    assert corners(stored, 0) != pytest.approx([0.1, 0.1, 0.4, 0.3])
    with pytest.raises(UnknownNameError, match="did you mean 'stored'"):
        read_coco(folder, SkippedItems(), CocoOptions(boxes="storde"))


def test_boxes_of_a_larger_size_are_scaled_if_one_exceeds_the_file(tmp_path: Path) -> None:
    """Boxes that fit both sizes may be of either; one outside the file shows that all are of the annotated size."""
    size, small = (2 * WIDTH, 2 * HEIGHT), [8.0, 4.0, 24.0, 8.0]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    folder = write(tmp_path / "a", [(1, size, small), (1, size, [60.0, 4.0, 10.0, 8.0])])
    skipped = SkippedItems()
    assert corners(read_coco(folder, skipped), 0) == pytest.approx([0.1, 0.1, 0.4, 0.3])
    assert ["80 x 40, but has 40 x 20 pixels" in note.reason for note in skipped.notes] == [
        True
    ] * 2
    with pytest.raises(AnnotationError, match="80 x 40, but has 40 x 20 pixels; its boxes may"):
        read_coco(write(tmp_path / "b", [(1, size, small)]), SkippedItems())
