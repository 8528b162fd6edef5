"""A Conversation in, spans of prompt text out, each knowing whether the loss is taken on it.

A template is a function; `TEMPLATES` holds them by exact name. Rendering a conversation whose last turn is the user's
opens the assistant's answer, so training and inference cannot drift apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from caldera.conversation import Conversation, Picture, Turn
from caldera.errors import RecordError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Text:
    """Words, encoded as plain text: nothing in them can become a special token."""

    text: str
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A special token of the tokenizer: the start of the sequence, or the end of an answer."""

    which: Literal["start", "end"]
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a picture; it becomes as many tokens as the picture has patches."""

    picture: Picture


Span = Text | Mark | Slot


@dataclass(frozen=True, slots=True)
class Template:
    """How one family of language models wants a conversation written."""

    name: str
    render: Callable[[Conversation], Iterator[Span]]
    stop: str | None = None
    """Text that ends an answer, for templates that teach no end mark."""


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def picture_first(turn: Turn) -> tuple[str | Picture, ...]:
    """Put a turn's lone picture on a line before its words, as LLaVA's trainer does; keep several where they are.

    A picture without words stands alone, without the line's end (spec 2.2: the whole is stripped once more).
    """
    if len(turn.pictures) != 1:
        return turn.parts
    words = turn.text.strip()
    return (*turn.pictures, f"\n{words}") if words else turn.pictures


def _spans(parts: tuple[str | Picture, ...]) -> Iterator[Span]:
    """Turn the parts of a user's turn into spans that are not learned."""
    for part in parts:
        yield Slot(part) if isinstance(part, Picture) else Text(part)


def vicuna_v1(conversation: Conversation) -> Iterator[Span]:
    """Write `{system} USER: {question} ASSISTANT: {answer}</s>USER: ...`, as LLaVA-1.5 and Vicuna v1.1 do."""
    yield Mark("start")
    yield Text(f"{VICUNA_SYSTEM} ")
    for turn in conversation.turns:
        if turn.speaker == "user":
            yield Text("USER: ")
            yield from _spans(picture_first(turn))
            yield Text(" ASSISTANT:")
        else:
            yield Text(f" {turn.text}", learned=True)
            yield Mark("end", learned=True)


def plain(conversation: Conversation) -> Iterator[Span]:
    """Write the picture and its caption and nothing else, as LLaVA's stage 1 does; the question is left away.

    Raises:
        RecordError: It is not one question with a picture and at most one answer.
    """
    question, *answers = conversation.turns
    if not question.pictures or len(answers) > 1:
        raise RecordError(
            f"record {conversation.id!r} has {len(conversation.turns)} turns, the first with {len(question.pictures)} "
            "picture(s); the template 'plain' takes pictures and one caption, use 'vicuna_v1' for dialogues"
        )
    yield Mark("start")
    yield from (Slot(picture) for picture in question.pictures)
    for answer in answers:
        yield Text(f"{answer.text}\n", learned=True)


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template("plain", plain, stop="\n"),
        Template("vicuna_v1", vicuna_v1),
    )
}


def find_template(name: str) -> Template:
    """Return the template called exactly `name`.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in TEMPLATES:
        raise UnknownNameError("template", name, TEMPLATES)
    return TEMPLATES[name]
