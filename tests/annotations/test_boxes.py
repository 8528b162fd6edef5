"""Tests of positions and relations: given only where they are unambiguous."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from caldera.annotations.boxes import (
    OPPOSITE,
    PLACES,
    RELATION_PHRASES,
    Box,
    position_of,
    position_phrase,
    relations,
)

fractions = st.floats(0, 1, allow_nan=False)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Generate a rectangle with an area."""
    left, right = sorted((draw(fractions), draw(fractions)))
    top, bottom = sorted((draw(fractions), draw(fractions)))
    assume(right - left > 0.01 and bottom - top > 0.01)
    return Box(left, top, right, bottom)


def around(across: float, down: float, half: float = 0.05) -> Box:
    """Return a small box with a given center."""
    return Box(across - half, down - half, across + half, down + half)


def test_center_and_area_of_a_box() -> None:
    """Expected values are computed by hand."""
    box = Box(0.1, 0.2, 0.5, 0.8)
    assert box.center == pytest.approx((0.3, 0.5))
    assert box.area == pytest.approx(0.24)


def test_an_inverted_box_has_no_area() -> None:
    """The product of two negative sides is not an area."""
    assert Box(0.5, 0.8, 0.1, 0.2).area == 0


def test_overlap_is_the_area_of_the_intersection() -> None:
    """By hand: 0.2 across and 0.1 down; 0 for separate boxes."""
    box = Box(0.0, 0.0, 0.4, 0.3)
    assert box.overlap(Box(0.2, 0.2, 0.9, 0.9)) == pytest.approx(0.02)
    assert box.overlap(Box(0.4, 0.0, 0.6, 0.3)) == 0
    assert box.overlap(Box(0.5, 0.5, 0.6, 0.6)) == 0


@given(box=boxes(), other=boxes())
def test_overlap_is_symmetric_and_at_most_either_area(box: Box, other: Box) -> None:
    """A box overlaps itself by its area."""
    assert box.overlap(other) == other.overlap(box)
    assert box.overlap(other) <= min(box.area, other.area) + 1e-12
    assert box.overlap(box) == box.area


@pytest.mark.parametrize(
    ("across", "down", "position"),
    [
        (0.1, 0.1, "top left"),
        (0.1, 0.5, "left"),
        (0.1, 0.9, "bottom left"),
        (0.5, 0.1, "top"),
        (0.5, 0.5, "middle"),
        (0.5, 0.9, "bottom"),
        (0.9, 0.1, "top right"),
        (0.9, 0.5, "right"),
        (0.9, 0.9, "bottom right"),
        (0.36, 0.1, None),
        (0.335, 0.1, None),
        (0.385, 0.1, None),
        (0.32, 0.1, "top left"),
        (0.40, 0.1, "top"),
        (0.1, 0.64, None),
        (0.1, 0.68, "bottom left"),
    ],
)
def test_a_position_is_given_away_from_the_lines_between_positions(
    across: float, down: float, position: str | None
) -> None:
    """Nine positions, and none within 0.03 of a line at 0.36 or 0.64."""
    assert position_of(around(across, down)) == position


@given(box=boxes())
def test_a_mirrored_box_has_the_mirrored_position(box: Box) -> None:
    """Left and right are swapped, nothing else."""
    mirrored = position_of(Box(1 - box.right, box.top, 1 - box.left, box.bottom))
    assume(min(abs(abs(box.center[0] - line) - 0.03) for line in (0.36, 0.64)) > 1e-9)
    position = position_of(box)
    swapped = position and position.replace("left", "?").replace("right", "left").replace(
        "?", "right"
    )
    assert mirrored == swapped


def test_every_position_has_its_own_phrase() -> None:
    """The phrase continues 'the dog is'."""
    phrases = {position: position_phrase(position) for position in PLACES}
    assert len(set(phrases.values())) == len(PLACES) == 9
    assert phrases["middle"] == "in the middle"
    assert phrases["left"] == "on the left"
    assert phrases["top"] == "at the top"
    assert phrases["bottom right"] == "at the bottom right"


@pytest.mark.parametrize(
    ("box", "other", "expected"),
    [
        (around(0.2, 0.5), around(0.8, 0.5), ("left of",)),
        (around(0.8, 0.5), around(0.2, 0.5), ("right of",)),
        (around(0.5, 0.2), around(0.5, 0.8), ("above",)),
        (around(0.2, 0.8), around(0.8, 0.2), ("left of", "below")),
        (around(0.5, 0.5), around(0.6, 0.6), ()),
        (around(0.2, 0.5), around(0.36, 0.36), ("left of",)),
    ],
)
def test_a_relation_needs_distant_centers(box: Box, other: Box, expected: tuple[str, ...]) -> None:
    """At most one relation across and one down, each from a distance of 0.15."""
    assert relations(box, other) == expected


def test_a_box_inside_another_has_no_relation_to_it() -> None:
    """A person at the end of a couch is on it, whatever the distance of the centers."""
    couch, person = Box(0.0, 0.3, 1.0, 0.9), Box(0.0, 0.2, 0.2, 0.8)
    assert relations(person, couch) == ()
    assert relations(Box(0.0, 0.0, 0.2, 0.4), couch) == ("left of", "above")


@given(box=boxes(), other=boxes())
def test_relations_of_swapped_boxes_are_opposite(box: Box, other: Box) -> None:
    """If the dog is left of the car, the car is right of the dog; a box has no relation to itself."""
    assert relations(other, box) == tuple(OPPOSITE[name] for name in relations(box, other))
    assert relations(box, box) == ()


def test_every_relation_has_a_phrase_and_an_opposite() -> None:
    """Both tables cover the same relations, and the opposite of the opposite is the relation itself."""
    assert OPPOSITE.keys() == RELATION_PHRASES.keys()
    assert all(
        OPPOSITE[OPPOSITE[relation]] == relation != OPPOSITE[relation] for relation in OPPOSITE
    )
