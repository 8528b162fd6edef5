"""What LLaVA's papers took away or changed to see what it is worth, as variants of the demo.

Each variant differs from the one it is compared with in a single thing: table 8 of arXiv 2304.08485 (layer of the
tower, order of answer and reasons, no stage 1, a smaller model), its table 4 (kinds of instruction data), and the
projector of arXiv 2310.03744 (table 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from caldera.errors import UnknownNameError
from caldera.recipes.demo import demo
from caldera.recipes.scene_recipe import InstructionMix, QuestionCounts, SceneCounts, SceneRecipe

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
