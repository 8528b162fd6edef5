"""Recipes by exact name."""

from collections.abc import Callable

from caldera.errors import UnknownNameError
from caldera.recipes.demo import demo
from caldera.recipes.demo_smollm2 import demo_smollm2
from caldera.recipes.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "demo_smollm2": demo_smollm2,
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe called exactly `name`.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]()
