"""What a scene can show: the kinds of things, their colours, the settings, and the pairs kept for testing."""

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A thing that can be drawn; its name, number and group are COCO's."""

    name: str
    glyph: str
    """The character that OpenMoji draws it with."""

    category_id: int
    supercategory: str
    painted: bool = False
    """Whether it is given a colour, which the captions then name."""


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("bird", "🐦", 16, "animal"),
        Kind("cat", "🐈", 17, "animal"),
        Kind("dog", "🐕", 18, "animal"),
        Kind("horse", "🐎", 19, "animal"),
        Kind("sheep", "🐑", 20, "animal"),
        Kind("cow", "🐄", 21, "animal"),
        Kind("elephant", "🐘", 22, "animal"),
        Kind("bear", "🐻", 23, "animal"),
        Kind("zebra", "🦓", 24, "animal"),
        Kind("giraffe", "🦒", 25, "animal"),
        Kind("bicycle", "🚲", 2, "vehicle", painted=True),
        Kind("car", "🚗", 3, "vehicle", painted=True),
        Kind("motorcycle", "🏍", 4, "vehicle"),
        Kind("airplane", "✈", 5, "vehicle"),
        Kind("bus", "🚌", 6, "vehicle", painted=True),
        Kind("train", "🚂", 7, "vehicle"),
        Kind("boat", "⛵", 9, "vehicle"),
        Kind("banana", "🍌", 52, "food"),
        Kind("apple", "🍎", 53, "food"),
        Kind("broccoli", "🥦", 56, "food"),
        Kind("carrot", "🥕", 57, "food"),
        Kind("pizza", "🍕", 59, "food"),
        Kind("donut", "🍩", 60, "food"),
        Kind("cake", "🎂", 61, "food"),
        Kind("backpack", "🎒", 27, "accessory", painted=True),
        Kind("umbrella", "☂", 28, "accessory", painted=True),
        Kind("suitcase", "🧳", 33, "accessory"),
        Kind("kite", "🪁", 38, "sports", painted=True),
        Kind("chair", "🪑", 62, "furniture", painted=True),
        Kind("book", "📕", 84, "indoor", painted=True),
        Kind("clock", "⏰", 85, "indoor"),
        Kind("tv", "📺", 72, "electronic"),
    )
}

COLOURS: dict[str, float] = {
    "red": 0.0,
    "yellow": 0.14,
    "green": 0.33,
    "blue": 0.6,
    "purple": 0.78,
}
"""Colours a painted thing can have, by hue in [0, 1)."""

SETTINGS: dict[str, str] = {
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
