"""Places and relations: a word where it is beyond dispute, none elsewhere."""

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

shares = st.floats(0, 1, allow_nan=False)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Draw an upright rectangle with an area."""
    left, right = sorted((draw(shares), draw(shares)))
    top, bottom = sorted((draw(shares), draw(shares)))
    assume(right - left > 0.01 and bottom - top > 0.01)
    return Box(left, top, right, bottom)


def around(across: float, down: float, half: float = 0.05) -> Box:
    """Return a small box with this center."""
    return Box(across - half, down - half, across + half, down + half)


def test_a_box_knows_its_center_and_area() -> None:
    """Both are worked out by hand."""
    box = Box(0.1, 0.2, 0.5, 0.8)
    assert box.center == pytest.approx((0.3, 0.5))
    assert box.area == pytest.approx(0.24)


def test_a_box_turned_inside_out_has_no_area() -> None:
    """Two negative sides do not make an area."""
    assert Box(0.5, 0.8, 0.1, 0.2).area == 0


def test_an_overlap_is_what_both_cover() -> None:
    """By hand: 0.2 across and 0.1 down are shared, and nothing with a box elsewhere."""
    one = Box(0.0, 0.0, 0.4, 0.3)
    assert one.overlap(Box(0.2, 0.2, 0.9, 0.9)) == pytest.approx(0.02)
    assert one.overlap(Box(0.4, 0.0, 0.6, 0.3)) == 0
    assert one.overlap(Box(0.5, 0.5, 0.6, 0.6)) == 0


@given(one=boxes(), other=boxes())
def test_an_overlap_is_mutual_and_no_larger_than_either(one: Box, other: Box) -> None:
    """Which box is asked makes no difference; a box overlaps itself by all of its area."""
    assert one.overlap(other) == other.overlap(one)
    assert one.overlap(other) <= min(one.area, other.area) + 1e-12
    assert one.overlap(one) == one.area


@pytest.mark.parametrize(
    ("across", "down", "place"),
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
def test_a_place_is_named_away_from_the_lines_between_places(
    across: float, down: float, place: str | None
) -> None:
    """Nine places, and none within 0.03 of a line at 0.36 or 0.64."""
    assert position_of(around(across, down)) == place


@given(box=boxes())
def test_a_mirrored_box_has_the_mirrored_place(box: Box) -> None:
    """Left and right change places, nothing else does."""
    mirrored = position_of(Box(1 - box.right, box.top, 1 - box.left, box.bottom))
    assume(min(abs(abs(box.center[0] - line) - 0.03) for line in (0.36, 0.64)) > 1e-9)
    place = position_of(box)
    swapped = place and place.replace("left", "?").replace("right", "left").replace("?", "right")
    assert mirrored == swapped


def test_every_place_has_a_phrase_of_its_own() -> None:
    """The words fit behind 'the dog is'."""
    phrases = {place: position_phrase(place) for place in PLACES}
    assert len(set(phrases.values())) == len(PLACES) == 9
    assert phrases["middle"] == "in the middle"
    assert phrases["left"] == "on the left"
    assert phrases["top"] == "at the top"
    assert phrases["bottom right"] == "at the bottom right"


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (around(0.2, 0.5), around(0.8, 0.5), ("left of",)),
        (around(0.8, 0.5), around(0.2, 0.5), ("right of",)),
        (around(0.5, 0.2), around(0.5, 0.8), ("above",)),
        (around(0.2, 0.8), around(0.8, 0.2), ("left of", "below")),
        (around(0.5, 0.5), around(0.6, 0.6), ()),
        (around(0.2, 0.5), around(0.36, 0.36), ("left of",)),
    ],
)
def test_a_relation_needs_centers_apart(one: Box, other: Box, found: tuple[str, ...]) -> None:
    """At most one word across and one down, each from 0.15 on."""
    assert relations(one, other) == found


def test_what_lies_in_another_thing_is_not_beside_it() -> None:
    """A person at the end of a couch is on it, however far the centers are apart."""
    couch, person = Box(0.0, 0.3, 1.0, 0.9), Box(0.0, 0.2, 0.2, 0.8)
    assert relations(person, couch) == ()
    assert relations(Box(0.0, 0.0, 0.2, 0.4), couch) == ("left of", "above")


@given(one=boxes(), other=boxes())
def test_relations_seen_from_the_other_side_are_the_opposite(one: Box, other: Box) -> None:
    """If the dog is left of the car, the car is right of the dog; nothing is beside itself."""
    assert relations(other, one) == tuple(OPPOSITE[word] for word in relations(one, other))
    assert relations(one, one) == ()


def test_every_relation_has_words_and_an_opposite_that_leads_back() -> None:
    """The two tables cover the same four relations."""
    assert OPPOSITE.keys() == RELATION_PHRASES.keys()
    assert all(
        OPPOSITE[OPPOSITE[relation]] == relation != OPPOSITE[relation] for relation in OPPOSITE
    )
