"""A teacher's reply in, exchanges out.

The format is that of LLaVA's released examples: blocks that begin with `Question:` or `Answer:`, separated by lines of
`===`. Answers may contain blank lines, lists and colons; only whole lines of `===` separate blocks.
"""

import re
from collections.abc import Callable

from caldera.instructions.dialogues import Exchange, Kind
from caldera.llm_client.client import RejectedReply

_LABELS = {
    "question": ("Question:", "问题：", "问题:"),
    "answer": ("Answer:", "回答：", "回答:"),
}

_FENCE = re.compile(r"\A```[\w-]*\n(.*)\n```\Z", re.DOTALL)

# Feedback is model input: its wording belongs to the data.
_FORMAT_FEEDBACK = (
    "Your reply is not in the form that was asked for. Write it again, about this picture: each block begins with "
    "Question: or Answer: on a line of its own, they take turns, a line of === stands between them."
)


def parse_reply(kind: Kind, reply: str, pick_question: Callable[[], str]) -> list[Exchange]:
    """Parse a reply; raise RejectedReply if it is empty or malformed."""
    text = reply.replace("\r\n", "\n").strip()
    if fenced := _FENCE.match(text):
        text = fenced[1].strip()
    if not text:
        raise RejectedReply("empty reply")
    if kind == "detail":
        return [Exchange(pick_question(), _description(text))]
    exchanges = _pair_up(_blocks(text))
    if kind == "reasoning" and len(exchanges) != 1:
        raise _format_error(f"{len(exchanges)} questions instead of one")
    return exchanges


def _description(text: str) -> str:
    """Return a description without the label that some teachers put before it; reject a dialogue."""
    if any(line.strip() == "===" for line in text.split("\n")):
        feedback = "Write the description alone."
        raise RejectedReply("form", "a dialogue instead of a description", feedback=feedback)
    label = next((label for label in _LABELS["answer"] if text.startswith(label)), "")
    return text.removeprefix(label).strip()


def _blocks(text: str) -> list[tuple[str, str]]:
    """Split a reply at its lines of `===` into blocks of (role, text)."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip() == "===":
            parts.append([])
        else:
            parts[-1].append(line)
    # A line of === may follow the last block.
    if len(parts) > 1 and not "".join(parts[-1]).strip():
        parts.pop()
    return [_block("\n".join(part).strip()) for part in parts]


def _block(text: str) -> tuple[str, str]:
    """Return the role and the text of one block; reject one without a label or without text."""
    for role, labels in _LABELS.items():
        for label in labels:
            if text.startswith(label):
                content = text.removeprefix(label).strip()
                if not content:
                    feedback = f"One {role} is empty. Write all of it again."
                    raise RejectedReply(f"empty {role}", feedback=feedback)
                return role, content
    raise _format_error(f"a block begins with neither Question: nor Answer: but {text[:40]!r}")


def _pair_up(blocks: list[tuple[str, str]]) -> list[Exchange]:
    """Pair questions with answers; reject blocks that do not alternate, question first."""
    roles = [role for role, _ in blocks]
    if len(roles) % 2 or roles != ["question", "answer"] * (len(roles) // 2):
        raise _format_error(f"blocks do not alternate: {', '.join(roles[:6])}")
    texts = [text for _, text in blocks]
    return [Exchange(*pair) for pair in zip(texts[::2], texts[1::2], strict=True)]


def _format_error(detail: str) -> RejectedReply:
    """Return the rejection of a malformed reply."""
    return RejectedReply("form", detail, feedback=_FORMAT_FEEDBACK)
