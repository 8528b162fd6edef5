"""Tests of the words of each cell, against a count of pixels."""

from dataclasses import replace

import numpy as np
import pytest

from backbones.patch_words import (
    CENTER_TOKENS,
    GRID,
    WORDS,
    center_tokens,
    patch_coverage,
    patch_labels,
)
from caldera.annotations.boxes import position_of
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import OBJECT_KINDS, SIDE, ObjectGroup, Scene, SceneObject, sample_scene

CELL = SIDE // GRID
NUMBERS = ("one", "two", "three", "four")
EMPTY = Scene("x", "beach", ())


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Sample thirteen scenes."""
    return [
        sample_scene(index, seed=5, split="train", shapes=glyph_shapes()) for index in range(13)
    ]


def expected_words(scene: Scene, row: int, column: int) -> tuple[str, ...]:
    """Return the words of the object that covers most of a cell, and more than a quarter."""
    result: tuple[str, ...] = (scene.setting,)
    threshold = 0.25 * CELL * CELL
    for group, item in scene.objects:
        num_pixels = sum(
            item.left <= x < item.left + item.width and item.top <= y < item.top + item.height
            for x in range(column * CELL, (column + 1) * CELL)
            for y in range(row * CELL, (row + 1) * CELL)
        )
        if num_pixels > threshold:
            position = (position_of(item.box) or "").split()
            color = [group.color] if group.color else []
            result = (group.kind.name, NUMBERS[len(group.objects) - 1], *position, *color)
            threshold = num_pixels
    return result


def test_a_cell_has_the_words_of_the_object_that_covers_most_of_it(scenes: list[Scene]) -> None:
    """Kind, number, position and color of the object; or the setting."""
    for scene in scenes:
        labels = patch_labels(scene)
        cells = range(GRID * GRID)
        assert labels == [expected_words(scene, cell // GRID, cell % GRID) for cell in cells]
        assert all(set(words) <= set(WORDS) for words in labels)


def test_words_are_unique() -> None:
    """Each word has one index."""
    assert len(set(WORDS)) == len(WORDS)


def test_an_object_that_fills_the_image_fills_every_cell() -> None:
    """Without objects, every cell is the setting."""
    full = SceneObject(0, 0, SIDE, SIDE, mirrored=False)
    dog = replace(EMPTY, groups=(ObjectGroup(OBJECT_KINDS["dog"], None, (full,)),))
    assert patch_labels(EMPTY) == [("beach",)] * GRID**2
    assert patch_labels(dog) == [("dog", "one", "middle")] * GRID**2


def test_a_quarter_of_a_cell_is_not_enough() -> None:
    """One more row of pixels is."""
    for extra, expected in ((0, "beach"), (1, "dog")):
        scene_object = SceneObject(0, 0, CELL, CELL // 4 + extra, mirrored=False)
        scene = replace(EMPTY, groups=(ObjectGroup(OBJECT_KINDS["dog"], None, (scene_object,)),))
        assert patch_labels(scene)[0][0] == expected


def test_patch_coverage_is_the_fraction_of_the_box_in_each_cell(scenes: list[Scene]) -> None:
    """Pixels are counted one by one; the fractions add up to one."""
    for _, item in [pair for scene in scenes for pair in scene.objects]:
        pixels = np.zeros((SIDE, SIDE))
        pixels[item.top : item.top + item.height, item.left : item.left + item.width] = 1
        cells = pixels.reshape(GRID, CELL, GRID, CELL).sum(axis=(1, 3))  # (rows, columns)
        coverage = patch_coverage(item)
        assert coverage.dtype == np.float32
        assert coverage.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(coverage, (cells / cells.sum()).ravel(), atol=1e-6)


def test_an_object_within_one_cell_covers_only_that_cell() -> None:
    """Row 2, column 5."""
    coverage = patch_coverage(SceneObject(5 * CELL + 3, 2 * CELL + 1, 11, 7, mirrored=False))
    assert coverage[2 * GRID + 5] == 1
    assert np.count_nonzero(coverage) == 1


def test_center_tokens_divide_the_image_into_sixteen_bins_on_each_axis(
    scenes: list[Scene],
) -> None:
    """Cells of an object have its center, all others their own."""
    for scene in scenes:
        boxes = {
            group.kind.name: [item.box for item in group.objects] for group, _ in scene.objects
        }
        labels = patch_labels(scene)
        for cell, (words, token) in enumerate(zip(labels, center_tokens(scene), strict=True)):
            row, column = divmod(cell, GRID)
            centers = [((column + 0.5) / GRID, (row + 0.5) / GRID)]
            if len(words) > 1:
                centers = [box.center for box in boxes[words[0]]]
            expected = {f"<x{int(16 * across)}><y{int(16 * down)}>" for across, down in centers}
            assert token in expected
            assert set(token.replace("><", "> <").split()) <= set(CENTER_TOKENS)
