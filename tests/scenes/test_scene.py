"""Tests of sampled scenes: deterministic, objects inside and apart, held-out pairs never in training."""

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
    MAX_OBJECTS,
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
    """Measure the glyphs once, so that no single example is slow."""
    glyph_shapes()


def scene(index: int, seed: int = 5, split: Split = "train") -> Scene:
    """Sample a scene with OpenMoji's shapes."""
    return sample_scene(index, seed=seed, split=split, shapes=glyph_shapes())


def pairs(sampled: Scene) -> Iterator[frozenset[str]]:
    """Yield all pairs of kinds in a scene."""
    names = [group.kind.name for group in sampled.groups]
    yield from (frozenset(pair) for pair in combinations(names, 2))


@given(index=indices, seed=seeds, split=splits)
def test_a_scene_depends_only_on_seed_split_and_index(index: int, seed: int, split: Split) -> None:
    """It does not depend on scenes sampled before."""
    first = scene(index, seed, split)
    scene(index + 1, seed, split)
    assert scene(index, seed, split) == first
    assert first.name == f"{split}-{seed}-{index:06d}"


def test_other_seeds_splits_and_indices_give_other_scenes() -> None:
    """No two of 200 scenes are equal."""
    scenes = [
        scene(index, seed, split)
        for index in range(50)
        for seed in (5, 6)
        for split in ("train", "held_out")
    ]
    assert len({(item.setting, item.groups) for item in scenes}) == len(scenes) == 200


@given(index=indices, seed=seeds, split=splits)
def test_objects_are_inside_the_image_and_apart(index: int, seed: int, split: Split) -> None:
    """Boxes are inside the image, and the overlap of two is at most 6 % of the smaller one."""
    objects = [item for _, item in scene(index, seed, split).objects]
    assert 1 <= len(objects) <= MAX_OBJECTS
    for item in objects:
        assert 0 <= item.left < item.left + item.width <= SIDE
        assert 0 <= item.top < item.top + item.height <= SIDE
    for a, b in combinations(objects, 2):
        across = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
        down = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
        smaller = min(a.width * a.height, b.width * b.height)
        assert max(0, across) * max(0, down) <= 0.06 * smaller + 1e-6


@given(index=indices, seed=seeds, split=splits)
def test_objects_have_the_shape_of_their_glyph_and_a_color_if_their_kind_has_one(
    index: int, seed: int, split: Split
) -> None:
    """Each kind is in one group; width and height are those of its glyph up to rounding."""
    sampled = scene(index, seed, split)
    names = [group.kind.name for group in sampled.groups]
    assert len(set(names)) == len(names)
    for group, item in sampled.objects:
        assert (group.color in COLORS) is group.kind.has_color
        shape = glyph_shapes()[group.kind.name]
        assert abs(item.width - shape * item.height) <= 0.5 * max(1, shape) + 0.5


@given(index=indices, seed=seeds)
def test_training_scenes_contain_no_held_out_pair(index: int, seed: int) -> None:
    """The combination is new in the held-out split."""
    assert not HELD_OUT_PAIRS.intersection(pairs(scene(index, seed, "train")))


@given(index=indices, seed=seeds)
def test_every_second_held_out_scene_contains_a_held_out_pair(index: int, seed: int) -> None:
    """Odd scenes contain one such pair and nothing else, even scenes contain none."""
    sampled = scene(index, seed, "held_out")
    assert len(HELD_OUT_PAIRS.intersection(pairs(sampled))) == index % 2
    assert len(sampled.groups) == 2 or index % 2 == 0


def test_every_kind_color_setting_and_held_out_pair_occurs() -> None:
    """Kinds, colors, settings and counts within 600 training scenes, pairs within 600 held-out ones."""
    scenes = [scene(index) for index in range(600)]
    groups = [group for item in scenes for group in item.groups]
    assert {group.kind.name for group in groups} == OBJECT_KINDS.keys()
    assert {group.color for group in groups} == {None, *COLORS}
    assert {item.setting for item in scenes} == BACKGROUNDS.keys()
    assert {len(item.objects) for item in scenes} == set(range(1, MAX_OBJECTS + 1))
    assert {len(group.objects) for group in groups} >= {1, 2, 3, 4}
    pair_counts = Counter(pair for n in range(600) for pair in pairs(scene(n, split="held_out")))
    assert pair_counts.keys() >= HELD_OUT_PAIRS


def test_no_kind_is_in_two_held_out_pairs() -> None:
    """In training, each kind occurs with almost any other."""
    names = [name for pair in HELD_OUT_PAIRS for name in pair]
    assert sorted(names) == sorted(set(names) & OBJECT_KINDS.keys())
    assert len(names) == 2 * len(HELD_OUT_PAIRS) == 32


def test_category_ids_and_glyphs_are_unique() -> None:
    """Ids are within COCO's range of 1 to 90."""
    category_ids = [kind.category_id for kind in OBJECT_KINDS.values()]
    assert (
        len(set(category_ids))
        == len({kind.glyph for kind in OBJECT_KINDS.values()})
        == len(OBJECT_KINDS)
        == 32
    )
    assert min(category_ids) >= 1
    assert max(category_ids) <= 90
    assert all(name == kind.name for name, kind in OBJECT_KINDS.items())


def test_category_ids_and_supercategories_are_those_of_coco(third_party: Path) -> None:
    """They are compared with a real annotation file."""
    path = third_party / "coco_mini" / "annotations" / "instances_train2017.json"
    entries = json.loads(path.read_text())["categories"]
    real = {entry["name"]: (entry["id"], entry["supercategory"]) for entry in entries}
    assert all(
        real[kind.name] == (kind.category_id, kind.supercategory) for kind in OBJECT_KINDS.values()
    )
