"""What a scene can show: the kinds of things, their colors, the settings, and the pairs kept for testing."""

from dataclasses import dataclass
from typing import Literal

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
