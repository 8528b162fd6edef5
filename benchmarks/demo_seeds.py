"""The demo with several seeds: `python -m benchmarks.demo_seeds --out runs/demo_seeds`.

Each seed trains in a folder of its own, resumed if it exists, and decides the projector, the wording of the data and
the order of the steps. Prints the mean accuracy by kind of question, with the least and the greatest of the seeds,
and that of the majority baseline, of shuffled images and of an assistant without stage 1.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from caldera.devices import Runtime, choose_device, tune_malloc
from caldera.evaluation.benchmark import Score
from caldera.overrides import apply_overrides
from caldera.pipelines.scene_evaluation import SceneScores
from caldera.pipelines.scene_run import run_scene_recipe
from caldera.progress import default_progress
from caldera.recipes.demo import demo, demo_smollm2
from caldera.recipes.recipe import SceneRecipe

RECIPES = {"demo": demo, "demo_smollm2": demo_smollm2}


def with_seed(recipe: SceneRecipe, seed: int) -> SceneRecipe:
    """Return a recipe whose random choices, except for the scenes, follow from `seed`."""
    return replace(
        recipe,
        seed=recipe.seed + seed,
        pretrain=replace(recipe.pretrain, seed=recipe.pretrain.seed + seed),
        finetune=replace(recipe.finetune, seed=recipe.finetune.seed + seed),
    )


def format_table(results: Sequence[SceneScores]) -> str:
    """Return a Markdown table of the mean accuracy of each kind of question, with the least and the greatest."""
    columns = {
        "accuracy": [result.accuracy for result in results],
        "majority baseline": [result.majority_baseline for result in results],
        "shuffled images": [result.shuffled_images for result in results],
        "without stage 1": [result.without_pretraining for result in results],
    }
    rows = [f"| questions | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
    for category in ("overall", *results[0].accuracy.by_category):
        cells = [_format_accuracies(scores, category) for scores in columns.values()]
        rows.append(f"| {category} | {' | '.join(cells)} |")
    ciders = _format_range([result.caption_cider for result in results], digits=2)
    return "\n".join([*rows, "", f"Captions: CIDEr-D {ciders} of 10."])


def _format_accuracies(scores: Sequence[Score], category: str) -> str:
    """Return the mean accuracy of a kind of question; seeds that ask none of that kind do not count."""
    accuracies = [{"overall": score.overall, **score.by_category} for score in scores]
    percent = [100 * values[category] for values in accuracies if category in values]
    return _format_range(percent, digits=1)


def _format_range(values: Sequence[float], digits: int) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Run the seeds one after the other and print their table."""
    parser = argparse.ArgumentParser(description="Train the demo with several seeds.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="demo")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], help="NAME=VALUE of the recipe"
    )
    args = parser.parse_args()
    tune_malloc()
    runtime = Runtime(choose_device(), default_progress())
    recipe = apply_overrides(RECIPES[args.recipe](), args.settings)
    results = [
        run_scene_recipe(with_seed(recipe, seed), args.out / f"seed-{seed}", runtime)
        for seed in range(args.seeds)
    ]
    print(format_table(results))


if __name__ == "__main__":
    main()
