"""Captions are true: whatever they name is there, so many, so colored, and where they say."""

import re
from dataclasses import dataclass

import pytest

from caldera.scenes.captions import captions_of, object_phrase
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import (
    BACKGROUNDS,
    COLORS,
    OBJECT_KINDS,
    SIDE,
    Scene,
    SceneObject,
    sample_scene,
)

NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}
SAME = ("sheep", "broccoli")
NOUNS = {
    noun: name
    for name in OBJECT_KINDS
    for noun in (name, name if name in SAME else f"{name}es" if name == "bus" else f"{name}s")
}
COLUMNS = {"left": (0, 0.36), "right": (0.64, 1), "": (0.36, 0.64)}
ROWS = {"top": (0, 0.36), "bottom": (0.64, 1), "": (0.36, 0.64)}
MENTION = re.compile(
    rf"\b({'|'.join(NUMBERS)}) (?:({'|'.join(COLORS)}) )?({'|'.join(NOUNS)})\b"
    r"(?: (?:at|on|in) the (?:(top|bottom)? ?(left|right|top|bottom|middle)))?",
    re.IGNORECASE,
)
RELATION = re.compile(r" (to the left of|to the right of|above|below) ")


@dataclass(frozen=True)
class Mention:
    """What a caption says of some things."""

    number: int
    color: str | None
    kind: str
    place: tuple[str, str] | None
    """Row and column, '' for the middle ones."""


def mentions(caption: str) -> list[Mention]:
    """Take a caption apart."""
    found = []
    for number, color, noun, row, last in MENTION.findall(caption):
        rows, columns = (last, "") if last in ROWS else (row, last)
        place = (rows, columns.removeprefix("middle")) if last else None
        found.append(Mention(NUMBERS[number.lower()], color or None, NOUNS[noun], place))
    return found


def middle(thing: SceneObject) -> tuple[float, float]:
    """Return where the middle of a thing is, as shares across and down."""
    return (thing.left + thing.width / 2) / SIDE, (thing.top + thing.height / 2) / SIDE


def stands(thing: SceneObject, place: tuple[str, str]) -> bool:
    """Tell whether the middle of a thing lies in a ninth of the image."""
    across, down = middle(thing)
    (top, bottom), (left, right) = ROWS[place[0]], COLUMNS[place[1]]
    return top < down < bottom and left < across < right


def holds(relation: str, one: SceneObject, other: SceneObject) -> bool:
    """Tell whether one thing stands so to another."""
    (x1, y1), (x2, y2) = middle(one), middle(other)
    return {
        "to the left of": x1 < x2,
        "to the right of": x1 > x2,
        "above": y1 < y2,
        "below": y1 > y2,
    }[relation]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Three hundred scenes of either split."""
    return [
        sample_scene(index, seed=5, split=split, shapes=glyph_shapes())
        for index in range(150)
        for split in ("train", "held_out")
    ]


def test_what_a_caption_names_is_there_in_that_number_and_color(scenes: list[Scene]) -> None:
    """For every kind it names, the numbers add up to the number there is; three of five name all."""
    for scene in scenes:
        there = {group.kind.name: group for group in scene.groups}
        naming_all = 0
        for caption in captions_of(scene):
            said = mentions(caption)
            assert said, caption
            for kind in {mention.kind for mention in said}:
                numbers = [mention.number for mention in said if mention.kind == kind]
                assert sum(numbers) == len(there[kind].things), caption
            assert all(mention.color == there[mention.kind].color for mention in said), caption
            naming_all += {mention.kind for mention in said} == there.keys()
        assert naming_all >= 3


def test_a_place_in_a_caption_is_that_of_a_thing(scenes: list[Scene]) -> None:
    """Each place is met by as many things of the kind as it is said of."""
    told = 0
    for scene in scenes:
        things = {group.kind.name: group.things for group in scene.groups}
        for caption in captions_of(scene):
            placed = [mention for mention in mentions(caption) if mention.place]
            told += len(placed)
            for mention in set(placed):
                assert mention.place is not None
                there = sum(stands(thing, mention.place) for thing in things[mention.kind])
                assert placed.count(mention) <= there, caption
    assert told > 300


def test_a_relation_in_a_caption_holds_for_all_things_it_names(scenes: list[Scene]) -> None:
    """'Two cars above a dog': both are."""
    told: dict[str, int] = {}
    for scene in scenes:
        things = {group.kind.name: group.things for group in scene.groups}
        for caption in captions_of(scene):
            for relation in RELATION.findall(caption):
                one, other = mentions(caption)
                told[relation] = told.get(relation, 0) + 1
                assert all(
                    holds(relation, first, second)
                    for first in things[one.kind]
                    for second in things[other.kind]
                ), caption
    assert len(told) == 4
    assert min(told.values()) > 10


def test_captions_agree_on_the_setting(scenes: list[Scene]) -> None:
    """Four of five name it, none another."""
    for scene in scenes:
        named = [
            [setting for setting in BACKGROUNDS if re.search(rf"\b{setting}\b", caption.lower())]
            for caption in captions_of(scene)
        ]
        assert sorted(named) == [[], *[[scene.setting]] * 4]


def test_captions_are_five_different_sentences_and_always_the_same(scenes: list[Scene]) -> None:
    """A capital, a full stop, and no double spaces; a scene of one thing may be told twice alike."""
    for scene in scenes:
        told = captions_of(scene)
        assert told == captions_of(scene)
        assert len(told) == 5
        assert len(set(told)) >= 4 if len(scene.groups) > 1 else len(set(told)) >= 3
        assert all(re.fullmatch(r"[A-Z][a-z]*( [a-z]+,?)+\.", caption) for caption in told), told


def test_a_phrase_names_one_thing_alone(scenes: list[Scene]) -> None:
    """Kind, color and place of that very thing."""
    places = 0
    for scene in scenes:
        for group, thing in scene.things:
            [said] = mentions(object_phrase(group, thing))
            assert (said.number, said.color, said.kind) == (1, group.color, group.kind.name)
            places += said.place is not None
            assert said.place is None or stands(thing, said.place)
    assert places > 300
