"""What cells say: the words of what covers most of them, counted pixel by pixel."""

from dataclasses import replace

import numpy as np
import pytest

from backbones.patch_words import GRID, WORDS, patch_coverage, patch_labels
from caldera.annotations.boxes import position_of
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import OBJECT_KINDS, SIDE, ObjectGroup, Scene, SceneObject, sample_scene

CELL = SIDE // GRID
NUMBERS = ("one", "two", "three", "four")
EMPTY = Scene("x", "beach", ())


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Thirteen scenes."""
    return [
        sample_scene(index, seed=5, split="train", shapes=glyph_shapes()) for index in range(13)
    ]


def whole_words(scene: Scene, row: int, column: int) -> tuple[str, ...]:
    """Return the words of what covers most of a cell, and at least a quarter."""
    best: tuple[str, ...] = (scene.setting,)
    most = 0.25 * CELL * CELL
    for group, thing in scene.things:
        covered = sum(
            thing.left <= x < thing.left + thing.width and thing.top <= y < thing.top + thing.height
            for x in range(column * CELL, (column + 1) * CELL)
            for y in range(row * CELL, (row + 1) * CELL)
        )
        if covered > most:
            place = (position_of(thing.box) or "").split()
            color = [group.color] if group.color else []
            best = (group.kind.name, NUMBERS[len(group.things) - 1], *place, *color)
            most = covered
    return best


def test_a_cell_says_what_covers_most_of_it(scenes: list[Scene]) -> None:
    """Kind, number, place and color of that thing; or the setting."""
    for scene in scenes:
        told = patch_labels(scene)
        assert told == [whole_words(scene, at // GRID, at % GRID) for at in range(GRID * GRID)]
        assert all(set(words) <= set(WORDS) for words in told)


def test_no_word_stands_twice() -> None:
    """So that each has one number."""
    assert len(set(WORDS)) == len(WORDS)


def test_what_fills_the_image_fills_every_cell() -> None:
    """And where nothing is, all is setting."""
    whole = SceneObject(0, 0, SIDE, SIDE, mirrored=False)
    dog = replace(EMPTY, groups=(ObjectGroup(OBJECT_KINDS["dog"], None, (whole,)),))
    assert patch_labels(EMPTY) == [("beach",)] * GRID**2
    assert patch_labels(dog) == [("dog", "one", "middle")] * GRID**2


def test_a_cell_hardly_covered_is_ground() -> None:
    """A quarter is not enough, a row of pixels more is."""
    for extra, said in ((0, "beach"), (1, "dog")):
        thing = SceneObject(0, 0, CELL, CELL // 4 + extra, mirrored=False)
        scene = replace(EMPTY, groups=(ObjectGroup(OBJECT_KINDS["dog"], None, (thing,)),))
        assert patch_labels(scene)[0][0] == said


def test_shares_lie_where_the_box_is(scenes: list[Scene]) -> None:
    """They are the shares of the box's pixels in each cell, counted one by one, and add up to one."""
    for _, thing in [pair for scene in scenes for pair in scene.things]:
        pixels = np.zeros((SIDE, SIDE))
        pixels[thing.top : thing.top + thing.height, thing.left : thing.left + thing.width] = 1
        cells = pixels.reshape(GRID, CELL, GRID, CELL).sum(axis=(1, 3))  # (rows, columns)
        shares = patch_coverage(thing)
        assert shares.dtype == np.float32
        assert shares.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(shares, (cells / cells.sum()).ravel(), atol=1e-6)


def test_a_thing_within_one_cell_is_in_that_cell_alone() -> None:
    """Row 2, column 5."""
    shares = patch_coverage(SceneObject(5 * CELL + 3, 2 * CELL + 1, 11, 7, mirrored=False))
    assert shares[2 * GRID + 5] == 1
    assert np.count_nonzero(shares) == 1
