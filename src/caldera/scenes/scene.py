"""Object kinds, and sampling of synthetic scenes.

Each scene depends only on (seed, split, index), so any scene can be sampled again on its own.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from caldera.annotations.boxes import Box

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """A kind of object; its name, id and supercategory are COCO's."""

    name: str
    glyph: str
    """Character of its OpenMoji glyph."""

    category_id: int
    supercategory: str
    has_color: bool = False
    """Whether objects get a color, which captions name."""


OBJECT_KINDS: dict[str, ObjectKind] = {
    kind.name: kind
    for kind in (
        ObjectKind("bird", "🐦", 16, "animal"),
        ObjectKind("cat", "🐈", 17, "animal"),
        ObjectKind("dog", "🐕", 18, "animal"),
        ObjectKind("horse", "🐎", 19, "animal"),
        ObjectKind("sheep", "🐑", 20, "animal"),
        ObjectKind("cow", "🐄", 21, "animal"),
        ObjectKind("elephant", "🐘", 22, "animal"),
        ObjectKind("bear", "🐻", 23, "animal"),
        ObjectKind("zebra", "🦓", 24, "animal"),
        ObjectKind("giraffe", "🦒", 25, "animal"),
        ObjectKind("bicycle", "🚲", 2, "vehicle", has_color=True),
        ObjectKind("car", "🚗", 3, "vehicle", has_color=True),
        ObjectKind("motorcycle", "🏍", 4, "vehicle"),
        ObjectKind("airplane", "✈", 5, "vehicle"),
        ObjectKind("bus", "🚌", 6, "vehicle", has_color=True),
        ObjectKind("train", "🚂", 7, "vehicle"),
        ObjectKind("boat", "⛵", 9, "vehicle"),
        ObjectKind("banana", "🍌", 52, "food"),
        ObjectKind("apple", "🍎", 53, "food"),
        ObjectKind("broccoli", "🥦", 56, "food"),
        ObjectKind("carrot", "🥕", 57, "food"),
        ObjectKind("pizza", "🍕", 59, "food"),
        ObjectKind("donut", "🍩", 60, "food"),
        ObjectKind("cake", "🎂", 61, "food"),
        ObjectKind("backpack", "🎒", 27, "accessory", has_color=True),
        ObjectKind("umbrella", "☂", 28, "accessory", has_color=True),
        ObjectKind("suitcase", "🧳", 33, "accessory"),
        ObjectKind("kite", "🪁", 38, "sports", has_color=True),
        ObjectKind("chair", "🪑", 62, "furniture", has_color=True),
        ObjectKind("book", "📕", 84, "indoor", has_color=True),
        ObjectKind("clock", "⏰", 85, "indoor"),
        ObjectKind("tv", "📺", 72, "electronic"),
    )
}

COLORS: dict[str, float] = {
    "red": 0.0,
    "yellow": 0.14,
    "green": 0.33,
    "blue": 0.6,
    "purple": 0.78,
}
"""Colors of objects, as hues in [0, 1)."""

BACKGROUNDS: dict[str, str] = {
    "meadow": "in a meadow",
    "beach": "on a beach",
    "street": "on a street",
    "room": "in a room",
    "desert": "in a desert",
    "snow": "in the snow",
}
"""Settings of scenes, and their phrases in captions."""

HELD_OUT_PAIRS: frozenset[frozenset[str]] = frozenset(
    frozenset(pair)
    for pair in (
        ("dog", "umbrella"),
        ("cat", "bicycle"),
        ("horse", "pizza"),
        ("cow", "book"),
        ("sheep", "kite"),
        ("elephant", "cake"),
        ("bird", "clock"),
        ("giraffe", "bus"),
        ("zebra", "apple"),
        ("bear", "banana"),
        ("boat", "chair"),
        ("airplane", "carrot"),
        ("car", "donut"),
        ("train", "backpack"),
        ("motorcycle", "broccoli"),
        ("suitcase", "tv"),
    )
)
"""Kinds that are never in the same training scene, so that their combination is new in the held-out split."""

SIDE = 224
"""Width and height of a rendered image, in pixels."""

MAX_OBJECTS = 5
"""Maximal number of objects in a scene."""

MAX_SAME_KIND = 4
"""Maximal number of objects of one kind in a scene."""

_LENGTHS = {1: (88, 168), 2: (68, 116), 3: (60, 96), 4: (54, 82), 5: (52, 74)}
"""Range of the longer side of an object in pixels, by the number of objects in the scene."""

_MAX_OVERLAP = 0.06
"""Fraction of an object's box that another may cover."""

_MAX_ATTEMPTS = 60


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An object in a scene: its box in pixels, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool

    @property
    def box(self) -> Box:
        """The box as fractions of the image."""
        return Box(
            self.left / SIDE,
            self.top / SIDE,
            (self.left + self.width) / SIDE,
            (self.top + self.height) / SIDE,
        )


@dataclass(frozen=True, slots=True)
class ObjectGroup:
    """All objects of one kind in a scene; they have the same color, if any."""

    kind: ObjectKind
    color: str | None
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of an image."""

    name: str
    setting: str
    groups: tuple[ObjectGroup, ...]

    @property
    def objects(self) -> tuple[tuple[ObjectGroup, SceneObject], ...]:
        """All objects with their groups, in the order they are drawn."""
        return tuple((group, item) for group in self.groups for item in group.objects)


def sample_scene(index: int, *, seed: int, split: Split, shapes: Mapping[str, float]) -> Scene:
    """Sample scene number `index` of a split, always the same one; `shapes` are width over height of the kinds' glyphs.

    "train" never contains a held-out pair; "held_out" does so in every second scene.
    """
    rng = random.Random(f"scene {seed} {split} {index}")
    while True:
        setting = rng.choice(list(BACKGROUNDS))
        counts = _choose_kinds(rng, split, index)
        if groups := _place_objects(rng, counts, shapes):
            return Scene(f"{split}-{seed}-{index:06d}", setting, groups)


def _choose_kinds(rng: random.Random, split: Split, index: int) -> dict[str, int]:
    """Choose kinds and their numbers, at most MAX_OBJECTS in total."""
    if split == "held_out" and index % 2:
        names = rng.sample(sorted(rng.choice(sorted(HELD_OUT_PAIRS, key=sorted))), 2)
    else:
        names = rng.sample(list(OBJECT_KINDS), rng.choices((1, 2, 3, 4), (36, 34, 20, 10))[0])
        while any(frozenset(pair) in HELD_OUT_PAIRS for pair in combinations(names, 2)):
            names = rng.sample(list(OBJECT_KINDS), len(names))
    counts = dict.fromkeys(names, 1)
    limit = rng.randint(len(names), MAX_OBJECTS)
    for name in names:
        count = rng.choices(range(1, MAX_SAME_KIND + 1), (50, 21, 17, 12))[0]
        counts[name] += min(count - 1, limit - sum(counts.values()))
    return counts


def _place_objects(
    rng: random.Random, counts: Mapping[str, int], shapes: Mapping[str, float]
) -> tuple[ObjectGroup, ...]:
    """Place all objects; return an empty tuple if they do not fit."""
    total = sum(counts.values())
    placed: list[SceneObject] = []
    groups = []
    for name, count in counts.items():
        for _ in range(count):
            scene_object = _place_object(rng, shapes[name], total, placed)
            if scene_object is None:
                return ()
            placed.append(scene_object)
        color = rng.choice(list(COLORS)) if OBJECT_KINDS[name].has_color else None
        groups.append(ObjectGroup(OBJECT_KINDS[name], color, tuple(placed[-count:])))
    return tuple(groups)


def _place_object(
    rng: random.Random, shape: float, total: int, placed: list[SceneObject]
) -> SceneObject | None:
    """Sample positions for one object until it hardly overlaps the objects already `placed`."""
    for _ in range(_MAX_ATTEMPTS):
        length = rng.randint(*_LENGTHS[total])
        width = max(1, round(length * min(1.0, shape)))
        height = max(1, round(length / max(1.0, shape)))
        scene_object = SceneObject(
            rng.randint(2, SIDE - width - 2),
            rng.randint(2, SIDE - height - 2),
            width,
            height,
            rng.random() < 0.5,
        )
        box = scene_object.box
        if all(
            box.overlap(other.box) <= _MAX_OVERLAP * min(box.area, other.box.area)
            for other in placed
        ):
            return scene_object
    return None
