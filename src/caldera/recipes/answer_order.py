"""Dialogues in, the same out with answers in another order, or asked for in another form: what table 8 compares."""

import re
from collections.abc import Callable
from dataclasses import replace

from caldera.conversation import Conversation, Speaker
from caldera.evaluation.benchmark import Item
from caldera.instructions.questions import SHORT_ANSWER
from caldera.recipes.ablation_table import REASONS


def reasons_before(conversation: Conversation) -> Conversation:
    """Let answers that begin with yes or no and go on with reasons end with it: "... The answer is yes."."""
    return _reworded(conversation, "assistant", _turned)


def in_sentences(item: Item) -> Item:
    """Return a question that no longer wants a word or phrase, so that its answer may give reasons."""
    asked = _reworded(item.conversation, "user", lambda text: text.replace(f"\n{SHORT_ANSWER}", ""))
    name = f"{item.id}-reasons"
    return replace(item, id=name, kind=REASONS, conversation=replace(asked, id=name))


def _turned(answer: str) -> str:
    """Put the answer behind its reasons, if it has any."""
    found = re.fullmatch(r"(Yes|No)\. (.+)", answer, re.DOTALL)
    return f"{found[2]} The answer is {found[1].lower()}." if found else answer


def _reworded(
    conversation: Conversation, speaker: Speaker, change: Callable[[str], str]
) -> Conversation:
    """Change the texts of one speaker."""
    turns = tuple(
        replace(
            turn,
            parts=tuple(change(part) if isinstance(part, str) else part for part in turn.parts),
        )
        if turn.speaker == speaker
        else turn
        for turn in conversation.turns
    )
    return replace(conversation, turns=turns)
