"""Object kinds, scene sampling.

Scenes are drawn up one by one from (seed, split, index), so that any of them can be made again alone.
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
    """A thing that can be drawn; its name, number and group are COCO's."""

    name: str
    glyph: str
    """The character that OpenMoji draws it with."""

    category_id: int
    supercategory: str
    has_color: bool = False
    """Whether it is given a color, which the captions then name."""


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
"""Colors a painted thing can have, by hue in [0, 1)."""

BACKGROUNDS: dict[str, str] = {
    "meadow": "in a meadow",
    "beach": "on a beach",
    "street": "on a street",
    "room": "in a room",
    "desert": "in a desert",
    "snow": "in the snow",
}
"""Backgrounds, and how a caption says that something is there."""

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
"""Kinds that never stand together in a training scene, so that meeting them together is new."""


SIDE = 224
"""Width and height of a drawn image, in pixels."""

MAX_THINGS = 5
"""Things in one scene, at most."""

MAX_SAME_KIND = 4
"""Things of one kind in a scene, at most."""

_LENGTHS = {1: (88, 168), 2: (68, 116), 3: (60, 96), 4: (54, 82), 5: (52, 74)}
"""Pixels along the longer side of a thing, by how many share the scene."""

_MAX_OVERLAP = 0.06
"""Share of a thing's box that another may cover."""

_MAX_ATTEMPTS = 60


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawn object: its box in pixels, (left, top, width, height), and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool

    @property
    def box(self) -> Box:
        """The box as shares of the image."""
        return Box(
            self.left / SIDE,
            self.top / SIDE,
            (self.left + self.width) / SIDE,
            (self.top + self.height) / SIDE,
        )


@dataclass(frozen=True, slots=True)
class ObjectGroup:
    """All the things of one kind in a scene; they share a color if the kind is painted."""

    kind: ObjectKind
    color: str | None
    things: tuple[SceneObject, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """What an image will show."""

    name: str
    setting: str
    groups: tuple[ObjectGroup, ...]

    @property
    def things(self) -> tuple[tuple[ObjectGroup, SceneObject], ...]:
        """Every thing with its group, in the order they are drawn."""
        return tuple((group, thing) for group in self.groups for thing in group.things)


def sample_scene(index: int, *, seed: int, split: Split, shapes: Mapping[str, float]) -> Scene:
    """Decide what scene number `index` of a split shows.

    Args:
        index: Number of the scene within its seed and split.
        seed: Scenes of different seeds have nothing to do with each other.
        split: "train" never puts a held-out pair together; "held_out" does so in every second scene.
        shapes: Width over height of each kind's glyph, by kind name.

    Returns:
        The same scene whenever it is asked for again.
    """
    rng = random.Random(f"scene {seed} {split} {index}")
    while True:
        setting = rng.choice(list(BACKGROUNDS))
        counts = _choose_kinds(rng, split, index)
        if groups := _place(rng, counts, shapes):
            return Scene(f"{split}-{seed}-{index:06d}", setting, groups)


def _choose_kinds(rng: random.Random, split: Split, index: int) -> dict[str, int]:
    """Choose kinds and how many of each, at most MAX_THINGS in all."""
    if split == "held_out" and index % 2:
        names = rng.sample(sorted(rng.choice(sorted(HELD_OUT_PAIRS, key=sorted))), 2)
    else:
        names = rng.sample(list(OBJECT_KINDS), rng.choices((1, 2, 3, 4), (36, 34, 20, 10))[0])
        while any(frozenset(pair) in HELD_OUT_PAIRS for pair in combinations(names, 2)):
            names = rng.sample(list(OBJECT_KINDS), len(names))
    counts = dict.fromkeys(names, 1)
    room = rng.randint(len(names), MAX_THINGS)
    for name in names:
        wanted = rng.choices(range(1, MAX_SAME_KIND + 1), (50, 21, 17, 12))[0]
        counts[name] += min(wanted - 1, room - sum(counts.values()))
    return counts


def _place(
    rng: random.Random, counts: Mapping[str, int], shapes: Mapping[str, float]
) -> tuple[ObjectGroup, ...]:
    """Find room for everything; empty if it does not fit."""
    total = sum(counts.values())
    taken: list[SceneObject] = []
    groups = []
    for name, count in counts.items():
        placed = []
        for _ in range(count):
            thing = _find_room(rng, shapes[name], total, taken)
            if thing is None:
                return ()
            taken.append(thing)
            placed.append(thing)
        color = rng.choice(list(COLORS)) if OBJECT_KINDS[name].has_color else None
        groups.append(ObjectGroup(OBJECT_KINDS[name], color, tuple(placed)))
    return tuple(groups)


def _find_room(
    rng: random.Random, shape: float, total: int, taken: list[SceneObject]
) -> SceneObject | None:
    """Try places for one thing until one is hardly covered by those already `taken`."""
    for _ in range(_MAX_ATTEMPTS):
        length = rng.randint(*_LENGTHS[total])
        width = max(1, round(length * min(1.0, shape)))
        height = max(1, round(length / max(1.0, shape)))
        thing = SceneObject(
            rng.randint(2, SIDE - width - 2),
            rng.randint(2, SIDE - height - 2),
            width,
            height,
            rng.random() < 0.5,
        )
        box = thing.box
        if all(
            box.overlap(other.box) <= _MAX_OVERLAP * min(box.area, other.box.area)
            for other in taken
        ):
            return thing
    return None
