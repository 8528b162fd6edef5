"""The numbers of the papers' recipes are the cited ones."""

import pytest

from caldera.errors import UsageError
from caldera.overrides import apply_overrides
from caldera.recipes.citations import CITATIONS
from caldera.recipes.describe import cited_field_names, parameters_of, recipe_fields
from caldera.recipes.recipe import Recipe
from caldera.recipes.registry import (
    PAPER_RECIPES,
    find_demo_recipe,
    find_paper_recipe,
    find_recipe,
)
from caldera.recipes.towers import HUB_TOWERS
from caldera.templates.registry import TEMPLATES


def differences(recipe: Recipe) -> list[str]:
    """Return the names of the fields whose value differs from the cited one."""
    return [setting.name for setting in recipe_fields(recipe) if setting.differs]


def test_the_table_has_the_papers_recipes() -> None:
    """There are eight recipes under their own names, each with citations and with towers of known shape."""
    assert len(PAPER_RECIPES) == 8
    assert list(CITATIONS) == list(PAPER_RECIPES)
    for name in PAPER_RECIPES:
        recipe = find_paper_recipe(name)
        assert recipe.name == name
        assert {recipe.vision, recipe.language} <= HUB_TOWERS.keys()


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_every_number_is_the_cited_one(name: str) -> None:
    """Exactly the required fields are cited, and every field has its cited value."""
    recipe = find_paper_recipe(name)
    assert sorted(CITATIONS[name].fields) == sorted(cited_field_names(recipe))
    assert len(CITATIONS[name].fields) >= 38
    unwritten = [  # templates that the table does not have yet
        field
        for field, cited in CITATIONS[name].fields.items()
        if field.endswith(".template") and cited.value not in TEMPLATES
    ]
    assert differences(recipe) == unwritten


@pytest.mark.parametrize(
    "change",
    ["finetune.batch_size=127", "pretrain.learning_rate=1e-4", "finetune.epochs=2", "finetune.aspect=square",
     "projector=linear", "finetune.lora.rank=64", "finetune_data.rows=66500"],
)  # fmt: skip
def test_a_changed_value_is_found(change: str) -> None:
    """One changed value is one difference."""
    recipe = apply_overrides(find_paper_recipe("llava_15_7b_lora"), [change])
    assert differences(recipe) == [change.partition("=")[0]]


def test_unverified_values_are_marked() -> None:
    """Only values of LLaVA-NeXT's stage 2 are unverified."""
    unverified = {
        f"{name}: {field}"
        for name, citation in CITATIONS.items()
        for field, cited in citation.fields.items()
        if not cited.certain
    }
    fields = {
        "finetune.learning_rate",
        "finetune.vision_learning_rate",
        "finetune.batch_size",
        "finetune.loss_batch_size",
        "finetune.max_grad_norm",
        "finetune.max_length",
        "finetune.epochs",
        "finetune.template",
        "finetune_data.rows",
    }
    names = ("llava_next_7b", "llava_next_mistral_7b")
    assert unverified == {f"{name}: {field}" for name in names for field in fields}


@pytest.mark.parametrize(
    ("name", "vision", "projector", "language"),
    [
        ("llava_7b", 303_179_776, 4_198_400, 6_738_415_616),
        ("llava_13b", 303_179_776, 5_248_000, 13_015_864_320),
        ("llava_15_7b", 303_507_456, 20_979_712, 6_738_415_616),
        ("llava_15_13b", 303_507_456, 31_467_520, 13_015_864_320),
        ("llava_next_mistral_7b", 303_507_456, 20_979_712, 7_241_732_096),
    ],
)
def test_sizes_are_those_of_the_published_weights(
    name: str, vision: int, projector: int, language: int
) -> None:
    """Sizes computed from shapes are those of the published files."""
    sizes = {"vision": vision, "projector": projector, "language": language}
    assert parameters_of(find_recipe(name)) == sizes


def test_a_recipe_of_the_other_kind_names_its_command() -> None:
    """`caldera demo` does not run a paper's recipe, nor `caldera train recipe` the demo's; a typo gets a suggestion."""
    with pytest.raises(UsageError, match="run it with: caldera train recipe llava_7b"):
        find_demo_recipe("llava_7b")
    with pytest.raises(UsageError, match="run it with: caldera demo --recipe demo"):
        find_paper_recipe("demo")
    for find in (find_recipe, find_paper_recipe):
        with pytest.raises(UsageError, match="did you mean 'llava_15_7b'"):
            find("llava_15_7")
