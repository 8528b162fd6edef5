"""Variants of a recipe and seeds in, a table of what each change is worth out: trained, asked and compared alike.

```
OUT/
  scenes/  data/  features/  towers/     what variants share
  pretrain/NAME/seed-N/                  stage 1, once for all variants that have the same
  VARIANT/seed-N/                        stage 2 and marks.json: what each answer was worth
  results.json  ablations.md             the table
```

Everything that stands there is passed over, so a sweep that was stopped goes on, and one with more seeds adds them.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.conversation import Conversation, read_conversations
from caldera.devices import Runtime
from caldera.errors import UsageError
from caldera.evaluation.annotation_questions import build_questions
from caldera.evaluation.answer_parsing import contains_answer
from caldera.evaluation.answerers.local_model import generate_answers
from caldera.evaluation.benchmark import Item
from caldera.files.atomic import lock_folder, to_plain_json, write_atomic, write_json
from caldera.files.fingerprint import json_fingerprint
from caldera.files.skipped import SkippedItems
from caldera.formats.assemble import assemble
from caldera.model.assistant import LlavaBundle
from caldera.pipelines.ablations import (
    WITH_REASONS,
    AblationResult,
    Marks,
    Variant,
    as_markdown,
    as_results,
    drop_every_second_layer,
    move_answer_last,
    summarize,
    without_short_answer_prompt,
)
from caldera.pipelines.scene_run import draw, write_data
from caldera.recipes.recipe import InstructionMix, SceneRecipe
from caldera.recipes.towers import resolve_tower
from caldera.scenes.scene import Split
from caldera.training.job import TrainingData, TrainingJob, cached_tower_features
from caldera.training.stage import Stage

_LONGEST = 40
"""Tokens of an answer: a sentence with its reason."""


def run_ablations(
    out: Path,
    recipe: SceneRecipe,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    means: Runtime,
) -> list[AblationResult]:
    """Train and ask variants of a recipe, and write what each is worth.

    Args:
        out: The sweep's folder; what stands there is not done again.
        recipe: What the variants vary.
        variants: In the order of the table, each with the one it is compared with.
        seeds: Of projector, data and order; each variant is trained with each.
        means: Device, precision, progress.

    Raises:
        CalderaError: The folder is in use or holds another recipe's sweep, or training or asking failed.
    """
    with lock_folder(out):
        sweep = AblationRun(out, recipe, means)
        rows = summarize(variants, sweep.run(variants, seeds))
        write_json(
            out / "results.json",
            {"seeds": [*seeds], "recipe": asdict(recipe), "rows": as_results(rows)},
        )
        write_atomic(
            out / "ablations.md", as_markdown(rows, len(seeds), len(sweep.short_answer_items))
        )
    return rows


class AblationRun:
    """Trains and asks variants in one folder."""

    def __init__(self, out: Path, recipe: SceneRecipe, means: Runtime) -> None:
        """Take the recipe that the variants vary; its scenes and questions are those of all."""
        self._out, self._recipe, self._means = out, recipe, means
        self._training, self._held_out = self._draw("train"), self._draw("held_out")
        self._items = self._questions()

    def run(self, variants: Sequence[Variant], seeds: Sequence[int]) -> dict[str, list[Marks]]:
        """Return each variant's marks, a set for each seed.

        Raises:
            CalderaError: Training or asking failed.
        """
        marks: dict[str, list[Marks]] = {variant.name: [] for variant in variants}
        for seed in seeds:
            for variant in variants:
                marks[variant.name].append(self._variant_scores(variant, seed))
        return marks

    @property
    def short_answer_items(self) -> Sequence[Item]:
        """The questions that want a word or phrase, which the overall figure is about."""
        return [item for item in self._items if item.category != WITH_REASONS]

    def _variant_scores(self, variant: Variant, seed: int) -> Marks:
        """Train and ask one variant, unless that was done."""
        folder = self._out / _slug(variant.name) / f"seed-{seed}"
        file, identity = folder / "marks.json", self._identity(variant, seed)
        if file.is_file():
            found = json.loads(file.read_text())
            if found["identity"] != identity:
                raise UsageError(
                    f"{folder} holds a variant with other settings; choose another --out"
                )
            return dict(found["item_scores"])
        assistant = self._train_variant(variant, seed, folder)
        answers = self._answers(assistant, f"{variant.name}, seed {seed}")
        marks: Marks = {}
        for item in self._items:
            right = contains_answer(item.references[0], answers[item.id])
            marks.setdefault(item.category, {})[item.id] = float(right)
        write_json(file, {"identity": identity, "item_scores": marks, "answers": answers})
        return marks

    def _identity(self, variant: Variant, seed: int) -> str:
        """Return a digest of all that decides what a variant comes to."""
        settings = to_plain_json(asdict(variant))
        for label in ("name", "baseline", "description", "paper"):
            del settings[label]
        return json_fingerprint([settings, seed], 16)

    def _train_variant(self, variant: Variant, seed: int, folder: Path) -> LlavaBundle:
        """Go through the stages that a variant has."""
        recipe = replace(variant.recipe, seed=seed)
        assistant = self._fresh(variant, recipe)
        if variant.pretrained:
            kept = self._out / "pretrain" / _pretrain_name(variant) / f"seed-{seed}"
            data = self._data(recipe.pretrain_mix, seed)
            assistant = self._stage(replace(recipe.pretrain, seed=seed), assistant, data, kept)
        if variant.finetuned:
            data = self._data(recipe.finetune_mix, seed)
            if variant.reasons_before_answer:
                data = [move_answer_last(one) for one in data]
            stage = replace(recipe.finetune, seed=seed)
            assistant = self._stage(stage, assistant, data, folder / "finetune")
        return assistant

    def _fresh(self, variant: Variant, recipe: SceneRecipe) -> LlavaBundle:
        """Join the variant's towers with a new projector."""
        work = self._out / "towers"
        language = resolve_tower(recipe.language, work)
        if variant.half_layers:
            language = drop_every_second_layer(language, work / "half_layers")
        return assemble(
            resolve_tower(recipe.vision, work), language, projector=recipe.projector, aspect=recipe.aspect,
            vision_feature_layer=recipe.select_layer, seed=recipe.seed,
        )  # fmt: skip

    def _data(self, mix: InstructionMix, seed: int) -> list[Conversation]:
        """Write the dialogues of a mix, once, and read them."""
        digest = hashlib.sha256(repr((mix, seed)).encode()).hexdigest()[:12]
        file = self._out / "data" / f"{digest}.json"
        write_data(file, mix, self._training, seed=seed, progress=self._means.progress)
        return read_conversations(file)

    def _draw(self, split: Split) -> AnnotationSet:
        """Draw a split's scenes, unless they are there."""
        folder = self._out / "scenes" / split
        return draw(self._recipe.scenes, split, folder, self._means.progress)

    def _stage(
        self, stage: Stage, start: LlavaBundle, data: Sequence[Conversation], out: Path
    ) -> LlavaBundle:
        """Run one stage in its own folder."""
        job = TrainingJob(
            stage=stage, assistant=start, data=TrainingData(conversations=data, images=self._out / "data"), out=out,
            features=self._out / "features", runtime=self._means, skipped=SkippedItems(), resume=True,
        )  # fmt: skip
        return job.run()[0]

    def _questions(self) -> list[Item]:
        """Write what all are asked: short answers, and questions whose answers give reasons."""
        asked = self._recipe.questions
        items = build_questions(
            self._held_out, name="held-out scenes", per_image=asked.per_image,
            context_per_image=asked.context_per_image, seed=0, relative_to=self._out,
        ).items  # fmt: skip
        return [
            *items,
            *(without_short_answer_prompt(item) for item in items if item.category == "reasoning"),
        ]

    def _answers(self, assistant: LlavaBundle, name: str) -> dict[str, str]:
        """Ask everything."""
        paths = [image.path for image in self._held_out.images]
        features = cached_tower_features(
            assistant, self._out / "features", paths, runtime=self._means
        )
        assistant.model.to(self._means.compute.device)
        return generate_answers(
            assistant,
            self._items,
            features,
            folder=self._out,
            max_new_tokens=_LONGEST,
            runtime=self._means,
            name=name,
        )


def _slug(name: str) -> str:
    """Return a variant's name as a folder's."""
    return re.sub(r"\W+", "-", name)


def _pretrain_name(variant: Variant) -> str:
    """Name the stage 1 that a variant shares with those that have the same."""
    same = replace(
        variant.recipe, finetune=variant.recipe.pretrain, finetune_mix=variant.recipe.pretrain_mix
    )
    told = (same, variant.half_layers)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]
