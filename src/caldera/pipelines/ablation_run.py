"""Ablation run: train and evaluate variants of a recipe with several seeds, and write the table.

```
OUT/
  scenes/  data/  features/  towers/     shared by all variants
  pretrain/NAME/seed-N/                  stage 1, once for all variants with the same
  VARIANT/seed-N/                        stage 2, and scores.json: the score of each answer
  results.json  ablations.md             the table
```

Every finished file is reused, so an interrupted run can be resumed, and a run with more seeds adds them.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from caldera.annotations.annotated_image import AnnotationSet
from caldera.conversation import Conversation, read_conversations
from caldera.devices import Runtime
from caldera.errors import UsageError
from caldera.evaluation.annotation_questions import build_questions
from caldera.evaluation.answer_parsing import contains_answer
from caldera.evaluation.answerers.local_model import generate_answers
from caldera.evaluation.benchmark import Item
from caldera.files.atomic import atomic_folder, lock_folder, to_plain_json, write_atomic, write_json
from caldera.files.fingerprint import json_fingerprint
from caldera.files.skipped_items import SkippedItems
from caldera.formats.tokenizer import copy_sentencepiece, load_tokenizer
from caldera.model.bundle import LlavaBundle
from caldera.overrides import with_former_names
from caldera.pipelines.ablations import (
    WITH_REASONS,
    AblationResult,
    ItemScores,
    Variant,
    as_markdown,
    as_results,
    move_answer_last,
    summarize,
    without_short_answer_prompt,
)
from caldera.pipelines.run_steps import assemble_recipe
from caldera.pipelines.scene_run import draw_scenes, write_data
from caldera.recipes.recipe import InstructionMix, SceneRecipe
from caldera.recipes.towers import resolve_tower
from caldera.scenes.scene import Split
from caldera.training.hyperparameters import Stage
from caldera.training.job import TrainingData, TrainingJob, cached_tower_features

log = logging.getLogger(__name__)

_MAX_NEW_TOKENS = 40
"""Length of an answer: one sentence with its reason."""


def run_ablations(
    out: Path,
    recipe: SceneRecipe,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    runtime: Runtime,
) -> list[AblationResult]:
    """Train and evaluate variants of a recipe, and write the table.

    Args:
        out: Folder of the run; finished files in it are reused.
        recipe: The recipe that the variants change.
        variants: Variants in the order of the table, with their baselines.
        seeds: Seeds of projector, data and order; each variant is trained with each.
        runtime: Device, precision and progress.

    Raises:
        CalderaError: The folder is in use or holds another recipe's run, or a step failed.
    """
    with lock_folder(out):
        run = _AblationRun(out, recipe, runtime)
        results = summarize(variants, run.run(variants, seeds))
        content = {"seeds": [*seeds], "recipe": asdict(recipe), "rows": as_results(results)}
        write_json(out / "results.json", content)
        num_questions = len(run.short_answer_items)
        write_atomic(out / "ablations.md", as_markdown(results, len(seeds), num_questions))
    return results


class _AblationRun:
    """Training and evaluation of variants in one folder."""

    def __init__(self, out: Path, recipe: SceneRecipe, runtime: Runtime) -> None:
        self._out, self._recipe, self._runtime = out, recipe, runtime
        self._training, self._held_out = self._draw("train"), self._draw("held_out")
        self._items = self._questions()

    def run(self, variants: Sequence[Variant], seeds: Sequence[int]) -> dict[str, list[ItemScores]]:
        """Return the scores of each variant, one entry per seed."""
        scores: dict[str, list[ItemScores]] = {variant.name: [] for variant in variants}
        for seed in seeds:
            for variant in variants:
                scores[variant.name].append(self._variant_scores(variant, seed))
        return scores

    @property
    def short_answer_items(self) -> Sequence[Item]:
        """The questions for a word or phrase, which the overall score is about."""
        return [item for item in self._items if item.category != WITH_REASONS]

    def _variant_scores(self, variant: Variant, seed: int) -> ItemScores:
        """Train and evaluate one variant, or read its scores if that was done before."""
        folder = self._out / _slug(variant.name) / f"seed-{seed}"
        fingerprint = _variant_fingerprint(variant, seed)
        stored = _read_scores(folder)
        if stored is not None:
            if stored["identity"] != fingerprint:
                raise UsageError(
                    f"{folder} holds a variant with other settings; choose another --out"
                )
            return dict(stored["item_scores"])
        log.info("variant %r, seed %d", variant.name, seed)
        assistant = self._train_variant(variant, seed, folder)
        answers = self._answers(assistant, f"{variant.name}, seed {seed}")
        scores: ItemScores = {}
        for item in self._items:
            right = contains_answer(item.references[0], answers[item.id])
            scores.setdefault(item.category, {})[item.id] = float(right)
        content = {"identity": fingerprint, "item_scores": scores, "answers": answers}
        write_json(folder / "scores.json", content)
        return scores

    def _train_variant(self, variant: Variant, seed: int, folder: Path) -> LlavaBundle:
        """Run the stages of a variant."""
        recipe = replace(variant.recipe, seed=seed)
        assistant = self._new_model(variant, recipe)
        if variant.pretrained:
            shared = self._out / "pretrain" / _pretrain_name(variant) / f"seed-{seed}"
            data = self._data(recipe.pretrain_mix, seed)
            assistant = self._train(replace(recipe.pretrain, seed=seed), assistant, data, shared)
        if variant.finetuned:
            data = self._data(recipe.finetune_mix, seed)
            if variant.reasons_before_answer:
                data = [move_answer_last(conversation) for conversation in data]
            stage = replace(recipe.finetune, seed=seed)
            assistant = self._train(stage, assistant, data, folder / "finetune")
        return assistant

    def _new_model(self, variant: Variant, recipe: SceneRecipe) -> LlavaBundle:
        """Join the variant's towers with a fresh projector."""
        work = self._out / "towers"
        language = resolve_tower(recipe.language, work)
        if variant.half_layers:
            language = drop_every_second_layer(language, work / "half")
        return assemble_recipe(recipe, resolve_tower(recipe.vision, work), language)

    def _data(self, mix: InstructionMix, seed: int) -> list[Conversation]:
        """Read the dialogues of a mix, which are written once."""
        file = self._out / "data" / f"{json_fingerprint([asdict(mix), seed], 12)}.json"
        write_data(file, mix, self._training, seed=seed, progress=self._runtime.progress)
        return read_conversations(file)

    def _draw(self, split: Split) -> AnnotationSet:
        """Draw a split's scenes."""
        folder = self._out / "scenes" / split
        return draw_scenes(self._recipe.scenes, split, folder, self._runtime.progress)

    def _train(
        self, stage: Stage, start: LlavaBundle, data: Sequence[Conversation], out: Path
    ) -> LlavaBundle:
        """Run one stage in its own folder."""
        job = TrainingJob(
            stage=stage,
            assistant=start,
            data=TrainingData(conversations=data, images=self._out / "data"),
            out=out,
            features=self._out / "features",
            runtime=self._runtime,
            skipped=SkippedItems(),
            resume=True,
        )
        return job.run()[0]

    def _questions(self) -> list[Item]:
        """Return the questions for all variants: short answers, and the same with reasons."""
        counts = self._recipe.questions
        items = build_questions(
            self._held_out,
            name="held-out scenes",
            per_image=counts.per_image,
            context_per_image=counts.context_per_image,
            seed=0,
            relative_to=self._out,
        ).items
        reasoning = (item for item in items if item.category == "reasoning")
        return [*items, *map(without_short_answer_prompt, reasoning)]

    def _answers(self, assistant: LlavaBundle, name: str) -> dict[str, str]:
        """Ask a variant all questions."""
        paths = [image.path for image in self._held_out.images]
        features = cached_tower_features(
            assistant, self._out / "features", paths, runtime=self._runtime
        )
        assistant.model.to(self._runtime.compute.device)
        return generate_answers(
            assistant,
            self._items,
            features,
            folder=self._out,
            max_new_tokens=_MAX_NEW_TOKENS,
            runtime=self._runtime,
            name=name,
        )


def _read_scores(folder: Path) -> dict[str, Any] | None:
    """Read the stored scores of a variant; earlier versions wrote them as `marks.json`."""
    for name, key in (("scores.json", "item_scores"), ("marks.json", "marks")):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            return {"identity": content["identity"], "item_scores": content[key]}
    return None


def _variant_fingerprint(variant: Variant, seed: int) -> str:
    """Return a digest of all settings that decide a variant's scores, under their names in version 0.1."""
    settings = with_former_names(to_plain_json(asdict(variant)))
    for label in ("name", "baseline", "description", "paper"):
        del settings[label]
    settings["half"] = settings.pop("half_layers")
    settings["reasons_first"] = settings.pop("reasons_before_answer")
    return json_fingerprint([settings, seed], 16)


def _slug(name: str) -> str:
    """Return a variant's name as a folder name."""
    return re.sub(r"\W+", "-", name)


def _pretrain_name(variant: Variant) -> str:
    """Return a folder name for the stage 1 of a variant, equal for all variants with the same stage 1."""
    recipe = replace(
        variant.recipe, finetune=variant.recipe.pretrain, finetune_mix=variant.recipe.pretrain_mix
    )
    settings = to_plain_json(asdict(recipe))
    for stage in ("pretrain", "finetune"):
        # Version 0.2 did not have it.
        del settings[stage]["save_every_minutes"]
    return json_fingerprint([settings, variant.half_layers], 12)


def drop_every_second_layer(language: Path, out: Path) -> Path:
    """Write a language model without every second layer, once; nothing is trained again.

    Raises:
        UsageError: Its layers are not where LLaMA's family has them.
    """
    if out.exists():
        return out
    model = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None or len(layers) < 2:
        raise UsageError(f"the layers of {type(model).__name__} cannot be halved")
    config = model.config
    config.num_hidden_layers = len(layers) // 2
    half = type(model)(config)
    layer_number = re.compile(r"(?<=\.layers\.)\d+")
    weights = {
        layer_number.sub(lambda number: str(int(number[0]) // 2), name): weight
        for name, weight in model.state_dict().items()
        if (match := layer_number.search(name)) is None or int(match[0]) % 2 == 0
    }
    half.load_state_dict(weights)
    with atomic_folder(out) as folder:
        half.save_pretrained(folder)
        tokenizer = load_tokenizer(language)
        tokenizer.save_pretrained(folder)
        copy_sentencepiece(tokenizer, folder)
    return out
