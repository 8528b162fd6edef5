"""A recipe with scenes in, a run folder with data, models, scores and a report out.

```
OUT/
  recipe.json  seconds.json      what is run, and how long each step took
  scenes/                        drawn pictures with captions and boxes, a COCO folder for each split
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
from caldera.conversation import read_conversations
from caldera.model.assemble import assemble
from caldera.model.folder import Assistant, save_assistant
from caldera.recipes.measure import Measured, Measuring
from caldera.recipes.recipe import claim
from caldera.recipes.scene_data import draw, write_data
from caldera.recipes.scene_recipe import Mix, SceneRecipe
from caldera.recipes.summary import write_results
from caldera.recipes.towers import find_tower
from caldera.scenes.kinds import Split
from caldera.skips import Skips
from caldera.storage import holding, write_json
from caldera.training.devices import Means
from caldera.training.run import DataSet, StageJob
from caldera.training.stage import Stage


def run_recipe(recipe: SceneRecipe, out: Path, means: Means) -> Measured:
    """Carry a recipe out in a folder, or go on with it there.

    Raises:
        CalderaError: The folder is in use or holds another recipe's run, or a step failed.
    """
    with holding(out):
        claim(out, recipe)
        return Way(recipe, out, means).run()


class Clock:
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


class Way:
    """Carries out one recipe in one folder."""

    def __init__(self, recipe: SceneRecipe, out: Path, means: Means) -> None:
        self._recipe = recipe
        self._out = out
        self._means = means
        self._clock = Clock(out / "seconds.json")

    def run(self) -> Measured:
        """Go the whole way, passing over what is done."""
        with self._clock("draw scenes"):
            training, held_out = self._draw("train"), self._draw("held_out")
        with self._clock("write data"):
            self._write_data("pretrain", self._recipe.pretrain_mix, training)
            self._write_data("finetune", self._recipe.finetune_mix, training)
        with self._clock("pretrain"):
            aligned = self._train(self._recipe.pretrain, self._fresh(), "pretrain")
        with self._clock("finetune"):
            assistant = self._train(self._recipe.finetune, aligned, "finetune")
        with self._clock("finetune without pretrain"):
            unaligned = self._train(self._recipe.finetune, self._fresh(), "without_pretrain")
        with self._clock("evaluate"):
            measured = self._measure(assistant, unaligned, training, held_out)
        save_assistant(self._out / "model", assistant)
        write_results(self._out, self._recipe, measured, self._clock.seconds)
        return measured

    def _draw(self, split: Split) -> AnnotationSet:
        """Draw a split's scenes."""
        folder = self._out / "scenes" / split
        return draw(self._recipe.scenes, split, folder, self._means.progress)

    def _write_data(self, name: str, mix: Mix, annotations: AnnotationSet) -> None:
        """Have the scripted teacher write a data set."""
        file = self._out / "data" / f"{name}.json"
        write_data(file, mix, annotations, seed=self._recipe.seed, progress=self._means.progress)

    def _fresh(self) -> Assistant:
        """Join the two towers with a new projector."""
        recipe, work = self._recipe, self._out / "towers"
        return assemble(
            find_tower(recipe.vision, work),
            find_tower(recipe.language, work),
            projector=recipe.projector,
            aspect=recipe.aspect,
            select_layer=recipe.select_layer,
            seed=recipe.seed,
        )

    def _train(self, stage: Stage, start: Assistant, name: str) -> Assistant:
        """Run one stage in its own folder."""
        data = DataSet(
            conversations=read_conversations(self._out / "data" / f"{stage.name}.json"),
            pictures=self._out / "data",
        )
        job = StageJob(
            stage=stage,
            assistant=start,
            data=data,
            out=self._out / name,
            features=self._out / "features",
            means=self._means,
            skips=Skips(),
            resume=True,
        )
        trained, _ = job.run()
        return trained

    def _measure(
        self,
        assistant: Assistant,
        unaligned: Assistant,
        training: AnnotationSet,
        held_out: AnnotationSet,
    ) -> Measured:
        """Ask both assistants about scenes they never saw."""
        measuring = Measuring(
            self._recipe.questions,
            training,
            held_out,
            out=self._out,
            seed=self._recipe.seed,
            means=self._means,
        )
        return measuring.measure(assistant, unaligned)
