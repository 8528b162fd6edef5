"""A Scene in, what each cell of a grid over it shows out, in bare words.

Both backbones are taught with the same grid: the vision tower to put a cell's words into the patch that lies there, the
language model to read rows of such cells. So stage 1 has only to bring the two together.
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
"""Rows and columns of cells; the tower's patches lie on the same grid."""

WORDS: tuple[str, ...] = (
    *OBJECT_KINDS,
    *COLORS,
    *BACKGROUNDS,
    *dict.fromkeys(" ".join(PLACES).split()),
    *map(number_word, range(1, MAX_SAME_KIND + 1)),
)
"""Every word that a cell can say, each once."""

_MIN_COVERAGE = 0.25
"""Share of a cell that a thing must cover to be named there."""


def patch_labels(scene: Scene) -> list[tuple[str, ...]]:
    """Say what each cell shows, row by row: the words of the thing that fills it most, else the setting."""
    return [object_words(*filled) if filled else (scene.setting,) for filled in _cells(scene)]


def object_words(group: ObjectGroup, thing: SceneObject) -> tuple[str, ...]:
    """Say a thing's kind, how many of it there are, and, as far as they have words, where it stands and its color."""
    place = position_of(thing.box) or ""
    color = (group.color,) if group.color else ()
    return (group.kind.name, number_word(len(group.things)), *place.split(), *color)


def _cells(scene: Scene) -> list[tuple[ObjectGroup, SceneObject] | None]:
    """Return what fills each cell most, row by row."""
    cells: list[tuple[ObjectGroup, SceneObject] | None] = [None] * GRID**2
    most = np.full(GRID**2, _MIN_COVERAGE)
    for group, thing in scene.things:
        covered = _coverage(thing)
        for cell in np.flatnonzero(covered > most).tolist():
            cells[cell] = (group, thing)
        most = np.maximum(most, covered)
    return cells


def _coverage(thing: SceneObject) -> NDArray[np.float64]:
    """Return the share of each cell that a thing's box covers, (cells,)."""
    edges, box = np.arange(GRID + 1) / GRID, thing.box
    across = np.minimum(edges[1:], box.right) - np.maximum(edges[:-1], box.left)
    down = np.minimum(edges[1:], box.bottom) - np.maximum(edges[:-1], box.top)
    return np.outer(down.clip(0), across.clip(0)).ravel() * GRID**2


def patch_coverage(thing: SceneObject) -> NDArray[np.float32]:
    """Return the share of a thing's box that lies in each cell, (cells,), adding up to one."""
    covered = _coverage(thing)
    return (covered / covered.sum()).astype(np.float32)
