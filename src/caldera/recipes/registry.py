"""Recipes by exact name."""

from collections.abc import Callable

from caldera.errors import UnknownNameError, UsageError
from caldera.recipes import papers
from caldera.recipes.demo import demo, demo_smollm2
from caldera.recipes.papers import PaperRecipe
from caldera.recipes.recipe import Recipe, SceneRecipe

SCENE_RECIPES: dict[str, Callable[[], SceneRecipe]] = {
    "demo": demo,
    "demo_smollm2": demo_smollm2,
}
"""What `caldera demo` runs: they make their own data."""

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
"""What `caldera train recipe` runs, on data and towers that its user brings."""

RECIPES: dict[str, Callable[[], Recipe]] = {**SCENE_RECIPES, **PAPER_RECIPES}
"""All of them."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe called exactly `name`.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]()


def find_scene_recipe(name: str) -> SceneRecipe:
    """Return the recipe called exactly `name` that makes its own data.

    Raises:
        UnknownNameError: There is none.
        UsageError: It is a paper's, whose data must be brought.
    """
    if name in PAPER_RECIPES:
        raise UsageError(
            f"{name} needs data and towers that you bring; run it with: caldera train recipe {name}"
        )
    if name not in SCENE_RECIPES:
        raise UnknownNameError("recipe", name, SCENE_RECIPES)
    return SCENE_RECIPES[name]()


def find_paper_recipe(name: str) -> PaperRecipe:
    """Return the recipe called exactly `name` whose data its user brings.

    Raises:
        UnknownNameError: There is none.
        UsageError: It makes its own data.
    """
    if name in SCENE_RECIPES:
        raise UsageError(f"{name} makes its own data; run it with: caldera demo --recipe {name}")
    if name not in PAPER_RECIPES:
        raise UnknownNameError("recipe", name, PAPER_RECIPES)
    return PAPER_RECIPES[name]()
