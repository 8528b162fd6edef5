"""Variants differ in one component only, and the table summarizes their scores."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import UnknownNameError
from caldera.evaluation.benchmark import Item
from caldera.files.atomic import to_plain_json
from caldera.instructions.request_phrases import SHORT_ANSWER
from caldera.pipelines.ablation_run import drop_every_second_layer
from caldera.pipelines.ablations import (
    ItemScores,
    ablations,
    as_markdown,
    move_answer_last,
    select_variants,
    summarize,
    without_short_answer_prompt,
)


def test_each_variant_differs_in_one_component() -> None:
    """Each variant differs from its baseline in one switch or one field of the recipe."""
    variants = {variant.name: variant for variant in ablations()}
    for variant in variants.values():
        if variant.baseline == variant.name:
            continue
        settings = to_plain_json(asdict(variant))
        baseline = to_plain_json(asdict(variants[variant.baseline]))
        labels = ("name", "baseline", "description", "paper", "recipe")
        switched = {
            name for name in settings if name not in labels and settings[name] != baseline[name]
        }
        fields, base_fields = settings["recipe"], baseline["recipe"]
        changed = {name for name in fields if fields[name] != base_fields[name]}
        assert len(switched | changed) == 1, variant.name
    assert {variants[name].baseline for name in variants} == {"whole", "three kinds"}


def test_a_selected_variant_comes_with_its_baseline() -> None:
    """For an unknown name the message suggests the nearest."""
    assert [variant.name for variant in select_variants(ablations(), ["linear"])] == [
        "whole",
        "linear",
    ]
    assert select_variants(ablations(), []) == ablations()
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        select_variants(ablations(), ["liner"])


def test_the_answer_is_moved_after_its_reasons() -> None:
    """Yes and no with reasons move to the end; other answers and questions are unchanged."""
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


def test_the_short_answer_prompt_is_removed() -> None:
    """The question is the same without the request for a word or phrase."""
    conversation = Conversation(
        "7", (Turn("user", (ImageRef("1.png"), f"\nIs it?\n{SHORT_ANSWER}")),)
    )
    item = without_short_answer_prompt(Item("7", "reasoning", "is it", conversation, ("yes",)))
    assert (item.id, item.category) == ("7-reasons", "with reasons")
    assert item.conversation.turns[0].parts == (ImageRef("1.png"), "\nIs it?")


def test_half_a_model_keeps_every_second_layer(long_language: Path, tmp_path: Path) -> None:
    """Its weights are those of the first, third ... layer, and its tokens are the same."""
    half = AutoModelForCausalLM.from_pretrained(
        drop_every_second_layer(long_language, tmp_path / "half")
    )
    full = AutoModelForCausalLM.from_pretrained(long_language)
    assert len(half.model.layers) == len(full.model.layers) // 2 > 0
    for index, layer in enumerate(half.model.layers):
        for name, weight in layer.state_dict().items():
            assert torch.equal(weight, full.model.layers[2 * index].state_dict()[name])
    assert torch.equal(half.model.embed_tokens.weight, full.model.embed_tokens.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "half")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(long_language).get_vocab()


def test_the_table_summarizes_the_scores() -> None:
    """The table has means over seeds and questions, the worst and best seed, and the difference with its interval."""
    variants = select_variants(ablations(), ["linear"])
    scores: dict[str, list[ItemScores]] = {
        "whole": [
            {"count": {"a": 1.0, "b": 1.0}, "with reasons": {"c": 1.0}},
            {"count": {"a": 1.0, "b": 0.0}, "with reasons": {"c": 0.0}},
        ],
        "linear": [
            {"count": {"a": 0.0, "b": 0.0}, "with reasons": {"c": 1.0}},
            {"count": {"a": 1.0, "b": 0.0}, "with reasons": {"c": 1.0}},
        ],
    }
    base, linear = summarize(variants, scores)
    assert base.by_kind == {"overall": 0.75, "count": 0.75, "with reasons": 0.5}
    assert (base.lowest, base.highest, base.change) == (0.5, 1.0, None)
    assert linear.change is not None
    assert linear.change.value == -0.5
    page = as_markdown([base, linear], 2, 2)
    assert "| variant | change | correct |" in page
    assert "2 questions" in page
    assert "| linear | a projector of one layer | 25.0 (0.0 to 50.0) | 100.0 | -50.0 (-5" in page
