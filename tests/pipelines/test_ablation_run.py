"""Ablation runs train every variant once, and read the scores of earlier versions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caldera.conversation import read_conversations
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import UsageError
from caldera.formats.model_folder import load_model_folder
from caldera.pipelines.ablation_run import run_ablations
from caldera.pipelines.ablations import ablations, base_recipe, select_variants
from caldera.progress import NoProgress
from caldera.recipes.recipe import QuestionCounts, SceneCounts, SceneRecipe

RUNTIME = Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress())

FORMER_FINGERPRINT = "205bb39544e768a9"
"""Fingerprint that version 0.1 gave the variant `whole` with seed 0."""


def tiny(vision: Path, language: Path) -> SceneRecipe:
    """Return the recipe of the ablations with random towers and few scenes."""
    recipe = base_recipe()
    return replace(
        recipe,
        scenes=SceneCounts(train=30, held_out=6),
        vision=str(vision),
        language=str(language),
        pretrain=replace(recipe.pretrain, batch_size=8, max_length=256, max_steps=2),
        finetune=replace(recipe.finetune, batch_size=8, max_length=1024, max_steps=2),
        questions=QuestionCounts(per_image=8, context_per_image=2, captioned=1),
    )


def test_scores_of_version_0_1_are_reused(tmp_path: Path) -> None:
    """The scores of a variant in `marks.json`, with its former fingerprint, are not computed again."""
    recipe, out = base_recipe(), tmp_path / "ablations"
    recipe = replace(  # with the settings of version 0.1
        recipe,
        pretrain=replace(recipe.pretrain, epochs=3),
        finetune=replace(
            recipe.finetune, epochs=1, learning_rate=5e-4, projector_learning_rate=1e-3
        ),
        finetune_mix=replace(recipe.finetune_mix, caption=0.1),
    )
    folder = out / "whole" / "seed-0"
    folder.mkdir(parents=True)
    scores = {"count": {"a": 1.0, "b": 0.0}, "with reasons": {"c": 1.0}}
    stored = {"identity": FORMER_FINGERPRINT, "marks": scores, "answers": {}}
    (folder / "marks.json").write_text(json.dumps(stored))
    small = replace(recipe, scenes=replace(recipe.scenes, train=1, held_out=2))
    variants = select_variants(ablations(recipe), ["whole"])

    [result] = run_ablations(out, small, variants, [0], RUNTIME)

    assert result.by_kind == {"overall": 0.5, "count": 0.5, "with reasons": 1.0}
    assert not (out / "pretrain").exists()


@pytest.mark.slow
def test_an_ablation_run_trains_every_variant_once(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """Each variant is trained for each seed, equal stages 1 are shared, and a second start trains nothing."""
    recipe, out = tiny(vision_folder, long_language), tmp_path / "ablations"
    variants = ablations(recipe)

    results = run_ablations(out, recipe, variants, range(2), RUNTIME)

    assert [result.variant.name for result in results] == [variant.name for variant in variants]
    assert len([*out.glob("pretrain/*/seed-0/model")]) == 4  # whole, last layer, half, linear
    assert len([*out.glob("*/seed-*/scores.json")]) == 2 * len(variants)
    assert (
        load_model_folder(out / "linear" / "seed-0" / "finetune" / "model").card.projector
        == "linear"
    )
    assert not (out / "no-stage-2" / "seed-0" / "finetune").exists()
    fingerprints = {
        name: load_model_folder(out / name / "seed-0" / "finetune" / "model").card.source_digests[
            "run"
        ]
        for name in ("whole", "reasons-first", "no-stage-1", "last-layer", "half-model", "linear")
    }
    assert len({*fingerprints.values()}) == len(fingerprints)  # other data, weights or settings
    written = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert run_ablations(out, recipe, variants, range(2), RUNTIME) == results
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == written
    assert all(read_conversations(file) for file in (out / "data").glob("*.json"))
    other = replace(recipe, finetune=replace(recipe.finetune, max_steps=3))
    with pytest.raises(UsageError, match="other settings"):
        run_ablations(out, other, ablations(other), range(1), RUNTIME)
