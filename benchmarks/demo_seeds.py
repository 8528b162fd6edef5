"""The demo with several seeds: `python -m benchmarks.demo_seeds --out runs/demo_seeds`.

Each seed trains in a folder of its own, resumed if it exists, and decides the projector, the wording of the data and
the order of the steps. Prints the mean accuracy by kind of question, with the worst and the best seed.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from caldera.devices import Runtime, choose_device, tune_malloc
from caldera.pipelines.scene_run import run_scene_recipe
from caldera.progress import default_progress
from caldera.recipes.demo import demo, demo_smollm2
from caldera.recipes.recipe import SceneRecipe

RECIPES = {"demo": demo, "demo_smollm2": demo_smollm2}


def with_seed(recipe: SceneRecipe, seed: int) -> SceneRecipe:
    """Return a recipe whose random choices, except for the scenes, follow from `seed`."""
    return replace(
        recipe,
        seed=seed,
        pretrain=replace(recipe.pretrain, seed=recipe.pretrain.seed + seed),
        finetune=replace(recipe.finetune, seed=recipe.finetune.seed + seed),
    )


def format_table(results: Sequence[Mapping[str, float]]) -> str:
    """Return a Markdown table of the mean of each score, with the least and the greatest."""
    rows = ["| questions | mean | least | greatest |", "| --- | --- | --- | --- |"]
    for name in results[0]:
        values = [result[name] for result in results]
        numbers = (sum(values) / len(values), min(values), max(values))
        rows.append(f"| {name} | {' | '.join(f'{number:.3f}' for number in numbers)} |")
    return "\n".join(rows)


def main() -> None:
    """Run the seeds one after the other and print their table."""
    parser = argparse.ArgumentParser(description="Train the demo with several seeds.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="demo")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    args = parser.parse_args()
    tune_malloc()
    runtime = Runtime(choose_device(), default_progress())
    results = []
    for seed in range(args.seeds):
        recipe = with_seed(RECIPES[args.recipe](), seed)
        scores = run_scene_recipe(recipe, args.out / f"seed-{seed}", runtime)
        accuracy = {"overall": scores.accuracy.overall, **scores.accuracy.by_category}
        results.append({**accuracy, "CIDEr-D of captions": scores.caption_cider})
    print(format_table(results))


if __name__ == "__main__":
    main()
