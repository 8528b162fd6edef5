"""Choice questions and answer texts in, accuracy out: over all, by kind, and by every other group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.evaluation.answer_parsing import LETTERS, parse_choice
from caldera.evaluation.benchmark import (
    Item,
    Score,
    check_answers,
    mean,
    scores_by_group,
    to_percent,
)
from caldera.instructions.request_phrases import LETTER_PROMPT


def parse_letters(items: Sequence[Item], answers: Mapping[str, str]) -> dict[str, str | None]:
    """Return the letter of each answer, None where there is none, or several.

    Raises:
        InputError: Answers are missing, or belong to no item.
    """
    check_answers(items, answers)
    return {
        item.id: parse_choice(
            answers[item.id], LETTERS[: len(item.choices)] or LETTERS, item.choices
        )
        for item in items
    }


def score_letters(items: Sequence[Item], letters: Mapping[str, str | None]) -> Score:
    """Score letters; an item without one is wrong, and counted in `parse_failures`.

    Figures are `accuracy` over all, `accuracy_when_read` over the items that have a letter, and accuracy by group.
    """
    marks = {item.id: float(letters[item.id] == item.references[0]) for item in items}
    groups = scores_by_group(items, marks)
    unread = {item.id: "no single choice could be read" for item in items if not letters[item.id]}
    read = [mark for name, mark in marks.items() if name not in unread]
    figures: dict[str, Any] = {"accuracy": to_percent(mean(marks.values()))}
    figures |= {name: to_percent(mean(group.values())) for name, group in groups.items()}
    figures |= {"questions": len(items), "parse_failures": len(unread)}
    if unread:
        figures["accuracy_when_read"] = to_percent(mean(read)) if read else 0.0
    return Score(
        mean(marks.values()),
        {name: mean(group.values()) for name, group in groups.items()},
        {name: len(group) for name, group in groups.items()},
        figures,
        marks,
        unread,
    )


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """Items whose reference is a letter."""

    name: str
    items: Sequence[Item]
    max_new_tokens: int = 16

    def score(self, answers: Mapping[str, str]) -> Score:
        """Read a letter from each answer and compare.

        Raises:
            InputError: Answers are missing, or belong to no item.
        """
        return score_letters(self.items, parse_letters(self.items, answers))


def choice_turn(
    name: str,
    question: str,
    choices: Sequence[str],
    images: Sequence[str],
    sentence: str = LETTER_PROMPT,
) -> Conversation:
    """Lay a choice question out as LLaVA-1.5 does: images, question, choices on lines, what asks for a letter."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    text = "\n".join((question, *options, sentence))
    shown = [ImageRef(path) for path in images]
    parts: tuple[str | ImageRef, ...] = (*shown, f"\n{text}" if shown else text)
    return Conversation(name, (Turn("user", parts),))
