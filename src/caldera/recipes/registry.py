"""Recipes by exact name."""

from collections.abc import Callable

from caldera.errors import UnknownNameError, UsageError
from caldera.recipes import papers
from caldera.recipes.demo import demo, demo_smollm2
from caldera.recipes.papers import PaperRecipe
from caldera.recipes.photos import photos
from caldera.recipes.recipe import PhotoRecipe, Recipe, SceneRecipe

DEMO_RECIPES: dict[str, Callable[[], SceneRecipe | PhotoRecipe]] = {
    "demo": demo,
    "demo_smollm2": demo_smollm2,
    "photos": photos,
}
"""Recipes of `caldera demo`, which generates their data: from drawn scenes, or from a user's photos."""

PAPER_RECIPES: dict[str, Callable[[], PaperRecipe]] = {
    "llava_7b": papers.llava_7b,
    "llava_13b": papers.llava_13b,
    "science_qa": papers.science_qa,
    "llava_15_7b": papers.llava_15_7b,
    "llava_15_13b": papers.llava_15_13b,
    "llava_15_7b_lora": papers.llava_15_7b_lora,
    "llava_next_7b": papers.llava_next_7b,
    "llava_next_mistral_7b": papers.llava_next_mistral_7b,
}
"""Recipes of `caldera train recipe`, which needs data and towers."""

RECIPES: dict[str, Callable[[], Recipe]] = {**DEMO_RECIPES, **PAPER_RECIPES}
"""All recipes."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe called exactly `name`.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]()


def find_demo_recipe(name: str) -> SceneRecipe | PhotoRecipe:
    """Return the recipe called exactly `name` that generates its data.

    Raises:
        UnknownNameError: There is none.
        UsageError: It is a paper's, which needs data.
    """
    if name in PAPER_RECIPES:
        raise UsageError(f"{name} needs data and towers; run it with: caldera train recipe {name}")
    if name not in DEMO_RECIPES:
        raise UnknownNameError("recipe", name, DEMO_RECIPES)
    return DEMO_RECIPES[name]()


def find_paper_recipe(name: str) -> PaperRecipe:
    """Return the paper's recipe called exactly `name`.

    Raises:
        UnknownNameError: There is none.
        UsageError: It generates its data.
    """
    if name in DEMO_RECIPES:
        raise UsageError(f"{name} generates its data; run it with: caldera demo --recipe {name}")
    if name not in PAPER_RECIPES:
        raise UnknownNameError("recipe", name, PAPER_RECIPES)
    return PAPER_RECIPES[name]()
