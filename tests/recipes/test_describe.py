"""Descriptions of recipes have every field once, readable numbers, and the same content in JSON."""

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
def test_every_recipe_is_described_completely(name: str) -> None:
    """The overview has two rows; the description has each setting once, under its name for --set."""
    recipe = find_recipe(name)
    rows = overview(recipe)
    assert [row[COLUMNS.index("stage")] for row in rows] == ["pretrain", "finetune"]
    assert all(len(row) == len(COLUMNS) for row in rows)
    description = json.loads(json.dumps(describe(recipe)))
    assert description["name"] == name
    names = [setting["name"] for setting in description["settings"]]
    assert len(names) == len(set(names)) > 40
    for setting in recipe_fields(recipe):
        if isinstance(setting.value, int) and not isinstance(setting.value, bool):
            assert apply_overrides(recipe, [f"{setting.name}={setting.value}"]) == recipe


def test_the_papers_value_follows_a_changed_one() -> None:
    """The cited value follows the recipe's in parentheses."""
    recipe = apply_overrides(find_recipe("llava_next_7b"), ["finetune.batch_size=12"])
    first, last = overview(recipe)
    assert first[COLUMNS.index("batch")] == "256 (256)"
    assert last[COLUMNS.index("batch")] == "12 (128?)"
    assert last[COLUMNS.index("learning rate")] == "2e-5 (2e-5?), vision 2e-6 (2e-6?)"
    assert overview(find_recipe("demo"))[0][COLUMNS.index("data")] == "5,500 drawn scenes"


@pytest.mark.parametrize(
    ("value", "text"),
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
def test_settings_are_readable(value: object, text: str) -> None:
    """Small numbers have an exponent, large ones commas, lists no brackets."""
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "?"),
        (999, "999"),
        (12_726, "12.7 K"),
        (303_507_456, "304 M"),
        (6_738_415_616, "6.74 B"),
    ],
)
def test_sizes_have_three_digits(number: int | None, text: str) -> None:
    """Sizes are in thousands, millions or billions."""
    assert compact_number(number) == text
