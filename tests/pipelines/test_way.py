"""The whole way at tiny size: every artefact is there, and a run that was killed goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from caldera.devices import DeviceConfig, Runtime
from caldera.errors import UsageError
from caldera.formats.model_folder import load_model_folder
from caldera.overrides import apply_overrides
from caldera.pipelines.scene_run import run_scene_recipe
from caldera.progress import NoProgress
from caldera.recipes.demo import demo
from caldera.recipes.recipe import InstructionMix, QuestionCounts, SceneCounts, SceneRecipe
from caldera.recipes.registry import SCENE_RECIPES, find_scene_recipe

MEANS = Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress())
COLUMNS = ("accuracy", "prior", "other_image", "without_pretrain")
KINDS = {
    "overall",
    "presence",
    "position",
    "count",
    "relation",
    "colour",
    "naming",
    "setting",
    "reasoning",
    "context",
}


def tiny(vision: Path, language: Path) -> SceneRecipe:
    """Return the demo with random towers and a handful of scenes."""
    whole = demo()
    return replace(
        whole,
        scenes=SceneCounts(train=30, held_out=12),
        vision=str(vision),
        language=str(language),
        pretrain=replace(whole.pretrain, batch_size=8, max_length=256, save_every=2),
        finetune=replace(whole.finetune, batch_size=8, max_length=1024, save_every=2),
        questions=QuestionCounts(per_image=8, context_per_image=2, captioned=3),
    )


def test_the_whole_way(vision_folder: Path, long_language: Path, tmp_path: Path) -> None:
    """Images, data, two stages and a comparison without the first, scores, a report and a model."""
    out = tmp_path / "run"

    run_scene_recipe(tiny(vision_folder, long_language), out, MEANS)

    results = json.loads((out / "results.json").read_text())
    for column in COLUMNS:
        assert set(results[column]) == KINDS
        assert all(0 <= share <= 1 for share in results[column].values())
    assert results["questions"]["overall"] == sum(
        count for kind, count in results["questions"].items() if kind != "overall"
    )
    assert results["prior"]["presence"] == 0.5
    assert results["seconds"]["total"] == pytest.approx(
        sum(value for step, value in results["seconds"].items() if step != "total"), abs=0.2
    )
    page = (out / "report.html").read_text()
    assert page.count("<img") > 20
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    model = load_model_folder(out / "model")
    assert model.card.stage == "finetune"
    assert set(model.card.recipe) == {"pretrain", "finetune"}
    trained_alone = load_model_folder(out / "without_pretrain" / "model")
    assert set(trained_alone.card.recipe) == {"finetune"}


def test_answers_are_kept_for_the_same_assistant_and_items_alone(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """Answers of this run are not asked for twice; those of other weights are asked for anew."""
    out, recipe = tmp_path / "run", tiny(vision_folder, long_language)
    run_scene_recipe(recipe, out, MEANS)
    made = {file: file.stat().st_mtime_ns for file in (out / "answers").iterdir()}
    assert len(made) == 4

    run_scene_recipe(recipe, out, MEANS)
    assert {file: file.stat().st_mtime_ns for file in made} == made

    file = out / "finetune" / "model" / "model.safetensors"
    weights = load_file(file)
    weights["multi_modal_projector.linear_1.weight"] *= -1
    save_file(weights, file)
    run_scene_recipe(recipe, out, MEANS)
    again = {file.name for file, moment in made.items() if file.stat().st_mtime_ns != moment}
    assert again == {file.name for file in made} - {"the_same_no_stage_1.json"}


def test_a_run_of_other_settings_is_not_mixed_in(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """A folder keeps to its recipe."""
    recipe = tiny(vision_folder, long_language)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a run with other settings .*; choose another --out"):
        run_scene_recipe(recipe, tmp_path / "run", MEANS)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """SIGKILL again and again: the answers and scores of a run that was left alone."""
    command = [
        *(sys.executable, "-m", "caldera", "demo", "--dtype", "float32"),
        *("--set", f"vision={vision_folder}", "--set", f"language={long_language}"),
        *("--set", "scenes.train=60", "--set", "scenes.held_out=12"),
        *("--set", "pretrain.save_every=1", "--set", "finetune.save_every=1"),
        *("--set", "finetune.max_length=1024", "--set", "pretrain.batch_size=4"),
        *("--set", "finetune.batch_size=4"),
    ]
    subprocess.run([*command, "--out", str(tmp_path / "calm")], check=True, capture_output=True)
    for patience in (4.0, 6.0, 8.0, 10.0, 12.0):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(patience)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, capture_output=True)

    calm, killed = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("calm", "killed")
    )
    assert {key: calm[key] for key in COLUMNS} == {key: killed[key] for key in COLUMNS}
    for answers in (tmp_path / "calm" / "answers").iterdir():
        assert (tmp_path / "killed" / "answers" / answers.name).read_bytes() == answers.read_bytes()


@pytest.mark.parametrize("name", SCENE_RECIPES)
def test_every_recipe_is_built(name: str) -> None:
    """Each entry of the table makes a recipe of its own name, with data for both stages."""
    assert len(SCENE_RECIPES) >= 2
    recipe = find_scene_recipe(name)
    assert recipe.name == name
    assert recipe.pretrain_mix.shares
    assert recipe.finetune_mix.shares
    assert recipe.pretrain.trainable == ("projector",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scenes.train=-5"], "scenes: train is -5; it must be at least 1"),
        (["finetune_mix.vqa=3"], r"mix: vqa is 3.0; it must lie in \[0, 1\]"),
        (["pretrain_mix.caption=0"], "mix: every kind is 0"),
        (["questions.per_picture=-1"], "questions: per_image is -1"),
        (["questions.captioned=0"], "questions: captioned is 0; it must be at least 1"),
        (["questions.context_per_picture=-1"], "context_per_image is -1; it must be at least 0"),
        (["aspect=padd"], "no aspect is called 'padd'; did you mean 'pad'?"),
        (["projector=mlpp"], "no projector is called 'mlpp'; known: linear, mlp2x_gelu"),
    ],
)
def test_a_recipe_that_cannot_be_carried_out_is_not_built(
    settings: list[str], message: str
) -> None:
    """A setting out of its range is refused where it is set, before anything is drawn."""
    with pytest.raises(UsageError, match=message):
        apply_overrides(demo(), settings)


def test_a_recipe_names_all_its_faults() -> None:
    """Two wrong names are told together, and so are two wrong numbers."""
    with pytest.raises(UsageError, match=r"'mlpp'.*'padd'"):
        replace(demo(), projector="mlpp", aspect="padd")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"train is 0.*held_out is -1"):
        SceneCounts(train=0, held_out=-1)
    with pytest.raises(UsageError, match=r"detail is -0.1.*vqa is 2"):
        InstructionMix(detail=-0.1, vqa=2)
    with pytest.raises(UsageError, match=r"per_image is 0.*context_per_image is -1"):
        QuestionCounts(per_image=0, context_per_image=-1)
