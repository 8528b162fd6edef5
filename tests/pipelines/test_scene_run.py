"""A scene run writes every file, and can be resumed after it was killed or started by version 0.1."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from caldera.devices import DeviceConfig, Runtime
from caldera.errors import UnknownNameError, UsageError
from caldera.formats.model_folder import load_model_folder
from caldera.pipelines.scene_run import run_scene_recipe
from caldera.progress import NoProgress
from caldera.recipes.demo import demo
from caldera.recipes.recipe import QuestionCounts, SceneCounts, SceneRecipe
from tests.pipelines.conftest import run_and_kill

RUNTIME = Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress())
COLUMNS = ("accuracy", "majority_baseline", "shuffled_images", "without_pretraining")
CATEGORIES = {
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
    recipe = demo()
    return replace(
        recipe,
        scenes=SceneCounts(train=30, held_out=12),
        vision=str(vision),
        language=str(language),
        pretrain=replace(recipe.pretrain, batch_size=8, max_length=256, save_every=2),
        finetune=replace(recipe.finetune, batch_size=8, max_length=1024, save_every=2),
        questions=QuestionCounts(per_image=8, context_per_image=2, captioned=3),
    )


def test_a_run_writes_every_file(vision_folder: Path, long_language: Path, tmp_path: Path) -> None:
    """A run writes images, data, three trained models, answers, scores, a report and the model."""
    out = tmp_path / "run"

    run_scene_recipe(tiny(vision_folder, long_language), out, RUNTIME)

    results = json.loads((out / "results.json").read_text())
    for column in COLUMNS:
        assert set(results[column]) == CATEGORIES
        assert all(0 <= score <= 1 for score in results[column].values())
    assert results["questions"]["overall"] == sum(
        count for category, count in results["questions"].items() if category != "overall"
    )
    assert results["majority_baseline"]["presence"] == 0.5
    assert results["seconds"]["total"] == pytest.approx(
        sum(value for step, value in results["seconds"].items() if step != "total"), abs=0.2
    )
    page = (out / "report.html").read_text()
    assert page.count("<img") > 20
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    model = load_model_folder(out / "model")
    assert model.card.stage == "finetune"
    assert set(model.card.recipe) == {"pretrain", "finetune"}
    not_pretrained = load_model_folder(out / "without_pretraining" / "model")
    assert set(not_pretrained.card.recipe) == {"finetune"}


def test_answers_are_reused_for_the_same_weights_and_items_only(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """Answers are reused in a second start; those of changed weights are generated again."""
    out, recipe = tmp_path / "run", tiny(vision_folder, long_language)
    run_scene_recipe(recipe, out, RUNTIME)
    written = {file: file.stat().st_mtime_ns for file in (out / "answers").iterdir()}
    assert len(written) == 4

    run_scene_recipe(recipe, out, RUNTIME)
    assert {file: file.stat().st_mtime_ns for file in written} == written

    file = out / "finetune" / "model" / "model.safetensors"
    weights = load_file(file)
    weights["multi_modal_projector.linear_1.weight"] *= -1
    save_file(weights, file)
    run_scene_recipe(recipe, out, RUNTIME)
    again = {file.name for file, moment in written.items() if file.stat().st_mtime_ns != moment}
    assert again == {file.name for file in written} - {"the_same_no_stage_1.json"}


def test_a_run_with_other_settings_is_rejected(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """A folder holds the run of one recipe."""
    recipe = tiny(vision_folder, long_language)
    (tmp_path / "run" / "scenes" / "train").mkdir(parents=True)
    (tmp_path / "run" / "recipe.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"holds a run with other settings .*; choose another --out"
    ):
        run_scene_recipe(recipe, tmp_path / "run", RUNTIME)


def test_an_error_before_the_first_scene_leaves_no_recipe(
    vision_folder: Path, tmp_path: Path
) -> None:
    """A mistyped tower is found before scenes are drawn, and does not block the corrected command."""
    recipe = tiny(vision_folder, tmp_path / "mistyped")
    with pytest.raises(UnknownNameError, match="mistyped"):
        run_scene_recipe(recipe, tmp_path / "run", RUNTIME)
    assert not [*(tmp_path / "run").glob("recipe.json"), *(tmp_path / "run").glob("scenes")]


FORMER_NAMES = {
    "trainable": "trains",
    "cache_features": "keep_features",
    "calibrate_projector": "fit_projector",
    "share_prefixes": "share_pictures",
    "gradient_checkpointing": "recompute",
    "warmup_ratio": "warmup_fraction",
    "validation_size": "validation_rows",
    "grid_pinpoints": "grids",
    "eval_every": "validate_every",
    "save_every": "checkpoint_every",
    "per_image": "per_picture",
    "context_per_image": "context_per_picture",
    "vision_feature_layer": "select_layer",
}
"""Names of settings in version 0.1, by their current names."""


def test_a_run_of_version_0_1_is_resumed(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """Former names of settings and files are accepted, and nothing is trained or timed anew."""
    out, recipe = tmp_path / "run", tiny(vision_folder, long_language)
    run_scene_recipe(recipe, out, RUNTIME)
    text = (out / "recipe.json").read_text()
    for name, former in FORMER_NAMES.items():
        assert f'"{name}"' in text, name
        text = text.replace(f'"{name}"', f'"{former}"')
    (out / "recipe.json").write_text(text)
    (out / "timings.json").rename(out / "seconds.json")
    (out / "without_pretraining").rename(out / "without_pretrain")
    models = {file: file.stat().st_mtime_ns for file in out.rglob("*/model/model.safetensors")}
    seconds = json.loads((out / "seconds.json").read_text())["pretrain"]

    run_scene_recipe(recipe, out, RUNTIME)

    assert len(models) == 3
    for file, moment in models.items():
        current = Path(str(file).replace("without_pretrain/", "without_pretraining/"))
        assert current.stat().st_mtime_ns == moment
    assert json.loads((out / "timings.json").read_text())["pretrain"] >= seconds
    assert not (out / "seconds.json").exists()


@pytest.mark.slow
def test_a_killed_run_is_resumed_with_the_same_result(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """After five SIGKILLs, answers and scores are those of an uninterrupted run."""
    command = [
        *(sys.executable, "-m", "caldera", "demo", "--dtype", "float32"),
        *("--set", f"vision={vision_folder}", "--set", f"language={long_language}"),
        *("--set", "scenes.train=60", "--set", "scenes.held_out=12"),
        *("--set", "pretrain.save_every=1", "--set", "finetune.save_every=1"),
        *("--set", "finetune.max_length=1024", "--set", "pretrain.batch_size=4"),
        *("--set", "finetune.batch_size=4"),
    ]
    run_and_kill(command, tmp_path, (4.0, 6.0, 8.0, 10.0, 12.0))

    uninterrupted, killed = (
        json.loads((tmp_path / name / "results.json").read_text())
        for name in ("uninterrupted", "killed")
    )
    assert {key: uninterrupted[key] for key in COLUMNS} == {key: killed[key] for key in COLUMNS}
    for answers in (tmp_path / "uninterrupted" / "answers").iterdir():
        assert (tmp_path / "killed" / "answers" / answers.name).read_bytes() == answers.read_bytes()
