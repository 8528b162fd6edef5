"""Tests that captions are true: kinds, numbers, colors, positions and relations match the scene."""

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
    """Objects that a caption mentions."""

    number: int
    color: str | None
    kind: str
    position: tuple[str, str] | None
    """Row and column, '' for the middle ones."""


def mentions(caption: str) -> list[Mention]:
    """Parse the mentions of a caption."""
    result = []
    for number, color, noun, row, last in MENTION.findall(caption):
        rows, columns = (last, "") if last in ROWS else (row, last)
        position = (rows, columns.removeprefix("middle")) if last else None
        result.append(Mention(NUMBERS[number.lower()], color or None, NOUNS[noun], position))
    return result


def center(item: SceneObject) -> tuple[float, float]:
    """Return the center of an object, as fractions across and down."""
    return (item.left + item.width / 2) / SIDE, (item.top + item.height / 2) / SIDE


def is_at(item: SceneObject, position: tuple[str, str]) -> bool:
    """Return whether the center of an object is in a ninth of the image."""
    across, down = center(item)
    (top, bottom), (left, right) = ROWS[position[0]], COLUMNS[position[1]]
    return top < down < bottom and left < across < right


def holds(relation: str, first: SceneObject, second: SceneObject) -> bool:
    """Return whether the first object has a relation to the second."""
    (x1, y1), (x2, y2) = center(first), center(second)
    return {
        "to the left of": x1 < x2,
        "to the right of": x1 > x2,
        "above": y1 < y2,
        "below": y1 > y2,
    }[relation]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Sample 150 scenes of each split."""
    return [
        sample_scene(index, seed=5, split=split, shapes=glyph_shapes())
        for index in range(150)
        for split in ("train", "held_out")
    ]


def test_mentioned_objects_are_in_the_scene_with_number_and_color(scenes: list[Scene]) -> None:
    """The numbers of each mentioned kind add up to its number of objects; three of five captions mention all."""
    for scene in scenes:
        groups = {group.kind.name: group for group in scene.groups}
        num_complete = 0
        for caption in captions_of(scene):
            mentioned = mentions(caption)
            assert mentioned, caption
            kinds = {mention.kind for mention in mentioned}
            for kind in kinds:
                numbers = [mention.number for mention in mentioned if mention.kind == kind]
                assert sum(numbers) == len(groups[kind].objects), caption
            assert all(mention.color == groups[mention.kind].color for mention in mentioned), (
                caption
            )
            num_complete += kinds == groups.keys()
        assert num_complete >= 3


def test_mentioned_positions_are_those_of_objects(scenes: list[Scene]) -> None:
    """Each position has as many objects of the kind as the caption mentions there."""
    num_positions = 0
    for scene in scenes:
        objects = {group.kind.name: group.objects for group in scene.groups}
        for caption in captions_of(scene):
            placed = [mention for mention in mentions(caption) if mention.position]
            num_positions += len(placed)
            for mention in set(placed):
                assert mention.position is not None
                count = sum(is_at(item, mention.position) for item in objects[mention.kind])
                assert placed.count(mention) <= count, caption
    assert num_positions > 300


def test_mentioned_relations_hold_for_all_mentioned_objects(scenes: list[Scene]) -> None:
    """'Two cars above a dog' means both cars."""
    counts: dict[str, int] = {}
    for scene in scenes:
        objects = {group.kind.name: group.objects for group in scene.groups}
        for caption in captions_of(scene):
            for relation in RELATION.findall(caption):
                subject, reference = mentions(caption)
                counts[relation] = counts.get(relation, 0) + 1
                assert all(
                    holds(relation, first, second)
                    for first in objects[subject.kind]
                    for second in objects[reference.kind]
                ), caption
    assert len(counts) == 4
    assert min(counts.values()) > 10


def test_captions_agree_on_the_setting(scenes: list[Scene]) -> None:
    """Four of five captions mention it, and none another one."""
    for scene in scenes:
        settings = [
            [setting for setting in BACKGROUNDS if re.search(rf"\b{setting}\b", caption.lower())]
            for caption in captions_of(scene)
        ]
        assert sorted(settings) == [[], *[[scene.setting]] * 4]


def test_captions_are_five_deterministic_sentences(scenes: list[Scene]) -> None:
    """Each has a capital and a full stop; a scene of one group may have two equal captions."""
    for scene in scenes:
        captions = captions_of(scene)
        assert captions == captions_of(scene)
        assert len(captions) == 5
        assert len(set(captions)) >= (4 if len(scene.groups) > 1 else 3)
        for caption in captions:
            assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+,?)+\.", caption), caption


def test_an_object_phrase_names_one_object(scenes: list[Scene]) -> None:
    """It has the kind, color and position of that object."""
    num_positions = 0
    for scene in scenes:
        for group, item in scene.objects:
            [mention] = mentions(object_phrase(group, item))
            assert (mention.number, mention.color) == (1, group.color)
            assert mention.kind == group.kind.name
            num_positions += mention.position is not None
            assert mention.position is None or is_at(item, mention.position)
    assert num_positions > 300
