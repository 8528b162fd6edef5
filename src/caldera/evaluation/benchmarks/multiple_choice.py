"""Multiple-choice questions, scored by accuracy: overall, by category and by slice."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import UsageError
from caldera.evaluation.answer_files import AnswerRecord
from caldera.evaluation.answer_matching import (
    extract_question,
    find_choices,
    find_references,
    normalize_words,
)
from caldera.evaluation.answer_parsing import LETTERS, parse_choice
from caldera.evaluation.benchmark import Item, Score, check_answers, mean, score_items, to_percent
from caldera.instructions.request_phrases import LETTER_PROMPT


def parse_letters(items: Sequence[Item], answers: Mapping[str, str]) -> dict[str, str | None]:
    """Return the letter of each answer, None if it has none or several."""
    check_answers(items, answers)
    return {
        item.id: parse_choice(
            answers[item.id], LETTERS[: len(item.choices)] or LETTERS, item.choices
        )
        for item in items
    }


def score_letters(items: Sequence[Item], letters: Mapping[str, str | None]) -> Score:
    """Score letters; an item without one is wrong, and counted in `parse_failures`.

    Metrics are `accuracy` over all items, `accuracy_when_read` over the items with a letter, and accuracy by group.
    """
    scores = {item.id: float(letters[item.id] == item.references[0]) for item in items}
    unparsed = {item.id: "no single choice could be read" for item in items if not letters[item.id]}
    parsed_scores = [score for name, score in scores.items() if name not in unparsed]
    score = score_items(items, scores, unparsed)
    metrics: dict[str, Any] = {"accuracy": to_percent(score.overall)}
    metrics |= {name: to_percent(value) for name, value in score.by_category.items()}
    metrics |= {"questions": len(items), "parse_failures": len(unparsed)}
    if unparsed:
        metrics["accuracy_when_read"] = to_percent(mean(parsed_scores)) if parsed_scores else 0.0
    return replace(score, metrics=metrics)


def items_from_answers(records: Sequence[AnswerRecord]) -> list[Item]:
    """Return the questions that answers of VLMEvalKit or lmms-eval repeat, with their correct letters.

    Raises:
        UsageError: An answer repeats no choices, or not the correct one.
    """
    items = []
    for number, record in enumerate(records):
        # Samples of lmms-eval about ScienceQA have no other id.
        name = record.id or str(record.fields.get("doc_id", number))
        choices = find_choices(record)
        letters = LETTERS[: len(choices)].casefold()
        by_text = dict(zip(map(normalize_words, choices), letters, strict=False))
        references = {by_text.get(text, text) for text in find_references(record)} & {*letters}
        if len(references) != 1:
            raise UsageError(
                f"{record.location} repeats no choices with the correct one; give the official files (--questions or "
                "--annotations)"
            )
        category, coarse = (str(record.fields.get(key, "")) for key in ("category", "l2-category"))
        items.append(
            Item(
                name,
                category or "question",
                "choice",
                choice_turn(name, extract_question(record.prompt), choices, ()),
                (references.pop().upper(),),
                tuple(choices),
                (coarse,) if coarse not in ("", category) else (),
            )
        )
    return items


def choice_turn(
    name: str,
    question: str,
    choices: Sequence[str],
    images: Sequence[str],
    instruction: str = LETTER_PROMPT,
) -> Conversation:
    """Return a choice question in LLaVA-1.5's layout: images, question, one line per choice, the instruction."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    text = "\n".join((question, *options, instruction))
    image_refs = [ImageRef(path) for path in images]
    parts: tuple[str | ImageRef, ...] = (*image_refs, f"\n{text}" if image_refs else text)
    return Conversation(name, (Turn("user", parts),))
