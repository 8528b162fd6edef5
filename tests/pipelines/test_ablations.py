"""Ablations: variants differ in what they say and in nothing else, and the table says what the marks say."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldera.conversation import Conversation, ImageRef, Turn, read_conversations
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import UnknownNameError, UsageError
from caldera.evaluation.benchmark import Item
from caldera.files.atomic import to_plain_json
from caldera.formats.model_folder import load_model_folder
from caldera.instructions.request_phrases import SHORT_ANSWER
from caldera.pipelines.ablation_run import run_ablations
from caldera.pipelines.ablations import (
    Marks,
    ablations,
    as_markdown,
    base_recipe,
    drop_every_second_layer,
    move_answer_last,
    select_variants,
    summarize,
    without_short_answer_prompt,
)
from caldera.progress import NoProgress
from caldera.recipes.recipe import QuestionCounts, SceneCounts, SceneRecipe

MEANS = Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress())


def tiny(vision: Path, language: Path) -> SceneRecipe:
    """Return the base with random towers and a handful of scenes."""
    whole = base_recipe()
    return replace(
        whole,
        scenes=SceneCounts(train=30, held_out=6),
        vision=str(vision),
        language=str(language),
        pretrain=replace(whole.pretrain, batch_size=8, max_length=256, max_steps=2),
        finetune=replace(whole.finetune, batch_size=8, max_length=1024, max_steps=2),
        questions=QuestionCounts(per_image=8, context_per_image=2, captioned=1),
    )


def test_each_variant_differs_in_one_thing() -> None:
    """From the one it is compared with; and only what it says is other."""
    variants = {variant.name: variant for variant in ablations()}
    for variant in variants.values():
        if variant.baseline == variant.name:
            continue
        mine, other = (
            to_plain_json(asdict(variant)),
            to_plain_json(asdict(variants[variant.baseline])),
        )
        words = ("name", "baseline", "description", "paper", "recipe")
        switched = {name for name in mine if name not in words and mine[name] != other[name]}
        changed = {name for name in mine["recipe"] if mine["recipe"][name] != other["recipe"][name]}
        assert len(switched | changed) == 1, variant.name
    assert {variants[name].baseline for name in variants} == {"whole", "three kinds"}


def test_a_choice_brings_what_it_is_compared_with() -> None:
    """And a wrong name is told."""
    assert [one.name for one in select_variants(ablations(), ["linear"])] == ["whole", "linear"]
    assert select_variants(ablations(), []) == ablations()
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        select_variants(ablations(), ["liner"])


def test_reasons_come_first_where_there_are_any() -> None:
    """Answers of yes and no with reasons are turned round; all else, questions among it, stays as it is."""
    turns = (
        Turn("user", (ImageRef("1.png"), "Can one ride here? Yes. No.")),
        Turn("assistant", ("Yes. There is a horse, and a horse can be ridden.",)),
        Turn("user", ("Is there a dog?",)),
        Turn("assistant", ("No, I see no dog.",)),
    )
    changed = move_answer_last(Conversation("7", turns))
    assert changed.turns[1].parts == (
        "There is a horse, and a horse can be ridden. The answer is yes.",
    )
    assert (changed.turns[0], *changed.turns[2:]) == (turns[0], *turns[2:])


def test_a_question_asks_for_sentences() -> None:
    """The same question, without the sentence that wants a word or phrase."""
    asked = Conversation("7", (Turn("user", (ImageRef("1.png"), f"\nIs it?\n{SHORT_ANSWER}")),))
    item = without_short_answer_prompt(Item("7", "reasoning", "is it", asked, ("yes",)))
    assert (item.id, item.category) == ("7-reasons", "with reasons")
    assert item.conversation.turns[0].parts == (ImageRef("1.png"), "\nIs it?")


def test_half_a_model_keeps_every_second_layer(long_language: Path, tmp_path: Path) -> None:
    """Its weights are the first, third ... layer's, and it speaks with the same words."""
    half = AutoModelForCausalLM.from_pretrained(
        drop_every_second_layer(long_language, tmp_path / "half_layers")
    )
    whole = AutoModelForCausalLM.from_pretrained(long_language)
    assert len(half.model.layers) == len(whole.model.layers) // 2 > 0
    for at, layer in enumerate(half.model.layers):
        for name, weight in layer.state_dict().items():
            assert torch.equal(weight, whole.model.layers[2 * at].state_dict()[name])
    assert torch.equal(half.model.embed_tokens.weight, whole.model.embed_tokens.weight)
    words = [AutoTokenizer.from_pretrained(one).get_vocab() for one in (long_language, tmp_path / "half_layers")]  # fmt: skip
    assert words[0] == words[1]


def test_the_table_says_what_the_marks_say() -> None:
    """Means over seeds and questions, the worst and the best seed, and the change with its interval."""
    variants = select_variants(ablations(), ["linear"])
    marks: dict[str, list[Marks]] = {
        "whole": [
            {"count": {"a": 1.0, "b": 1.0}, "with reasons": {"c": 1.0}},
            {"count": {"a": 1.0, "b": 0.0}, "with reasons": {"c": 0.0}},
        ],
        "linear": [
            {"count": {"a": 0.0, "b": 0.0}, "with reasons": {"c": 1.0}},
            {"count": {"a": 1.0, "b": 0.0}, "with reasons": {"c": 1.0}},
        ],
    }
    whole, linear = summarize(variants, marks)
    assert whole.by_kind == {"overall": 0.75, "count": 0.75, "with reasons": 0.5}
    assert (whole.lowest, whole.highest, whole.change) == (0.5, 1.0, None)
    assert linear.change is not None
    assert linear.change.value == -0.5
    page = as_markdown([whole, linear], 2, 2)
    assert "2 questions" in page
    assert "| linear | a projector of one layer | 25.0 (0.0 to 50.0) | 100.0 | -50.0 (-5" in page


@pytest.mark.slow
def test_a_sweep_trains_every_variant_once(
    vision_folder: Path, long_language: Path, tmp_path: Path
) -> None:
    """Each variant is there for each seed, stage 1 is shared where it is the same, and nothing is done twice."""
    recipe, out = tiny(vision_folder, long_language), tmp_path / "sweep"
    variants = ablations(recipe)

    rows = run_ablations(out, recipe, variants, range(2), MEANS)

    assert [row.variant.name for row in rows] == [variant.name for variant in variants]
    assert len([*out.glob("pretrain/*/seed-0/model")]) == 4  # whole, last layer, half, linear
    assert len([*out.glob("*/seed-*/marks.json")]) == 2 * len(variants)
    assert load_model_folder(out / "linear" / "seed-0" / "finetune" / "model").card.projector == "linear"  # fmt: skip
    assert not (out / "no-stage-2" / "seed-0" / "finetune").exists()
    learned_from = {
        name: load_model_folder(out / name / "seed-0" / "finetune" / "model").card.source_digests[
            "run"
        ]
        for name in ("whole", "reasons-first", "no-stage-1", "last-layer", "half-model", "linear")
    }
    assert len({*learned_from.values()}) == len(learned_from)  # other data, weights or settings
    written = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert run_ablations(out, recipe, variants, range(2), MEANS) == rows
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == written
    assert all(read_conversations(file) for file in (out / "data").glob("*.json"))
    other = replace(recipe, finetune=replace(recipe.finetune, max_steps=3))
    with pytest.raises(UsageError, match="other settings"):
        run_ablations(out, other, ablations(other), range(1), MEANS)
