"""Render a Conversation as spans of text and tokens, each supervised or not.

A conversation that ends with a question ends with the prefix of the answer, so the same code writes the prompts of
training and of inference. Where LLaVA's own code trains another text than it asks, `Template.for_training` differs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import ConversationError

START, END = "<s>", "</s>"
"""Spellings, in a template's texts, of the tokenizer's own start and end token."""

OPEN, CLOSE = "[[", "]]"
"""Marks, in a template's texts, around a part that is supervised."""

Segmentation = Literal["supervised", "legacy", "original", "original_4_31"]
"""Which texts are tokenized by themselves, and where they begin with SentencePiece's space.

- `supervised`: Supervised and other text apart, with the spaces that the tokenizer puts into the full text.
- `legacy`: The same, with a space after every special token and image.
- `original`: As LLaVA's own code: questions and answers together, split only at special tokens and images, with a space
  after every image; after a special token as the tokenizer does.
- `original_4_31`: The same with transformers 4.31, which tokenizes a text after a special token with the space of a
  first text, and removes the space from the tokens.
"""


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Plain text: no part of it can become a special token."""

    text: str
    supervised: bool = False
    segmentation: Segmentation = "supervised"
    newlines_supervised: bool = False
    """Whether a token that is one line end is supervised in any text."""


@dataclass(frozen=True, slots=True)
class BoundaryToken:
    """The tokenizer's own start or end token."""

    which: Literal["start", "end"]
    supervised: bool = False


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token by its exact spelling."""

    spelling: str
    supervised: bool = False
    text_fallback: Segmentation | None = None
    """How a tokenizer without this token encodes it as text; None if it must have the token."""


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The position of an image; it becomes as many tokens as the image has patches."""

    image: ImageRef


Span = TextSpan | BoundaryToken | SpecialToken | ImageSlot


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """Conversation format of one family of language models.

    The text is: start token, `prefix`, question, `before_answer`, `answer_prefix`, answer, `answer_suffix`; for each
    further turn `before_question`, question, `before_answer` and so on; `closing` after the last answer. Supervised are
    prefix, text and suffix of answers, the closing, and parts of the other texts between OPEN and CLOSE. START and END
    are the tokenizer's own tokens.
    """

    name: str

    models: str
    """Language models that use it."""

    reproduces: str = ""
    """The code of LLaVA, and the version of transformers, whose ids and labels it gives."""

    prefix: str = ""
    before_answer: str = ""
    answer_prefix: str = ""
    answer_suffix: str = END
    before_question: str = ""
    closing: str = ""

    tokens: tuple[str, ...] = ()
    """Special tokens in these texts, which the tokenizer must have."""

    tokens_or_text: tuple[str, ...] = ()
    """Special tokens in these texts that are encoded as text if the tokenizer lacks them."""

    stop: str | None = None
    """Text that ends an answer, if no special token does."""

    caption_only: bool = False
    """Whether it renders only the images and one caption, without the question."""

    segmentation: Segmentation = "supervised"

    keeps_first_image: bool = False
    """Whether a turn that starts with its only image stays as it is, as in LLaVA-NeXT."""

    strips_turns: bool = False
    """Whether white space around a turn is removed."""

    start_supervised: bool = False
    """Whether the start token is supervised."""

    newlines_supervised: bool = False
    """Whether a token that is one line end is supervised in any text."""

    training: "Template | None" = None
    """What training renders instead, where LLaVA's own code trains another text or other labels than it asks."""

    @property
    def for_training(self) -> "Template":
        """The template that training renders."""
        return self.training or self

    @property
    def labels_images(self) -> bool:
        """If chats put letters before several images, as caldera's own data does; LLaVA's code shows them alone."""
        return self.segmentation in ("supervised", "legacy")

    @property
    def end_token(self) -> str | None:
        """The special token that ends an answer, unless it is the tokenizer's own end token."""
        return self.answer_suffix if self.answer_suffix in self.tokens else None

    def render(self, conversation: Conversation) -> Iterator[Span]:
        """Yield the spans of a conversation; one that ends with a question ends with `before_answer`."""
        if self.caption_only:
            self._check_caption(conversation)
        yield BoundaryToken("start", self.start_supervised)
        before = self.prefix
        for turn in conversation.turns:
            if turn.role == "user":
                yield from self.split(before)
                for part in self._question(turn):
                    yield ImageSlot(part) if isinstance(part, ImageRef) else self._text(part)
                yield from self.split(self.before_answer)
                before = self.before_question
            else:
                answer = turn.text.strip() if self.strips_turns else turn.text
                yield self._text(f"{self.answer_prefix}{answer}", supervised=True)
                yield from self.split(self.answer_suffix, supervised=True)
        if len(conversation.turns) % 2 == 0:
            yield from self.split(self.closing, supervised=True)

    def split(
        self, text: str, *, supervised: bool = False
    ) -> Iterator[TextSpan | BoundaryToken | SpecialToken]:
        """Split one of the template's own texts at its special tokens and at the marks of supervised parts."""
        special = {START, END, *self.tokens, *self.tokens_or_text}
        for piece in re.split(f"({'|'.join(map(re.escape, (OPEN, CLOSE, *special)))})", text):
            if piece in (OPEN, CLOSE):
                supervised = piece == OPEN
            elif piece in (START, END):
                yield BoundaryToken("start" if piece == START else "end", supervised)
            elif piece in special:
                fallback = self.segmentation if piece in self.tokens_or_text else None
                yield SpecialToken(piece, supervised, fallback)
            elif piece:
                yield self._text(piece, supervised=supervised)

    def _text(self, text: str, *, supervised: bool = False) -> TextSpan:
        """Return a text that is tokenized as this template's texts are."""
        return TextSpan(text, supervised, self.segmentation, self.newlines_supervised)

    def _question(self, turn: Turn) -> tuple[str | ImageRef, ...]:
        """Return the parts of a question that are rendered."""
        if self.caption_only:
            return turn.images
        starts_with_image = turn.parts[:1] == turn.images[:1]
        parts = (
            turn.parts if self.keeps_first_image and starts_with_image else move_image_first(turn)
        )
        return _strip(parts) if self.strips_turns else parts

    def _check_caption(self, conversation: Conversation) -> None:
        """Raise unless there is one question with an image and at most one answer."""
        question, *answers = conversation.turns
        if not question.images or len(answers) > 1:
            raise ConversationError(
                f"record {conversation.id!r} has {len(conversation.turns)} turns, the first with "
                f"{len(question.images)} image(s); the template {self.name!r} takes images and one caption; use "
                "'vicuna_v1' for dialogues"
            )


def move_image_first(turn: Turn) -> tuple[str | ImageRef, ...]:
    """Return the parts with a single image moved to a line before the text, as LLaVA's trainer does.

    Several images stay in place. An image without text has no line end (LLaVA strips the full turn again).
    """
    if len(turn.images) != 1:
        return turn.parts
    words = turn.text.strip()
    return (*turn.images, f"\n{words}") if words else turn.images


def _strip(parts: tuple[str | ImageRef, ...]) -> tuple[str | ImageRef, ...]:
    """Return the parts of a turn without the white space around them."""
    stripped = list(parts)
    if stripped and isinstance(stripped[0], str):
        stripped[0] = stripped[0].lstrip()
    if stripped and isinstance(stripped[-1], str):
        stripped[-1] = stripped[-1].rstrip()
    return tuple(stripped)
