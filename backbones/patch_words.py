"""Words of each patch: labels of the cells of a grid over a scene.

Both backbones are trained on the same grid: the vision tower to predict the words of a cell from the patch there, the
language model to read rows of such cells. So stage 1 only has to align the two.
"""

import numpy as np
from numpy.typing import NDArray

from caldera.annotations.boxes import PLACES, position_of
from caldera.annotations.english import number_word
from caldera.scenes.scene import (
    BACKGROUNDS,
    COLORS,
    MAX_SAME_KIND,
    OBJECT_KINDS,
    ObjectGroup,
    Scene,
    SceneObject,
)

GRID = 8
"""Rows and columns of cells; the tower's patches are on the same grid."""

WORDS: tuple[str, ...] = (
    *OBJECT_KINDS,
    *COLORS,
    *BACKGROUNDS,
    *dict.fromkeys(" ".join(PLACES).split()),
    *map(number_word, range(1, MAX_SAME_KIND + 1)),
)
"""The vocabulary of the cells."""

_CENTER_BINS = 16

CENTER_TOKENS: tuple[str, ...] = tuple(
    f"<{axis}{number}>" for axis in "xy" for number in range(_CENTER_BINS)
)
"""Tokens of the center of an object, from left to right and from top to bottom."""

_MIN_COVERAGE = 0.25
"""Fraction of a cell that an object must cover to be its label."""


def patch_labels(scene: Scene) -> list[tuple[str, ...]]:
    """Return the words of each cell, row by row: those of the object that covers most of it, else the setting."""
    return [object_words(*label) if label else (scene.setting,) for label in _cells(scene)]


def center_tokens(scene: Scene) -> list[str]:
    """Return the tokens of the center of each cell's object, row by row; without an object, of the cell's own."""
    return [
        _center_token(label[1].box.center if label else _cell_center(cell))
        for cell, label in enumerate(_cells(scene))
    ]


def _cell_center(cell: int) -> tuple[float, float]:
    row, column = divmod(cell, GRID)
    return (column + 0.5) / GRID, (row + 0.5) / GRID


def _center_token(center: tuple[float, float]) -> str:
    across, down = (min(_CENTER_BINS - 1, int(_CENTER_BINS * value)) for value in center)
    return f"<x{across}><y{down}>"


def object_words(group: ObjectGroup, scene_object: SceneObject) -> tuple[str, ...]:
    """Return an object's kind, the number of such objects, its position if unambiguous, and its color if any."""
    position = position_of(scene_object.box) or ""
    color = (group.color,) if group.color else ()
    return (group.kind.name, number_word(len(group.objects)), *position.split(), *color)


def _cells(scene: Scene) -> list[tuple[ObjectGroup, SceneObject] | None]:
    """Return the object that covers most of each cell, row by row."""
    cells: list[tuple[ObjectGroup, SceneObject] | None] = [None] * GRID**2
    max_coverage = np.full(GRID**2, _MIN_COVERAGE)
    for group, scene_object in scene.objects:
        coverage = _coverage(scene_object)
        for cell in np.flatnonzero(coverage > max_coverage).tolist():
            cells[cell] = (group, scene_object)
        max_coverage = np.maximum(max_coverage, coverage)
    return cells


def _coverage(scene_object: SceneObject) -> NDArray[np.float64]:
    """Return the fraction of each cell that an object's box covers, (cells,)."""
    edges, box = np.arange(GRID + 1) / GRID, scene_object.box
    across = np.minimum(edges[1:], box.right) - np.maximum(edges[:-1], box.left)
    down = np.minimum(edges[1:], box.bottom) - np.maximum(edges[:-1], box.top)
    return np.outer(down.clip(0), across.clip(0)).ravel() * GRID**2


def patch_coverage(scene_object: SceneObject) -> NDArray[np.float32]:
    """Return the fraction of an object's box in each cell, (cells,); the sum is one."""
    coverage = _coverage(scene_object)
    return (coverage / coverage.sum()).astype(np.float32)
