"""Steps of a run in one folder: timed, and skipped where their result exists, so that a killed run is resumed."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from caldera.conversation import read_conversations
from caldera.devices import Runtime
from caldera.evaluation.answerers.local_model import generate_answers
from caldera.evaluation.benchmark import Item
from caldera.files.atomic import write_json
from caldera.files.skipped_items import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.weight_names import digest_weights
from caldera.model.bundle import LlavaBundle
from caldera.recipes.recipe import Recipe
from caldera.recipes.towers import resolve_towers
from caldera.training.hyperparameters import Stage
from caldera.training.job import TrainingData, TrainingJob, cached_tower_features


class StepTimer:
    """Seconds of each step, summed over all starts of a run."""

    def __init__(self, file: Path) -> None:
        """Continue the timings in a JSON file."""
        self._file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time a step, even if it fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - start
            self.seconds[step] = round(self.seconds.get(step, 0.0) + elapsed, 1)
            write_json(self._file, self.seconds)


def assemble_recipe(recipe: Recipe, vision: Path, language: Path) -> LlavaBundle:
    """Join two towers with a fresh projector, as a recipe requires."""
    return assemble(
        vision,
        language,
        projector=recipe.projector,
        aspect=recipe.aspect,
        vision_feature_layer=recipe.vision_feature_layer,
        seed=recipe.seed,
    )


@dataclass(frozen=True, slots=True)
class RunSteps:
    """Steps of a run that generates its data."""

    out: Path
    """Folder of the run, with `data/`, `features/`, `towers/`, `answers/` and a folder for each stage."""

    runtime: Runtime

    def new_model(self, recipe: Recipe) -> LlavaBundle:
        """Join the two towers of a recipe with a fresh projector."""
        towers = resolve_towers(recipe.vision, recipe.language, work=self.out / "towers")
        return assemble_recipe(recipe, *towers)

    def train(self, stage: Stage, start: LlavaBundle, name: str | None = None) -> LlavaBundle:
        """Run one stage on the data file of its name, in a folder of its own; `name` if not that of the stage."""
        file = self.out / "data" / f"{stage.name}.json"
        data = TrainingData(
            conversations=read_conversations(file), images=self.out / "data", file=file
        )
        job = TrainingJob(
            stage=stage,
            assistant=start,
            data=data,
            out=self.out / (name or stage.name),
            features=self.out / "features",
            runtime=self.runtime,
            skipped=SkippedItems(),
            resume=True,
        )
        trained, _ = job.run()
        return trained

    def answer(
        self,
        assistant: LlavaBundle,
        items: Sequence[Item],
        name: str,
        *,
        folder: Path,
        max_new_tokens: int,
    ) -> dict[str, str]:
        """Return an assistant's answers, from disk if it answered these very items before.

        Args:
            assistant: Is moved to the device.
            items: Items to answer.
            name: Name of the answers, for the progress and for their file.
            folder: Folder that image paths are relative to.
            max_new_tokens: Maximum length of an answer.
        """
        file = self.out / "answers" / f"{name.replace(' ', '_').replace(',', '')}.json"
        fingerprint = _fingerprint(assistant, items)
        if file.is_file():
            stored = json.loads(file.read_text())
            if stored.get("asked") == fingerprint:
                return dict(stored["answers"])
        # The model of a stage that was finished before is on the CPU.
        assistant.model.to(self.runtime.compute.device)
        paths = dict.fromkeys(path for item in items for path in item.conversation.images)
        features = cached_tower_features(
            assistant,
            self.out / "features",
            [folder / path for path in paths],
            runtime=self.runtime,
        )
        answers = generate_answers(
            assistant,
            items,
            features,
            folder=folder,
            max_new_tokens=max_new_tokens,
            runtime=self.runtime,
            name=name,
        )
        write_json(file, {"asked": fingerprint, "answers": answers})
        return answers


def _fingerprint(assistant: LlavaBundle, items: Sequence[Item]) -> str:
    """Return a digest of an assistant's run and weights, and of every item."""
    run = assistant.card.source_digests["run"]
    weights = digest_weights(assistant.model.state_dict())
    return hashlib.sha256(repr((run, weights, list(items))).encode()).hexdigest()
