"""Recipes of the table are built, and impossible settings are rejected."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from caldera.errors import UsageError
from caldera.overrides import apply_overrides
from caldera.recipes.demo import demo
from caldera.recipes.recipe import (
    TRAINED,
    InstructionMix,
    QuestionCounts,
    SceneCounts,
    SceneRecipe,
    check_recipe,
    write_recipe,
)
from caldera.recipes.registry import DEMO_RECIPES, find_demo_recipe


@pytest.mark.parametrize("name", DEMO_RECIPES)
def test_every_recipe_is_built(name: str) -> None:
    """Each entry of the table returns a recipe of its own name, with data for both stages."""
    assert len(DEMO_RECIPES) >= 2
    recipe = find_demo_recipe(name)
    assert recipe.name == name
    if isinstance(recipe, SceneRecipe):
        assert recipe.pretrain_mix.shares
        assert recipe.finetune_mix.shares
    assert recipe.pretrain.trainable == ("projector",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scenes.train=-5"], "scenes: train is -5; it must be at least 1"),
        (["finetune_mix.vqa=3"], r"mix: vqa is 3.0; it must lie in \[0, 1\]"),
        (["pretrain_mix.caption=0"], "mix: every kind is 0"),
        (["questions.per_image=-1"], "questions: per_image is -1"),
        (["questions.captioned=0"], "questions: captioned is 0; it must be at least 1"),
        (["questions.context_per_image=-1"], "context_per_image is -1; it must be at least 0"),
        (["questions.per_picture=3"], "did you mean 'per_image'?"),
        (["select_layer=-1"], "did you mean 'vision_feature_layer'?"),
        (["aspect=padd"], "no aspect is called 'padd'; did you mean 'pad'?"),
        (["projector=mlpp"], "no projector is called 'mlpp'; known: linear, mlp2x_gelu"),
    ],
)
def test_an_impossible_recipe_is_rejected(settings: list[str], message: str) -> None:
    """A setting out of its range is rejected when it is set."""
    with pytest.raises(UsageError, match=message):
        apply_overrides(demo(), settings)


def test_a_recipe_names_all_its_errors() -> None:
    """One message has both wrong names, or both wrong numbers."""
    with pytest.raises(UsageError, match=r"'mlpp'.*'padd'"):
        replace(demo(), projector="mlpp", aspect="padd")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"train is 0.*held_out is -1"):
        SceneCounts(train=0, held_out=-1)
    with pytest.raises(UsageError, match=r"detail is -0.1.*vqa is 2"):
        InstructionMix(detail=-0.1, vqa=2)
    with pytest.raises(UsageError, match=r"per_image is 0.*context_per_image is -1"):
        QuestionCounts(per_image=0, context_per_image=-1)


def test_a_run_folder_accepts_only_changes_that_change_no_step(tmp_path: Path) -> None:
    """Checkpoint and memory settings of a stage may differ."""
    recipe = find_demo_recipe("demo")
    write_recipe(tmp_path, recipe)
    (tmp_path / "pretrain" / "model").mkdir(parents=True)
    file = tmp_path / "recipe.json"
    former = json.loads(file.read_text())
    # Version 0.2 did not have it.
    del former["finetune"]["save_every_minutes"]
    file.write_text(json.dumps(former))

    check_recipe(tmp_path, apply_overrides(recipe, ["finetune.micro_batch_size=2"]))

    with pytest.raises(UsageError, match=r"\(finetune\.epochs was \d+, is 99\)"):
        check_recipe(tmp_path, apply_overrides(recipe, ["finetune.epochs=99"]))


def test_a_run_without_a_result_blocks_no_other_settings(tmp_path: Path) -> None:
    """What failed before a checkpoint, or before what a pattern names, is replaced."""
    recipe = find_demo_recipe("demo")
    write_recipe(tmp_path, recipe)
    (tmp_path / "pretrain" / "checkpoints").mkdir(parents=True)
    corrected = apply_overrides(recipe, ["finetune.epochs=99"])
    check_recipe(tmp_path, corrected, (*TRAINED, "scenes/*"))
    (tmp_path / "scenes" / "train").mkdir(parents=True)
    check_recipe(tmp_path, corrected)
    with pytest.raises(UsageError, match="holds a run with other settings"):
        check_recipe(tmp_path, corrected, (*TRAINED, "scenes/*"))
