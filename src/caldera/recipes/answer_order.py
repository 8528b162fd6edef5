"""Dialogues in, the same out with answers in another order, or asked for in another form: what table 8 compares."""

import re
from collections.abc import Callable
from dataclasses import replace

from caldera.conversation import Conversation, Role
from caldera.evaluation.benchmark import Item
from caldera.instructions.questions import SHORT_ANSWER
from caldera.recipes.ablation_table import WITH_REASONS


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
