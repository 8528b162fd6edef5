"""Where things are in an image, and the words for it: boxes, places, and relations between boxes.

Coordinates are shares of the image's width and height in [0, 1], the origin at the top left. A word is given
only where it is beyond dispute: between two places, or for two boxes side by side at the same height, there is none.
"""

from dataclasses import dataclass
from typing import Literal

Relation = Literal["left of", "right of", "above", "below"]

OPPOSITE: dict[Relation, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}

RELATION_PHRASES: dict[Relation, str] = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
}
"""The words that follow 'the dog is' and come before 'the car'."""

_MIDDLE = (0.36, 0.64)
"""The middle band of either axis."""

_MARGIN = 0.03
"""A center this close to a band's edge belongs to neither side."""

_MIN_SEPARATION = 0.15
"""Centers must differ by this much along an axis before one box is said to be beside the other."""

_INSIDE = 0.5
"""A box that shares more than this part of itself with another is in or on it rather than beside it."""

_WORDS = {
    ("left", "top"): "top left",
    ("left", "middle"): "left",
    ("left", "bottom"): "bottom left",
    ("middle", "top"): "top",
    ("middle", "middle"): "middle",
    ("middle", "bottom"): "bottom",
    ("right", "top"): "top right",
    ("right", "middle"): "right",
    ("right", "bottom"): "bottom right",
}

PLACES = tuple(_WORDS.values())
"""The nine places an image is divided into."""


@dataclass(frozen=True, slots=True)
class Box:
    """An upright rectangle inside an image."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def center(self) -> tuple[float, float]:
        """The middle of the box, (across, down)."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def area(self) -> float:
        """The share of the image the box covers."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def overlap(self, other: "Box") -> float:
        """Return the area that both boxes cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def _axis_band(position: float, low: str, high: str) -> str | None:
    """Name the band of an axis that `position` lies in, unless it is near an edge."""
    first, second = _MIDDLE
    if min(abs(position - first), abs(position - second)) < _MARGIN:
        return None
    return low if position < first else high if position > second else "middle"


def position_of(box: Box) -> str | None:
    """Name the ninth of the image that holds the box's center, or None where two names would do."""
    across, down = box.center
    column, row = _axis_band(across, "left", "right"), _axis_band(down, "top", "bottom")
    return _WORDS[column, row] if column and row else None


def position_phrase(place: str) -> str:
    """Turn a place's name into the phrase that follows a thing: 'top left' -> 'at the top left'."""
    return {"middle": "in the middle", "left": "on the left", "right": "on the right"}.get(
        place, f"at the {place}"
    )


def relations(one: Box, other: Box) -> tuple[Relation, ...]:
    """List what `one` certainly is to `other`: up to one word across and one down, none if one lies in the other."""
    if one.overlap(other) > _INSIDE * min(one.area, other.area):
        return ()
    (x1, y1), (x2, y2) = one.center, other.center
    found: list[Relation] = []
    if abs(x1 - x2) >= _MIN_SEPARATION:
        found.append("left of" if x1 < x2 else "right of")
    if abs(y1 - y2) >= _MIN_SEPARATION:
        found.append("above" if y1 < y2 else "below")
    return tuple(found)
