"""Run of a scene recipe, such as the demo: draw scenes, write data, train both stages, evaluate.

```
OUT/
  recipe.json  timings.json      settings, and the seconds of each step
  scenes/                        drawn images with captions and boxes, a COCO folder for each split
  data/                          pretrain.json and finetune.json, in LLaVA's format
  towers/                        language models converted from GGUF files, if the recipe names one
  features/                      the frozen tower's features
  pretrain/  finetune/  without_pretraining/     run folders of the stages
  answers/                       answers of each assistant to each question
  results.json  report.html      the scores
  model/                         the assistant
```

Every step writes a complete file or folder and is skipped if that exists, so a run that was killed can be resumed.
"""

import logging
from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.coco import CocoOptions, read_coco
from caldera.conversation import write_conversations
from caldera.devices import Runtime
from caldera.files.atomic import lock_folder
from caldera.files.skipped_items import SkippedItems
from caldera.formats.model_folder import save_model_folder
from caldera.instructions.dialogues import count_dialogues, generate_dialogues
from caldera.instructions.scripted_teacher import ScriptedTeacher
from caldera.model.bundle import LlavaBundle
from caldera.pipelines.run_steps import RunSteps, StepTimer
from caldera.pipelines.scene_evaluation import (
    STAGE_TITLES,
    SceneEvaluator,
    SceneScores,
    write_results,
)
from caldera.progress import Progress
from caldera.recipes.recipe import (
    TRAINED,
    InstructionMix,
    SceneCounts,
    SceneRecipe,
    check_recipe,
    write_recipe,
)
from caldera.scenes.coco_folder import write_scenes
from caldera.scenes.scene import Split
from caldera.training.hyperparameters import Stage

log = logging.getLogger(__name__)

_FORMER_PATHS = {
    "seconds.json": "timings.json",
    "without_pretrain": "without_pretraining",
    "answers/the_same_other_pictures.json": "answers/the_same_other_images.json",
}
"""Paths in run folders of earlier versions, and their current names."""


def draw_scenes(
    scenes: SceneCounts, split: Split, folder: Path, progress: Progress
) -> AnnotationSet:
    """Draw a split's scenes unless the folder exists, and read them like any COCO folder."""
    count = scenes.train if split == "train" else scenes.held_out
    if not folder.exists():
        with progress.task(f"drawing {split} scenes", count) as tick:
            write_scenes(folder, split, count, seed=scenes.seed, on_image=tick)
    return read_coco(folder, SkippedItems(), CocoOptions(split=split))


def write_data(
    file: Path, mix: InstructionMix, annotations: AnnotationSet, *, seed: int, progress: Progress
) -> None:
    """Write a data set with the scripted teacher unless the file exists."""
    if file.exists():
        return
    teacher = ScriptedTeacher(annotations.categories, seed)
    total = count_dialogues(annotations.images, mix.shares, seed).total()
    with progress.task(f"writing {file.stem} data", total) as tick:
        generated = generate_dialogues(
            annotations, teacher, mix.shares, seed=seed, relative_to=file.parent, tick=tick
        )
    write_conversations(file, generated.conversations)


def run_scene_recipe(recipe: SceneRecipe, out: Path, runtime: Runtime) -> SceneScores:
    """Run a recipe in a folder, or resume it there.

    Raises:
        CalderaError: The folder is in use or holds another recipe's run, or a step failed.
    """
    with lock_folder(out):
        check_recipe(out, recipe, (*TRAINED, "scenes/*", "data/*"))
        for former, current in _FORMER_PATHS.items():
            if (out / former).exists() and not (out / current).exists():
                (out / former).rename(out / current)
        return _SceneRun(recipe, out, runtime).run()


class _SceneRun:
    """One recipe in one folder."""

    def __init__(self, recipe: SceneRecipe, out: Path, runtime: Runtime) -> None:
        self._recipe = recipe
        self._out = out
        self._runtime = runtime
        self._steps = RunSteps(out, runtime)
        self._timer = StepTimer(out / "timings.json")

    def run(self) -> SceneScores:
        """Run all steps, skipping those that are finished."""
        recipe = self._recipe
        with self._timer("load towers"):
            start = self._steps.new_model(recipe)
        write_recipe(self._out, recipe)
        with self._timer("draw scenes"):
            training, held_out = self._draw("train"), self._draw("held_out")
        with self._timer("write data"):
            self._write_data("pretrain", recipe.pretrain_mix, training)
            self._write_data("finetune", recipe.finetune_mix, training)
        with self._timer("pretrain"):
            pretrained = self._train(recipe.pretrain, start, "pretrain")
        with self._timer("finetune"):
            assistant = self._train(recipe.finetune, pretrained, "finetune")
        with self._timer("finetune without pretrain"):
            not_pretrained = self._train(
                recipe.finetune, self._steps.new_model(recipe), "without_pretraining"
            )
        with self._timer("evaluate"):
            evaluator = SceneEvaluator(
                recipe.questions,
                training,
                held_out,
                steps=self._steps,
                seed=recipe.seed,
            )
            scores = evaluator.evaluate(assistant, not_pretrained)
        save_model_folder(self._out / "model", assistant)
        write_results(self._out, recipe, scores, self._timer.seconds)
        return scores

    def _draw(self, split: Split) -> AnnotationSet:
        """Draw a split's scenes."""
        folder = self._out / "scenes" / split
        return draw_scenes(self._recipe.scenes, split, folder, self._runtime.progress)

    def _write_data(self, name: str, mix: InstructionMix, annotations: AnnotationSet) -> None:
        """Write the data set of a stage."""
        file = self._out / "data" / f"{name}.json"
        write_data(file, mix, annotations, seed=self._recipe.seed, progress=self._runtime.progress)

    def _train(self, stage: Stage, start: LlavaBundle, name: str) -> LlavaBundle:
        """Run one stage in its own folder."""
        log.info("%s", STAGE_TITLES[name])
        return self._steps.train(stage, start, name)
