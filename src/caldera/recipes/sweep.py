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
from caldera.errors import UsageError
from caldera.evaluation.ask import ask
from caldera.evaluation.benchmark import Item
from caldera.evaluation.exact_match import questions_about
from caldera.evaluation.said import says
from caldera.inference.generate import Generator
from caldera.model.assemble import assemble
from caldera.model.folder import Assistant
from caldera.recipes.ablation_table import REASONS, Row, as_markdown, as_results, rows_of
from caldera.recipes.ablations import Marks, Variant
from caldera.recipes.answer_order import in_sentences, reasons_before
from caldera.recipes.half_model import halved
from caldera.recipes.scene_data import draw, write_data
from caldera.recipes.scene_recipe import Mix, SceneRecipe
from caldera.recipes.towers import find_tower
from caldera.scenes.kinds import Split
from caldera.skips import Skips
from caldera.storage import as_json, holding, write_json, write_whole
from caldera.training.devices import Means
from caldera.training.features import stop_at, tower_features
from caldera.training.run import DataSet, StageJob
from caldera.training.stage import Stage

_LONGEST = 40
"""Tokens of an answer: a sentence with its reason."""


def run_sweep(
    out: Path, recipe: SceneRecipe, variants: Sequence[Variant], seeds: Sequence[int], means: Means
) -> list[Row]:
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
    with holding(out):
        sweep = Sweep(out, recipe, means)
        rows = rows_of(variants, sweep.run(variants, seeds))
        write_json(
            out / "results.json",
            {"seeds": [*seeds], "recipe": asdict(recipe), "rows": as_results(rows)},
        )
        write_whole(out / "ablations.md", as_markdown(rows, len(seeds), len(sweep.short)))
    return rows


class Sweep:
    """Trains and asks variants in one folder."""

    def __init__(self, out: Path, recipe: SceneRecipe, means: Means) -> None:
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
                marks[variant.name].append(self._marks(variant, seed))
        return marks

    @property
    def short(self) -> Sequence[Item]:
        """The questions that want a word or phrase, which the overall figure is about."""
        return [item for item in self._items if item.kind != REASONS]

    def _marks(self, variant: Variant, seed: int) -> Marks:
        """Train and ask one variant, unless that was done."""
        folder = self._out / _named(variant.name) / f"seed-{seed}"
        file, identity = folder / "marks.json", self._identity(variant, seed)
        if file.is_file():
            found = json.loads(file.read_text())
            if found["identity"] != identity:
                raise UsageError(
                    f"{folder} holds a variant with other settings; choose another --out"
                )
            return dict(found["marks"])
        assistant = self._trained(variant, seed, folder)
        answers = self._answers(assistant, f"{variant.name}, seed {seed}")
        marks: Marks = {}
        for item in self._items:
            right = says(item.references[0], answers[item.id])
            marks.setdefault(item.kind, {})[item.id] = float(right)
        write_json(file, {"identity": identity, "marks": marks, "answers": answers})
        return marks

    def _identity(self, variant: Variant, seed: int) -> str:
        """Return a digest of all that decides what a variant comes to."""
        told = as_json(asdict(variant))
        words = {
            name: told[name] for name in told if name not in ("name", "against", "change", "paper")
        }
        return hashlib.sha256(json.dumps([words, seed], sort_keys=True).encode()).hexdigest()[:16]

    def _trained(self, variant: Variant, seed: int, folder: Path) -> Assistant:
        """Go through the stages that a variant has."""
        recipe = replace(variant.recipe, seed=seed)
        assistant = self._fresh(variant, recipe)
        if variant.pretrained:
            kept = self._out / "pretrain" / _pretrain_name(variant) / f"seed-{seed}"
            data = self._data(recipe.pretrain_mix, seed)
            assistant = self._stage(replace(recipe.pretrain, seed=seed), assistant, data, kept)
        if variant.finetuned:
            data = self._data(recipe.finetune_mix, seed)
            if variant.reasons_first:
                data = [reasons_before(one) for one in data]
            stage = replace(recipe.finetune, seed=seed)
            assistant = self._stage(stage, assistant, data, folder / "finetune")
        return assistant

    def _fresh(self, variant: Variant, recipe: SceneRecipe) -> Assistant:
        """Join the variant's towers with a new projector."""
        work = self._out / "towers"
        language = find_tower(recipe.language, work)
        if variant.half:
            language = halved(language, work / "half")
        return assemble(
            find_tower(recipe.vision, work), language, projector=recipe.projector, aspect=recipe.aspect,
            select_layer=recipe.select_layer, seed=recipe.seed,
        )  # fmt: skip

    def _data(self, mix: Mix, seed: int) -> list[Conversation]:
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
        self, stage: Stage, start: Assistant, data: Sequence[Conversation], out: Path
    ) -> Assistant:
        """Run one stage in its own folder."""
        job = StageJob(
            stage=stage, assistant=start, data=DataSet(conversations=data, pictures=self._out / "data"), out=out,
            features=self._out / "features", means=self._means, skips=Skips(), resume=True,
        )  # fmt: skip
        return job.run()[0]

    def _questions(self) -> list[Item]:
        """Write what all are asked: short answers, and questions whose answers give reasons."""
        asked = self._recipe.questions
        items = questions_about(
            self._held_out, name="held-out scenes", per_picture=asked.per_picture,
            context_per_picture=asked.context_per_picture, seed=0, beside=self._out,
        ).items  # fmt: skip
        return [*items, *(in_sentences(item) for item in items if item.kind == "reasoning")]

    def _answers(self, assistant: Assistant, name: str) -> dict[str, str]:
        """Ask everything."""
        paths = [image.path for image in self._held_out.images]
        features = tower_features(
            assistant, self._out / "features", paths, means=self._means, on_fault=stop_at
        )
        assistant.model.to(self._means.compute.device)
        with self._means.compute.autocast():
            return ask(
                Generator(assistant, features), self._items, folder=self._out, max_new_tokens=_LONGEST,
                progress=self._means.progress, name=name,
            )  # fmt: skip


def _named(name: str) -> str:
    """Return a variant's name as a folder's."""
    return re.sub(r"\W+", "-", name)


def _pretrain_name(variant: Variant) -> str:
    """Name the stage 1 that a variant shares with those that have the same."""
    same = replace(
        variant.recipe, finetune=variant.recipe.pretrain, finetune_mix=variant.recipe.pretrain_mix
    )
    told = (same, variant.half)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]
