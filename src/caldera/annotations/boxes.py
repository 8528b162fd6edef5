"""Boxes, their positions in an image, and the spatial relations between them.

Coordinates are fractions of the image's width and height in [0, 1]; the origin is the top left corner. A position or
relation is given only where it is unambiguous: not near the line between two positions, nor for nearly equal centers.
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
"""Phrases between 'the dog is' and 'the car'."""

_MIDDLE = (0.36, 0.64)
"""Middle band of either axis."""

_MARGIN = 0.03
"""Distance to the edge of a band within which a center belongs to neither band."""

_MIN_SEPARATION = 0.15
"""Minimal distance of two centers along an axis for a relation on that axis."""

_INSIDE = 0.5
"""Fraction of the smaller box within the other above which the two have no relation: one is in or on the other."""

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
"""The nine positions of an image."""


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned rectangle in an image."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def center(self) -> tuple[float, float]:
        """Center of the box, (across, down)."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def area(self) -> float:
        """Fraction of the image that the box covers."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def overlap(self, other: "Box") -> float:
        """Return the area of the intersection with another box."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def _axis_band(position: float, low: str, high: str) -> str | None:
    """Return the name of the band of an axis that contains `position`; None near an edge."""
    first, second = _MIDDLE
    if min(abs(position - first), abs(position - second)) < _MARGIN:
        return None
    return low if position < first else high if position > second else "middle"


def position_of(box: Box) -> str | None:
    """Return the position of the box's center, one of PLACES; None where two would fit."""
    across, down = box.center
    column, row = _axis_band(across, "left", "right"), _axis_band(down, "top", "bottom")
    return _WORDS[column, row] if column and row else None


def position_phrase(position: str) -> str:
    """Return the phrase of a position: 'top left' -> 'at the top left'."""
    return {"middle": "in the middle", "left": "on the left", "right": "on the right"}.get(
        position, f"at the {position}"
    )


def relations(box: Box, other: Box) -> tuple[Relation, ...]:
    """Return the relations of `box` to `other`: at most one across and one down, none if one is inside the other."""
    if box.overlap(other) > _INSIDE * min(box.area, other.area):
        return ()
    (x, y), (other_x, other_y) = box.center, other.center
    result: list[Relation] = []
    if abs(x - other_x) >= _MIN_SEPARATION:
        result.append("left of" if x < other_x else "right of")
    if abs(y - other_y) >= _MIN_SEPARATION:
        result.append("above" if y < other_y else "below")
    return tuple(result)
