"""Seeds of the demo differ in all random choices but the scenes, and their table has mean, least and greatest."""

import runpy
from pathlib import Path

from caldera.evaluation.annotation_questions import ExactMatch
from caldera.evaluation.benchmark import Score
from caldera.pipelines.scene_evaluation import SceneScores
from caldera.recipes.demo import demo

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "demo_seeds.py"))


def scores(accuracy: Score, caption_cider: float) -> SceneScores:
    """Return the scores of a run whose baselines are all at a quarter."""
    quarter = Score(0.25, dict.fromkeys(accuracy.by_category, 0.25))
    return SceneScores(
        benchmark=ExactMatch("none", ()),
        answers={},
        accuracy=accuracy,
        majority_baseline=quarter,
        shuffled_images=quarter,
        without_pretraining=quarter,
        caption_cider=caption_cider,
    )


def test_the_table_has_mean_least_and_greatest() -> None:
    """Of every column, in percent; a seed without questions of a kind does not count there."""
    first = scores(Score(0.5, {"count": 0.5, "relation": 1.0}), 2.0)
    second = scores(Score(1.0, {"count": 0.75}), 3.0)

    table = SCRIPT["format_table"]([first, second]).splitlines()

    quarter = "25.0 (25.0 to 25.0)"
    assert table[2] == f"| overall | 75.0 (50.0 to 100.0) | {quarter} | {quarter} | {quarter} |"
    assert table[3].startswith("| count | 62.5 (50.0 to 75.0) |")
    assert table[4].startswith("| relation | 100.0 (100.0 to 100.0) |")
    assert table[-1] == "Captions: CIDEr-D 2.50 (2.00 to 3.00) of 10."
    assert {row.count("|") for row in table[:5]} == {6}


def test_a_seed_changes_all_random_choices_but_the_scenes() -> None:
    """Seed 0 is the recipe itself."""
    recipe = demo()
    with_seed = SCRIPT["with_seed"]
    assert with_seed(recipe, 0) == recipe
    other = with_seed(recipe, 2)
    assert other.scenes == recipe.scenes
    assert (other.seed, other.pretrain.seed, other.finetune.seed) == (
        recipe.seed + 2,
        recipe.pretrain.seed + 2,
        recipe.finetune.seed + 2,
    )
