"""Demo: draw, train, evaluate.

```
OUT/
  recipe.json  seconds.json      what is run, and how long each step took
  scenes/                        drawn images with captions and boxes, a COCO folder for each split
  data/                          pretrain.json and finetune.json, in LLaVA's form
  towers/                        language models unpacked from GGUF files, where the recipe names one
  features/                      the frozen tower's features
  pretrain/  finetune/  without_pretrain/     run folders of the stages
  answers/                       what each assistant answered to each question
  results.json  report.html      the scores
  model/                         the assistant
```

Every step leaves a whole file or folder behind and is passed over where that stands already, so a run that was killed
goes on where it was.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.coco import read_coco
from caldera.conversation import read_conversations, write_conversations
from caldera.devices import Runtime
from caldera.files.atomic import lock_folder, write_json
from caldera.files.skipped import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import save_model_folder
from caldera.instructions.dialogues import count_dialogues, generate_dialogues
from caldera.instructions.scripted_teacher import ScriptedTeacher
from caldera.model.assistant import LlavaBundle
from caldera.pipelines.scene_evaluation import SceneEvaluator, SceneScores, write_results
from caldera.progress import Progress
from caldera.recipes.recipe import InstructionMix, SceneCounts, SceneRecipe, check_or_write_recipe
from caldera.recipes.towers import resolve_tower
from caldera.scenes.coco_folder import write_scenes
from caldera.scenes.scene import Split
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.stage import Stage


def draw(scenes: SceneCounts, split: Split, folder: Path, progress: Progress) -> AnnotationSet:
    """Draw a split's scenes, unless they are there, and read them back as any COCO folder is read."""
    count = scenes.train if split == "train" else scenes.held_out
    if not folder.exists():
        with progress.task(f"drawing {split} scenes", count) as tick:
            write_scenes(folder, split, count, seed=scenes.seed, on_image=tick)
    return read_coco(folder, SkippedItems(), split)


def write_data(
    file: Path, mix: InstructionMix, annotations: AnnotationSet, *, seed: int, progress: Progress
) -> None:
    """Have the scripted teacher write a data set, unless it is there."""
    if file.exists():
        return
    teacher = ScriptedTeacher(annotations.categories, seed)
    total = count_dialogues(annotations.images, mix.shares, seed).total()
    with progress.task(f"writing {file.stem} data", total) as tick:
        written = generate_dialogues(
            annotations, teacher, mix.shares, seed=seed, relative_to=file.parent, tick=tick
        )
    write_conversations(file, written.conversations)


def run_scene_recipe(recipe: SceneRecipe, out: Path, means: Runtime) -> SceneScores:
    """Carry a recipe out in a folder, or go on with it there.

    Raises:
        CalderaError: The folder is in use or holds another recipe's run, or a step failed.
    """
    with lock_folder(out):
        check_or_write_recipe(out, recipe)
        return SceneRun(recipe, out, means).run()


class StepTimer:
    """Adds up the seconds of each step over all starts of a run."""

    def __init__(self, file: Path) -> None:
        """Go on from what `file` holds."""
        self._file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time a step, also one that is broken off."""
        begun = time.monotonic()
        try:
            yield
        finally:
            passed = time.monotonic() - begun
            self.seconds[step] = round(self.seconds.get(step, 0.0) + passed, 1)
            write_json(self._file, self.seconds)


class SceneRun:
    """Carries out one recipe in one folder."""

    def __init__(self, recipe: SceneRecipe, out: Path, means: Runtime) -> None:
        self._recipe = recipe
        self._out = out
        self._means = means
        self._clock = StepTimer(out / "seconds.json")

    def run(self) -> SceneScores:
        """Go the whole way, passing over what is done."""
        with self._clock("draw scenes"):
            training, held_out = self._draw("train"), self._draw("held_out")
        with self._clock("write data"):
            self._write_data("pretrain", self._recipe.pretrain_mix, training)
            self._write_data("finetune", self._recipe.finetune_mix, training)
        with self._clock("pretrain"):
            aligned = self._train(self._recipe.pretrain, self._new_model(), "pretrain")
        with self._clock("finetune"):
            assistant = self._train(self._recipe.finetune, aligned, "finetune")
        with self._clock("finetune without pretrain"):
            unaligned = self._train(self._recipe.finetune, self._new_model(), "without_pretraining")
        with self._clock("evaluate"):
            measured = self._measure(assistant, unaligned, training, held_out)
        save_model_folder(self._out / "model", assistant)
        write_results(self._out, self._recipe, measured, self._clock.seconds)
        return measured

    def _draw(self, split: Split) -> AnnotationSet:
        """Draw a split's scenes."""
        folder = self._out / "scenes" / split
        return draw(self._recipe.scenes, split, folder, self._means.progress)

    def _write_data(self, name: str, mix: InstructionMix, annotations: AnnotationSet) -> None:
        """Have the scripted teacher write a data set."""
        file = self._out / "data" / f"{name}.json"
        write_data(file, mix, annotations, seed=self._recipe.seed, progress=self._means.progress)

    def _new_model(self) -> LlavaBundle:
        """Join the two towers with a new projector."""
        recipe, work = self._recipe, self._out / "towers"
        return assemble(
            resolve_tower(recipe.vision, work),
            resolve_tower(recipe.language, work),
            projector=recipe.projector,
            aspect=recipe.aspect,
            vision_feature_layer=recipe.select_layer,
            seed=recipe.seed,
        )

    def _train(self, stage: Stage, start: LlavaBundle, name: str) -> LlavaBundle:
        """Run one stage in its own folder."""
        data = TrainingData(
            conversations=read_conversations(self._out / "data" / f"{stage.name}.json"),
            images=self._out / "data",
        )
        job = TrainingJob(
            stage=stage,
            assistant=start,
            data=data,
            out=self._out / name,
            features=self._out / "features",
            runtime=self._means,
            skipped=SkippedItems(),
            resume=True,
        )
        trained, _ = job.run()
        return trained

    def _measure(
        self,
        assistant: LlavaBundle,
        unaligned: LlavaBundle,
        training: AnnotationSet,
        held_out: AnnotationSet,
    ) -> SceneScores:
        """Ask both assistants about scenes they never saw."""
        measuring = SceneEvaluator(
            self._recipe.questions,
            training,
            held_out,
            out=self._out,
            seed=self._recipe.seed,
            means=self._means,
        )
        return measuring.measure(assistant, unaligned)
