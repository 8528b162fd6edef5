"""A photo run writes every file, and can be resumed after it was killed."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caldera.devices import DeviceConfig, Runtime
from caldera.errors import AnnotationError, CalderaError, UnknownNameError, UsageError
from caldera.formats.model_folder import load_model_folder
from caldera.pipelines.photo_run import run_photo_recipe
from caldera.progress import NoProgress
from caldera.recipes.photos import photos
from caldera.recipes.recipe import PhotoRecipe, check_recipe
from tests.datasets.photo_folders import write_class_folders, write_image
from tests.pipelines.conftest import run_and_kill

RUNTIME = Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress())
COUNTS = {"hat": 9, "pants": 13, "t-shirt": 5}


def tiny(vision: Path, language: Path) -> PhotoRecipe:
    """Return the recipe with random towers and few steps."""
    recipe = photos()
    return replace(
        recipe,
        vision=str(vision),
        language=str(language),
        hold_out="8",
        pretrain=replace(recipe.pretrain, batch_size=8, max_length=256, save_every=2),
        finetune=replace(recipe.finetune, batch_size=8, max_length=256, save_every=2),
    )


def test_a_run_writes_every_file(vision_folder: Path, long_language: Path, tmp_path: Path) -> None:
    """A run writes data, two trained models, answers, scores, a report and the model, and repeats none of it."""
    write_class_folders(tmp_path / "photos", COUNTS)
    out, recipe = tmp_path / "run", tiny(vision_folder, long_language)

    scores = run_photo_recipe(recipe, tmp_path / "photos", out, RUNTIME)

    results = json.loads((out / "results.json").read_text())
    assert results["photos"] == {"training": 19, "held out": 8}
    assert set(results["questions"]) == {"overall", "naming", "presence"}
    assert set(results["accuracy"]) == set(results["shuffled_images"]) == set(results["questions"])
    assert results["questions"]["naming"] == 8
    assert results["most_common_class"] >= 1 / 3
    assert scores.example.is_file()
    page = (out / "report.html").read_text()
    assert page.count("<img") == 8 + 2
    assert "always the most frequent class" in page
    model = load_model_folder(out / "model")
    assert set(model.card.recipe) == {"pretrain", "finetune"}

    written = {
        file: file.stat().st_mtime_ns for file in (*out.glob("answers/*"), *out.glob("*/model/*"))
    }
    assert run_photo_recipe(recipe, tmp_path / "photos", out, RUNTIME).answers == scores.answers
    assert written == {file: file.stat().st_mtime_ns for file in written}


def test_errors_before_training_do_not_block_the_corrected_command(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """Photos are read and split before the recipe is written; the error names the setting to change."""
    write_class_folders(tmp_path / "photos", COUNTS)
    out, recipe = tmp_path / "run", tiny(vision_folder, long_language)
    with pytest.raises(UsageError, match=r"hold out 24 or fewer, .* --set hold_out=2$"):
        run_photo_recipe(replace(recipe, hold_out=None), tmp_path / "photos", out, RUNTIME)
    with pytest.raises(AnnotationError, match=r"cannot read .*phtos"):
        run_photo_recipe(recipe, tmp_path / "phtos", out, RUNTIME)
    with pytest.raises(UnknownNameError, match="mistyped"):
        run_photo_recipe(replace(recipe, vision="mistyped"), tmp_path / "photos", out, RUNTIME)
    assert not [*out.glob("recipe.json"), *out.glob("pretrain")]
    too_short = replace(recipe, pretrain=replace(recipe.pretrain, max_length=2))
    with pytest.raises(CalderaError, match="max_length"):
        run_photo_recipe(too_short, tmp_path / "photos", out, RUNTIME)
    check_recipe(out, recipe)


def test_splits_are_used(vision_folder: Path, long_language: Path, tmp_path: Path) -> None:
    """Folders train and test above the class folders are what is trained on and what is asked about."""
    write_class_folders(tmp_path / "photos" / "train", {"hat": 5, "skirt": 4})
    write_class_folders(tmp_path / "photos" / "test", {"hat": 2, "skirt": 2}, first=70)
    write_class_folders(tmp_path / "photos" / "validation", {"hat": 1, "skirt": 1}, first=90)
    recipe = replace(tiny(vision_folder, long_language), hold_out=None)

    scores = run_photo_recipe(recipe, tmp_path / "photos", tmp_path / "run", RUNTIME)

    assert (scores.num_training, scores.num_held_out) == (9, 4)
    assert "test" in scores.example.parts


def test_other_photos_are_another_run(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """A folder whose photos have changed is rejected, as its model is not one of these photos."""
    write_class_folders(tmp_path / "photos", COUNTS)
    recipe = tiny(vision_folder, long_language)
    run_photo_recipe(recipe, tmp_path / "photos", tmp_path / "run", RUNTIME)
    write_image(tmp_path / "photos" / "hat" / "new.png", 99)
    with pytest.raises(
        UsageError, match=r"holds a finished run of other data.*choose another --out"
    ):
        run_photo_recipe(recipe, tmp_path / "photos", tmp_path / "run", RUNTIME)


@pytest.mark.slow
def test_a_killed_run_is_resumed_with_the_same_result(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """After two SIGKILLs, answers and scores are those of an uninterrupted run."""
    write_class_folders(tmp_path / "photos", {"hat": 60, "pants": 50})
    command = [
        *(sys.executable, "-m", "caldera", "demo", "--recipe", "photos", "--dtype", "float32"),
        *("--images", str(tmp_path / "photos"), "--set", "hold_out=20"),
        *("--set", f"vision={vision_folder}", "--set", f"language={long_language}"),
        *("--set", "pretrain.save_every=1", "--set", "finetune.save_every=1"),
        *("--set", "pretrain.batch_size=4", "--set", "finetune.batch_size=4"),
    ]
    run_and_kill(command, tmp_path, (6.0, 12.0))

    for answers in (tmp_path / "uninterrupted" / "answers").iterdir():
        assert (tmp_path / "killed" / "answers" / answers.name).read_bytes() == answers.read_bytes()
