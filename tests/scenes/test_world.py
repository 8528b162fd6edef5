"""Scenes: the same for the same numbers, everything inside and apart, held-out pairs kept out of training."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    MAX_THINGS,
    OBJECT_KINDS,
    SIDE,
    Scene,
    Split,
    sample_scene,
)

indices = st.integers(0, 10**9)
seeds = st.integers(0, 10**6)
splits: st.SearchStrategy[Split] = st.sampled_from(["train", "held_out"])


@pytest.fixture(autouse=True, scope="module")
def _glyphs() -> None:
    """Measure the glyphs once, so that no single example is slow for it."""
    glyph_shapes()


def scene(index: int, seed: int = 5, split: Split = "train") -> Scene:
    """Draw up one scene with OpenMoji's shapes."""
    return sample_scene(index, seed=seed, split=split, shapes=glyph_shapes())


def pairs(drawn: Scene) -> Iterator[frozenset[str]]:
    """Yield every two kinds that stand together."""
    names = [group.kind.name for group in drawn.groups]
    yield from (frozenset(pair) for pair in combinations(names, 2))


@given(index=indices, seed=seeds, split=splits)
def test_a_scene_can_be_made_again_alone(index: int, seed: int, split: Split) -> None:
    """All of it follows from seed, split and index, whatever was drawn up before."""
    first = scene(index, seed, split)
    scene(index + 1, seed, split)
    assert scene(index, seed, split) == first
    assert first.name == f"{split}-{seed}-{index:06d}"


def test_other_numbers_give_other_scenes() -> None:
    """Of 50 scenes none is met again under another seed, split or index."""
    drawn = [
        scene(index, seed, split)
        for index in range(50)
        for seed in (5, 6)
        for split in ("train", "held_out")
    ]
    assert len({(each.setting, each.groups) for each in drawn}) == len(drawn) == 200


@given(index=indices, seed=seeds, split=splits)
def test_everything_stands_inside_the_image_and_apart(index: int, seed: int, split: Split) -> None:
    """Boxes are whole pixels in the image, and no two share more than 6 % of the smaller."""
    things = [thing for _, thing in scene(index, seed, split).things]
    assert 1 <= len(things) <= MAX_THINGS
    for thing in things:
        assert 0 <= thing.left < thing.left + thing.width <= SIDE
        assert 0 <= thing.top < thing.top + thing.height <= SIDE
    for one, other in combinations(things, 2):
        across = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
        down = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
        smaller = min(one.width * one.height, other.width * other.height)
        assert max(0, across) * max(0, down) <= 0.06 * smaller + 1e-6


@given(index=indices, seed=seeds, split=splits)
def test_kinds_keep_their_shape_and_only_painted_ones_have_a_color(
    index: int, seed: int, split: Split
) -> None:
    """A kind stands in one group, as wide and high as its glyph up to rounding."""
    drawn = scene(index, seed, split)
    names = [group.kind.name for group in drawn.groups]
    assert len(set(names)) == len(names)
    for group, thing in drawn.things:
        assert (group.color in COLORS) is group.kind.has_color
        shape = glyph_shapes()[group.kind.name]
        assert abs(thing.width - shape * thing.height) <= 0.5 * max(1, shape) + 0.5


@given(index=indices, seed=seeds)
def test_training_scenes_never_put_a_held_out_pair_together(index: int, seed: int) -> None:
    """So that meeting the pair in a test is new."""
    assert not HELD_OUT_PAIRS.intersection(pairs(scene(index, seed, "train")))


@given(index=indices, seed=seeds)
def test_every_second_held_out_scene_is_a_held_out_pair(index: int, seed: int) -> None:
    """Odd ones show one such pair and nothing else, even ones show none."""
    drawn = scene(index, seed, "held_out")
    assert len(HELD_OUT_PAIRS.intersection(pairs(drawn))) == index % 2
    assert len(drawn.groups) == 2 or index % 2 == 0


def test_everything_that_can_be_shown_is_shown() -> None:
    """In 600 scenes every kind, color, setting and number of things, and in 600 more every held-out pair."""
    drawn = [scene(index) for index in range(600)]
    groups = [group for each in drawn for group in each.groups]
    assert {group.kind.name for group in groups} == OBJECT_KINDS.keys()
    assert {group.color for group in groups} == {None, *COLORS}
    assert {each.setting for each in drawn} == BACKGROUNDS.keys()
    assert {len(each.things) for each in drawn} == set(range(1, MAX_THINGS + 1))
    assert {len(group.things) for group in groups} >= {1, 2, 3, 4}
    together = Counter(pair for n in range(600) for pair in pairs(scene(n, split="held_out")))
    assert together.keys() >= HELD_OUT_PAIRS


def test_held_out_pairs_are_two_kinds_that_training_shows() -> None:
    """No kind is in more than one pair, so that each is met in training in almost any company."""
    names = [name for pair in HELD_OUT_PAIRS for name in pair]
    assert sorted(names) == sorted(set(names) & OBJECT_KINDS.keys())
    assert len(names) == 2 * len(HELD_OUT_PAIRS) == 32


def test_kinds_are_cocos() -> None:
    """No two share a number or a glyph, and numbers are within COCO's 1 to 90."""
    numbers = [kind.category_id for kind in OBJECT_KINDS.values()]
    assert (
        len(set(numbers))
        == len({kind.glyph for kind in OBJECT_KINDS.values()})
        == len(OBJECT_KINDS)
        == 32
    )
    assert min(numbers) >= 1
    assert max(numbers) <= 90
    assert all(name == kind.name for name, kind in OBJECT_KINDS.items())


def test_coco_numbers_its_categories_so(third_party: Path) -> None:
    """The real file gives each kind the same number and group."""
    path = third_party / "coco_mini" / "annotations" / "instances_train2017.json"
    entries = json.loads(path.read_text())["categories"]
    real = {entry["name"]: (entry["id"], entry["supercategory"]) for entry in entries}
    assert all(
        real[kind.name] == (kind.category_id, kind.supercategory) for kind in OBJECT_KINDS.values()
    )
