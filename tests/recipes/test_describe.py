"""What is told of recipes: every field once, numbers as people write them, and the same in JSON."""

import json

import pytest

from caldera.overrides import apply_overrides
from caldera.recipes.describe import (
    COLUMNS,
    compact_number,
    describe,
    format_value,
    overview,
    recipe_fields,
)
from caldera.recipes.registry import RECIPES, find_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_told_whole(name: str) -> None:
    """Two rows in the overview; in full each setting once, under the name by which --set changes it; JSON keeps all."""
    recipe = find_recipe(name)
    rows = overview(recipe)
    assert [row[COLUMNS.index("stage")] for row in rows] == ["pretrain", "finetune"]
    assert all(len(row) == len(COLUMNS) for row in rows)
    told = json.loads(json.dumps(describe(recipe)))
    assert told["name"] == name
    names = [setting["name"] for setting in told["settings"]]
    assert len(names) == len(set(names)) > 40
    for setting in recipe_fields(recipe):
        if isinstance(setting.value, int) and not isinstance(setting.value, bool):
            assert apply_overrides(recipe, [f"{setting.name}={setting.value}"]) == recipe


def test_the_papers_number_stands_beside_a_changed_one() -> None:
    """In brackets what is cited, before them what would be run."""
    recipe = apply_overrides(find_recipe("llava_next_7b"), ["finetune.batch_size=12"])
    first, last = overview(recipe)
    assert first[COLUMNS.index("batch")] == "256 (256)"
    assert last[COLUMNS.index("batch")] == "12 (128?)"
    assert last[COLUMNS.index("learning rate")] == "2e-5 (2e-5?), vision 2e-6 (2e-6?)"
    assert overview(find_recipe("demo"))[0][COLUMNS.index("data")] == "5,500 drawn scenes"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (2e-5, "2e-5"),
        (2.5e-6, "2.5e-6"),
        (0.03, "0.03"),
        (0.0, "0"),
        (256.0, "256"),
        (558_128, "558,128"),
        (-2, "-2"),
        (True, "True"),
        (None, "-"),
        ((), "-"),
        ((0.9, 0.999), "0.9, 0.999"),
        (("vision", "language"), "vision, language"),
    ],
)
def test_settings_are_spelled_as_people_write_them(value: object, told: str) -> None:
    """Small numbers with an exponent, large ones with commas, lists without brackets."""
    assert format_value(value) == told


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (None, "?"),
        (999, "999"),
        (12_726, "12.7 K"),
        (303_507_456, "304 M"),
        (6_738_415_616, "6.74 B"),
    ],
)
def test_sizes_are_told_in_three_digits(number: int | None, told: str) -> None:
    """In thousands, millions or billions."""
    assert compact_number(number) == told
