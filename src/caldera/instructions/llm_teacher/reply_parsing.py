"""A teacher's reply in, exchanges out, or the rule that it breaks.

The form is that of LLaVA's released examples: blocks that begin with `Question:` or `Answer:`, between them lines of
`===`. Answers may hold blank lines, lists and colons; only whole lines of `===` part blocks.
"""

import re
from collections.abc import Callable, Sequence

from caldera.instructions.dialogues import Exchange, Kind
from caldera.llm_client.client import RejectedReply

_LABELS = {
    "question": ("Question:", "问题：", "问题:"),
    "answer": ("Answer:", "回答：", "回答:"),
}

_FENCE = re.compile(r"\A```[\w-]*\n(.*)\n```\Z", re.DOTALL)


def parse_reply(kind: Kind, reply: str, ask: Callable[[], str]) -> list[Exchange]:
    """Read a reply.

    Args:
        kind: What was asked for; a description is an answer alone, reasoning one pair, the others any number.
        reply: The text.
        ask: Draws the question for a description.

    Raises:
        ReplyRefusal: The reply is empty or breaks the form.
    """
    text = reply.replace("\r\n", "\n").strip()
    if fenced := _FENCE.match(text):
        text = fenced[1].strip()
    if not text:
        raise RejectedReply("empty reply")
    if kind == "detail":
        return [Exchange(ask(), _description(text))]
    exchanges = _pair_up(_blocks(text))
    if kind == "reasoning" and len(exchanges) != 1:
        raise _format_error(f"{len(exchanges)} questions where one is wanted")
    return exchanges


def format_exchanges(exchanges: Sequence[Exchange]) -> str:
    """Write exchanges in the form that `parse` reads."""
    return "\n===\n".join(
        f"Question:\n{each.question}\n===\nAnswer:\n{each.answer}" for each in exchanges
    )


def _description(text: str) -> str:
    """Return a description, without the label that some teachers put before it.

    Raises:
        ReplyRefusal: It is a dialogue.
    """
    if any(line.strip() == "===" for line in text.split("\n")):
        raise RejectedReply(
            "form",
            "a dialogue where a description is wanted",
            feedback="Write the description alone.",
        )
    label = next((label for label in _LABELS["answer"] if text.startswith(label)), "")
    return text.removeprefix(label).strip()


def _blocks(text: str) -> list[tuple[str, str]]:
    """Cut a reply at its lines of `===` into (role, text).

    Raises:
        ReplyRefusal: A block has neither label, or nothing after it.
    """
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip() == "===":
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) > 1 and not "".join(parts[-1]).strip():
        parts.pop()  # a line of === after the last block
    return [_block("\n".join(part).strip()) for part in parts]


def _block(text: str) -> tuple[str, str]:
    """Return the role and the text of one block.

    Raises:
        ReplyRefusal: It has neither label, or nothing after it.
    """
    for role, labels in _LABELS.items():
        for label in labels:
            if text.startswith(label):
                said = text.removeprefix(label).strip()
                if not said:
                    raise RejectedReply(
                        f"empty {role}", feedback=f"One {role} is empty. Write all of it again."
                    )
                return role, said
    raise _format_error(f"a block begins with neither Question: nor Answer: but {text[:40]!r}")


def _pair_up(blocks: list[tuple[str, str]]) -> list[Exchange]:
    """Pair questions with answers.

    Raises:
        ReplyRefusal: They do not alternate, question first, or the last has no answer.
    """
    roles = [role for role, _ in blocks]
    if len(roles) % 2 or roles != ["question", "answer"] * (len(roles) // 2):
        raise _format_error(f"blocks do not alternate: {', '.join(roles[:6])}")
    said = [text for _, text in blocks]
    return [Exchange(*pair) for pair in zip(said[::2], said[1::2], strict=True)]


def _format_error(detail: str) -> RejectedReply:
    """Refuse a form, and tell the teacher the right one."""
    return RejectedReply(
        "form",
        detail,
        feedback="Your reply is not in the form that was asked for. Write it again, about this picture: each block "
        "begins with Question: or Answer: on a line of its own, they take turns, a line of === stands between them.",
    )
