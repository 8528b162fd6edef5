"""Variants, changes, table.

Each variant differs from the one it is compared with in a single thing: table 8 of arXiv 2304.08485 (layer of the
tower, order of answer and reasons, no stage 1, a smaller model), its table 4 (kinds of instruction data), and the
projector of arXiv 2310.03744 (table 2).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldera.conversation import Conversation, Role
from caldera.errors import UnknownNameError, UsageError
from caldera.evaluation.benchmark import Item
from caldera.evaluation.intervals import Difference, paired_difference
from caldera.files.atomic import atomic_folder
from caldera.instructions.request_phrases import SHORT_ANSWER
from caldera.recipes.demo import demo
from caldera.recipes.recipe import InstructionMix, QuestionCounts, SceneCounts, SceneRecipe

Marks = dict[str, dict[str, float]]
"""What the answers of one variant, trained with one seed, are worth: by kind of question, by item."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to train."""

    name: str
    baseline: str
    """The variant that it is compared with; its own name where it is the one that others are compared with."""

    description: str
    """What is other about it, in words."""

    paper: str
    """What the papers found, with the table."""

    recipe: SceneRecipe
    pretrained: bool = True
    """Whether stage 1 comes before stage 2."""

    finetuned: bool = True
    """Whether stage 2 comes at all."""

    half_layers: bool = False
    """Whether every second layer is left out of the language model."""

    reasons_before_answer: bool = False
    """Whether answers that give reasons end with the answer instead of beginning with it."""


def base_recipe() -> SceneRecipe:
    """Return the demo with fewer scenes, so that many variants can be trained."""
    return replace(
        demo(),
        name="ablations",
        scenes=SceneCounts(train=1500, held_out=100),
        questions=QuestionCounts(captioned=1),
    )


CONVERSATION_SHARE, DETAIL, REASONING = 0.5, 0.2, 0.66
"""Dialogues a scene of LLaVA's three kinds, in the proportion of its 158,000: 58 to 23 to 77."""


def ablations(recipe: SceneRecipe | None = None) -> tuple[Variant, ...]:
    """Return the variants of a recipe.

    Args:
        recipe: What they vary; `base()` if None.
    """
    whole = recipe or base_recipe()
    three = _with_mix(
        whole, InstructionMix(conversation=CONVERSATION_SHARE, detail=DETAIL, reasoning=REASONING)
    )
    table_8, table_4 = "2304.08485, table 8", "2304.08485, table 4"
    return (
        Variant(name="whole", baseline="whole", description="the demo, with fewer scenes", paper="", recipe=whole),
        Variant(
            name="last layer", baseline="whole", description="the tower's last layer, not the one before it",
            paper=f"-0.96 of 90.92 ({table_8})", recipe=replace(whole, select_layer=-1),
        ),
        Variant(
            name="reasons first", baseline="whole", description="reasons, then the answer, in dialogues that give any",
            paper=f"+1.15 on 89.77 ({table_8})", recipe=whole, reasons_before_answer=True,
        ),
        Variant(
            name="no stage 1", baseline="whole", description="stage 2 on a fresh projector",
            paper=f"-5.11 of 90.92 ({table_8})", recipe=whole, pretrained=False,
        ),
        Variant(
            name="half model", baseline="whole", description="a language model without every second layer",
            paper=f"-1.08 of 90.92, 7B for 13B ({table_8})", recipe=whole, half_layers=True,
        ),
        Variant(
            name="linear", baseline="whole", description="a projector of one layer",
            paper="1323.8 for 1355.2 on MME (2310.03744, table 2)", recipe=replace(whole, projector="linear"),
        ),
        Variant(
            name="three kinds", baseline="three kinds", description="LLaVA's conversation, detail and reasoning alone",
            paper=f"85.1 ({table_4})", recipe=three,
        ),
        Variant(
            name="detail + reasoning", baseline="three kinds", description="no conversation",
            paper=f"-3.2 of 85.1 ({table_4})", recipe=_with_mix(whole, InstructionMix(detail=DETAIL, reasoning=REASONING)),
        ),
        Variant(
            name="conversation + few", baseline="three kinds", description="conversation, 5 % of detail, 10 % of reasoning",
            paper=f"-4.6 of 85.1 ({table_4})",
            recipe=_with_mix(whole, InstructionMix(conversation=CONVERSATION_SHARE, detail=0.05 * DETAIL, reasoning=0.1 * REASONING)),
        ),
        Variant(
            name="conversation", baseline="three kinds", description="conversation alone",
            paper=f"-11.3 of 85.1 ({table_4})", recipe=_with_mix(whole, InstructionMix(conversation=CONVERSATION_SHARE)),
        ),
        Variant(
            name="no stage 2", baseline="three kinds", description="no instruction data at all",
            paper=f"-63.6 of 85.1 ({table_4})", recipe=three, finetuned=False,
        ),
    )  # fmt: skip


def select_variants(variants: Sequence[Variant], names: Sequence[str]) -> tuple[Variant, ...]:
    """Return the variants of some names, with those they are compared with; all if no name is given.

    Raises:
        UnknownNameError: There is none of a name.
    """
    known = {variant.name: variant for variant in variants}
    for name in names:
        if name not in known:
            raise UnknownNameError("variant", name, known)
    wanted = {*names, *(known[name].baseline for name in names)} or {*known}
    return tuple(variant for variant in variants if variant.name in wanted)


def _with_mix(recipe: SceneRecipe, mix: InstructionMix) -> SceneRecipe:
    """Return a recipe with other dialogues in stage 2."""
    return replace(recipe, finetune_mix=mix)


WITH_REASONS = "with reasons"
"""The kind of the questions whose answers give reasons; they are the short ones asked again, and counted apart."""


@dataclass(frozen=True, slots=True)
class AblationResult:
    """What one variant came to; shares of right answers."""

    variant: Variant
    by_kind: dict[str, float]
    """Means over seeds and questions; "overall" holds all but those with reasons."""

    lowest: float
    highest: float
    """Overall, of the worst and the best seed."""

    change: Difference | None
    """Of all overall questions from the variant it is compared with, each question's mark a mean over seeds; None for
    the one that others are compared with."""


def summarize(
    variants: Sequence[Variant], marks: Mapping[str, Sequence[Marks]]
) -> list[AblationResult]:
    """Sum marks up, a row for each variant in their order."""
    return [_row(variant, marks) for variant in variants]


def _row(variant: Variant, marks: Mapping[str, Sequence[Marks]]) -> AblationResult:
    """Sum one variant's marks up."""
    mine = marks[variant.name]
    kinds = [*mine[0]]
    by_kind = {kind: _mean([mark for one in mine for mark in one[kind].values()]) for kind in kinds}
    seeds = [_mean([*_overall_scores(one).values()]) for one in mine]
    change = None
    if variant.baseline != variant.name:
        first, second = _over_seeds(marks[variant.baseline]), _over_seeds(mine)
        change = paired_difference(
            [first[name] for name in first], [second[name] for name in first]
        )
    return AblationResult(
        variant, {"overall": _mean(seeds), **by_kind}, min(seeds), max(seeds), change
    )


def _overall_scores(marks: Marks) -> dict[str, float]:
    """Return the marks of all questions but those with reasons."""
    return {
        name: mark
        for kind, some in marks.items()
        if kind != WITH_REASONS
        for name, mark in some.items()
    }


def _over_seeds(marks: Sequence[Marks]) -> dict[str, float]:
    """Return each question's mean mark over seeds."""
    seeds = [_overall_scores(one) for one in marks]
    return {name: _mean([one[name] for one in seeds]) for name in seeds[0]}


def _mean(values: Sequence[float]) -> float:
    """Return a mean."""
    return sum(values) / len(values)


def as_markdown(rows: Sequence[AblationResult], seeds: int, questions: int) -> str:
    """Write the table as docs/results.md has it."""
    head = (
        f"{questions} questions about held-out scenes, {seeds} seed{'s' if seeds > 1 else ''} each; shares of right "
        "answers in %. In brackets the worst and the best seed. Changes with 95 % intervals, by a paired bootstrap "
        "over questions: they say how sure a change is for these seeds, not for all.\n"
    )
    lines = [
        "| variant | what is other | right | with reasons | change | in the papers |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_line(row) for row in rows),
    ]
    return "\n".join([head, *lines, ""])


def _line(row: AblationResult) -> str:
    """Write one row."""
    change = "compared with" if row.change is None else _format_change(row.change)
    named = (
        ""
        if row.variant.baseline == "whole" or row.change is None
        else f" from {row.variant.baseline}"
    )
    right = (
        f"{row.by_kind['overall'] * 100:.1f} ({row.lowest * 100:.1f} to {row.highest * 100:.1f})"
    )
    reasons = f"{row.by_kind[WITH_REASONS] * 100:.1f}" if WITH_REASONS in row.by_kind else ""
    cells = (
        row.variant.name,
        row.variant.description,
        right,
        reasons,
        change + named,
        row.variant.paper,
    )
    return f"| {' | '.join(cells)} |"


def _format_change(change: Difference) -> str:
    """Write a difference with its interval, in points."""
    return f"{change.value * 100:+.1f} ({change.low * 100:+.1f} to {change.high * 100:+.1f})"


def as_results(rows: Sequence[AblationResult]) -> list[dict[str, object]]:
    """Return the table for programs; shares between 0 and 1."""
    return [
        {
            "variant": row.variant.name,
            "baseline": row.variant.baseline,
            "what": row.variant.description,
            "right": row.by_kind,
            "lowest": row.lowest,
            "highest": row.highest,
            "change": row.change and asdict(row.change),
        }
        for row in rows
    ]


def move_answer_last(conversation: Conversation) -> Conversation:
    """Let answers that begin with yes or no and go on with reasons end with it: "... The answer is yes."."""
    return _map_text(conversation, "assistant", _answer_last)


def without_short_answer_prompt(item: Item) -> Item:
    """Return a question that no longer wants a word or phrase, so that its answer may give reasons."""
    asked = _map_text(item.conversation, "user", lambda text: text.replace(f"\n{SHORT_ANSWER}", ""))
    name = f"{item.id}-reasons"
    return replace(item, id=name, category=WITH_REASONS, conversation=replace(asked, id=name))


def _answer_last(answer: str) -> str:
    """Put the answer behind its reasons, if it has any."""
    found = re.fullmatch(r"(Yes|No)\. (.+)", answer, re.DOTALL)
    return f"{found[2]} The answer is {found[1].lower()}." if found else answer


def _map_text(
    conversation: Conversation, speaker: Role, change: Callable[[str], str]
) -> Conversation:
    """Change the texts of one speaker."""
    turns = tuple(
        replace(
            turn,
            parts=tuple(change(part) if isinstance(part, str) else part for part in turn.parts),
        )
        if turn.role == speaker
        else turn
        for turn in conversation.turns
    )
    return replace(conversation, turns=turns)


def drop_every_second_layer(language: Path, out: Path) -> Path:
    """Write a language model without every second of its layers, once; nothing is trained again.

    Raises:
        UsageError: It has no list of layers as LLaMA's family has.
    """
    if out.exists():
        return out
    whole = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    layers = getattr(getattr(whole, "model", None), "layers", None)
    if layers is None or len(layers) < 2:
        raise UsageError(f"the layers of {type(whole).__name__} cannot be halved")
    config = whole.config
    config.num_hidden_layers = len(layers) // 2
    half = type(whole)(config)
    kept = {
        re.sub(r"(?<=\.layers\.)\d+", lambda found: str(int(found[0]) // 2), name): weight
        for name, weight in whole.state_dict().items()
        if (found := re.search(r"\.layers\.(\d+)\.", name)) is None or int(found[1]) % 2 == 0
    }
    half.load_state_dict(kept)
    with atomic_folder(out) as folder:
        half.save_pretrained(folder)
        AutoTokenizer.from_pretrained(language).save_pretrained(folder)
    return out
