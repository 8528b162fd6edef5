"""Towers are found by exact name."""

from pathlib import Path

import pytest

from caldera.errors import UnknownNameError
from caldera.recipes.towers import resolve_tower


def test_towers_are_found_by_exact_name(tmp_path: Path) -> None:
    """For a typo the message suggests the nearest name."""
    with pytest.raises(UnknownNameError, match="did you mean 'scenes-vit'"):
        resolve_tower("scenes-vitt", tmp_path)
