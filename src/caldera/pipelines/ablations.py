"""Ablations: variants of the demo that differ in one component, and the table of their scores.

Each variant differs from its baseline in a single setting: table 8 of arXiv 2304.08485 (layer of the tower, order of
answer and reasons, no stage 1, a smaller model), its table 4 (kinds of instruction data), and the projector of arXiv
2310.03744 (table 2).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from caldera.conversation import Conversation, Role
from caldera.errors import UnknownNameError
from caldera.evaluation.benchmark import Item
from caldera.evaluation.intervals import Difference, paired_difference
from caldera.instructions.request_phrases import SHORT_ANSWER
from caldera.recipes.demo import demo
from caldera.recipes.recipe import InstructionMix, QuestionCounts, SceneCounts, SceneRecipe

ItemScores = dict[str, dict[str, float]]
"""Scores of one variant's answers with one seed: by category, by item id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """Recipe with one changed component."""

    name: str
    baseline: str
    """Name of the variant to compare with; its own name if it is a baseline."""

    description: str
    """Description of the change."""

    paper: str
    """Result in the papers, with the table."""

    recipe: SceneRecipe
    pretrained: bool = True
    """Whether stage 1 is run before stage 2."""

    finetuned: bool = True
    """Whether stage 2 is run."""

    half_layers: bool = False
    """Whether every second layer of the language model is dropped."""

    reasons_before_answer: bool = False
    """Whether answers with reasons end with the answer instead of beginning with it."""


def base_recipe() -> SceneRecipe:
    """Return the demo with fewer scenes, so that many variants can be trained."""
    return replace(
        demo(),
        name="ablations",
        scenes=SceneCounts(train=1500, held_out=100),
        questions=QuestionCounts(captioned=1),
    )


CONVERSATION_SHARE, _DETAIL_SHARE, _REASONING_SHARE = 0.5, 0.2, 0.66
"""Dialogues per scene of LLaVA's three kinds, in the ratio of its 158,000 records: 58 to 23 to 77."""


def ablations(recipe: SceneRecipe | None = None) -> tuple[Variant, ...]:
    """Return the variants of a recipe, `base_recipe()` by default."""
    base = recipe or base_recipe()
    return (*_component_variants(base), *_data_variants(base))


def _component_variants(base: SceneRecipe) -> tuple[Variant, ...]:
    """Return the variants of model and training, whose baseline is the whole recipe."""
    table = "2304.08485, table 8"

    def variant(
        name: str, description: str, paper: str = "", recipe: SceneRecipe = base, **switches: bool
    ) -> Variant:
        return Variant(
            name=name,
            baseline="whole",
            description=description,
            paper=paper,
            recipe=recipe,
            **switches,
        )

    return (
        variant("whole", "the demo, with fewer scenes"),
        variant(
            "last layer",
            "the tower's last layer instead of the second to last",
            f"-0.96 of 90.92 ({table})",
            replace(base, vision_feature_layer=-1),
        ),
        variant(
            "reasons first",
            "reasons before the answer, in dialogues with reasons",
            f"+1.15 on 89.77 ({table})",
            reasons_before_answer=True,
        ),
        variant(
            "no stage 1",
            "stage 2 with a fresh projector",
            f"-5.11 of 90.92 ({table})",
            pretrained=False,
        ),
        variant(
            "half model",
            "a language model without every second layer",
            f"-1.08 of 90.92, 7B for 13B ({table})",
            half_layers=True,
        ),
        variant(
            "linear",
            "a projector of one layer",
            "1323.8 for 1355.2 on MME (2310.03744, table 2)",
            replace(base, projector="linear"),
        ),
    )


def _data_variants(base: SceneRecipe) -> tuple[Variant, ...]:
    """Return the variants of the instruction data, whose baseline is LLaVA's three kinds."""
    table = "2304.08485, table 4"
    detail, reasoning = _DETAIL_SHARE, _REASONING_SHARE
    three_kinds = _with_mix(
        base, conversation=CONVERSATION_SHARE, detail=detail, reasoning=reasoning
    )

    def variant(
        name: str, description: str, paper: str, recipe: SceneRecipe, *, finetuned: bool = True
    ) -> Variant:
        return Variant(
            name=name,
            baseline="three kinds",
            description=description,
            paper=f"{paper} ({table})",
            recipe=recipe,
            finetuned=finetuned,
        )

    return (
        variant(
            "three kinds",
            "only LLaVA's conversation, detail and reasoning",
            "85.1",
            three_kinds,
        ),
        variant(
            "detail + reasoning",
            "no conversation",
            "-3.2 of 85.1",
            _with_mix(base, detail=detail, reasoning=reasoning),
        ),
        variant(
            "conversation + few",
            "conversation, 5 % of detail, 10 % of reasoning",
            "-4.6 of 85.1",
            _with_mix(
                base,
                conversation=CONVERSATION_SHARE,
                detail=0.05 * detail,
                reasoning=0.1 * reasoning,
            ),
        ),
        variant(
            "conversation",
            "conversation only",
            "-11.3 of 85.1",
            _with_mix(base, conversation=CONVERSATION_SHARE),
        ),
        variant(
            "no stage 2",
            "no instruction data",
            "-63.6 of 85.1",
            three_kinds,
            finetuned=False,
        ),
    )


def select_variants(variants: Sequence[Variant], names: Sequence[str]) -> tuple[Variant, ...]:
    """Return the variants of some names with their baselines; all if no name is given.

    Raises:
        UnknownNameError: A name is unknown.
    """
    by_name = {variant.name: variant for variant in variants}
    for name in names:
        if name not in by_name:
            raise UnknownNameError("variant", name, by_name)
    selected = {*names, *(by_name[name].baseline for name in names)} or {*by_name}
    return tuple(variant for variant in variants if variant.name in selected)


def _with_mix(recipe: SceneRecipe, **shares: float) -> SceneRecipe:
    """Return a recipe with another mix of dialogues in stage 2."""
    return replace(recipe, finetune_mix=InstructionMix(**shares))


WITH_REASONS = "with reasons"
"""Category of the questions with reasons: reasoning questions without the short-answer prompt, counted separately."""


@dataclass(frozen=True, slots=True)
class AblationResult:
    """Scores of one variant; fractions of correct answers."""

    variant: Variant
    by_kind: dict[str, float]
    """Means over seeds and questions by category; "overall" excludes those with reasons."""

    lowest: float
    highest: float
    """Overall score of the worst and the best seed."""

    change: Difference | None
    """Difference to the baseline over the overall questions, each with its mean over seeds; None for a baseline."""


def summarize(
    variants: Sequence[Variant], scores: Mapping[str, Sequence[ItemScores]]
) -> list[AblationResult]:
    """Return the result of each variant, given its scores for each seed."""
    return [_summarize_variant(variant, scores) for variant in variants]


def _summarize_variant(
    variant: Variant, scores: Mapping[str, Sequence[ItemScores]]
) -> AblationResult:
    """Return the result of one variant."""
    runs = scores[variant.name]
    by_category = {
        category: _mean([score for run in runs for score in run[category].values()])
        for category in runs[0]
    }
    overall = [_mean([*_overall_scores(run).values()]) for run in runs]
    change = None
    if variant.baseline != variant.name:
        baseline, changed = _mean_over_seeds(scores[variant.baseline]), _mean_over_seeds(runs)
        change = paired_difference([*baseline.values()], [changed[name] for name in baseline])
    by_category = {"overall": _mean(overall), **by_category}
    return AblationResult(variant, by_category, min(overall), max(overall), change)


def _overall_scores(scores: ItemScores) -> dict[str, float]:
    """Return the scores of all questions but those with reasons."""
    return {
        name: score
        for category, by_item in scores.items()
        if category != WITH_REASONS
        for name, score in by_item.items()
    }


def _mean_over_seeds(runs: Sequence[ItemScores]) -> dict[str, float]:
    """Return the mean score of each question over seeds."""
    overall = [_overall_scores(run) for run in runs]
    return {name: _mean([scores[name] for scores in overall]) for name in overall[0]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def as_markdown(results: Sequence[AblationResult], num_seeds: int, num_questions: int) -> str:
    """Return the table in the form of docs/results.md."""
    head = (
        f"{num_questions} questions about held-out scenes, {num_seeds} seed{'s' if num_seeds > 1 else ''} each; "
        "correct answers in %. In parentheses the worst and the best seed. Differences with 95 % intervals, by a "
        "paired bootstrap over questions: they hold for these seeds only.\n"
    )
    lines = [
        "| variant | change | correct | with reasons | difference | in the papers |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_line(result) for result in results),
    ]
    return "\n".join([head, *lines, ""])


def _line(result: AblationResult) -> str:
    """Return one row of the table."""
    variant, change = result.variant, result.change
    overall, lowest, highest = (
        f"{score * 100:.1f}" for score in (result.by_kind["overall"], result.lowest, result.highest)
    )
    reasons = result.by_kind.get(WITH_REASONS)
    difference = "baseline"
    if change is not None:
        values = (f"{value * 100:+.1f}" for value in (change.value, change.low, change.high))
        difference = "{} ({} to {})".format(*values)
        if variant.baseline != "whole":
            difference += f" from {variant.baseline}"
    cells = (
        variant.name,
        variant.description,
        f"{overall} ({lowest} to {highest})",
        "" if reasons is None else f"{reasons * 100:.1f}",
        difference,
        variant.paper,
    )
    return f"| {' | '.join(cells)} |"


def as_results(results: Sequence[AblationResult]) -> list[dict[str, object]]:
    """Return the table as JSON data; scores are fractions."""
    return [
        {
            "variant": result.variant.name,
            "baseline": result.variant.baseline,
            "what": result.variant.description,
            "right": result.by_kind,
            "lowest": result.lowest,
            "highest": result.highest,
            "change": result.change and asdict(result.change),
        }
        for result in results
    ]


def move_answer_last(conversation: Conversation) -> Conversation:
    """Move yes or no in answers with reasons to the end: "... The answer is yes."."""
    return _map_text(conversation, "assistant", _answer_last)


def without_short_answer_prompt(item: Item) -> Item:
    """Return a question that does not ask for a word or phrase, so that its answer may have reasons."""
    conversation = _map_text(
        item.conversation, "user", lambda text: text.replace(f"\n{SHORT_ANSWER}", "")
    )
    name = f"{item.id}-reasons"
    return replace(
        item, id=name, category=WITH_REASONS, conversation=replace(conversation, id=name)
    )


def _answer_last(answer: str) -> str:
    """Move the answer after its reasons, if it has any."""
    match = re.fullmatch(r"(Yes|No)\. (.+)", answer, re.DOTALL)
    return f"{match[2]} The answer is {match[1].lower()}." if match else answer


def _map_text(conversation: Conversation, role: Role, change: Callable[[str], str]) -> Conversation:
    """Apply a function to the texts of one role."""
    turns = tuple(
        replace(
            turn,
            parts=tuple(change(part) if isinstance(part, str) else part for part in turn.parts),
        )
        if turn.role == role
        else turn
        for turn in conversation.turns
    )
    return replace(conversation, turns=turns)
