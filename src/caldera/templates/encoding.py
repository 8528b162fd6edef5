"""Encode rendered spans as token ids and labels.

The labels other than `IGNORE_INDEX`, decoded, are exactly the assistant's turns and their end tokens. A segment of text
that is all supervised or all unsupervised is tokenized once and by itself. So no token is partly supervised, a prompt
has the same tokens whether or not its answer follows, and nothing is tokenized again to count its tokens.

The templates of LLaVA's own code tokenize a question and its answer together. There a token is supervised if it starts
in a supervised text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from transformers import PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.templates.registry import TEMPLATES
from caldera.templates.template import (
    BoundaryToken,
    ImageSlot,
    Segmentation,
    Span,
    SpecialToken,
    TextSpan,
)
from caldera.templates.tokenization import ContextTokenizer, TextPosition, context_tokenizer

IGNORE_INDEX = -100
"""Label of a token without loss."""

IMAGE_SLOT_ID = -200
"""Placeholder for an image until its number of tokens is known; LLaVA's IMAGE_TOKEN_INDEX."""


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """Token ids and labels of one conversation."""

    ids: tuple[int, ...]
    """Token ids, with one IMAGE_SLOT_ID per image."""

    labels: tuple[int, ...]
    """The id of each supervised token, IGNORE_INDEX elsewhere."""

    image_paths: tuple[str, ...]
    """Path of each image, in the order of the slots."""

    @property
    def num_supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(label != IGNORE_INDEX for label in self.labels)

    def image_end_positions(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Return the position after each image once slot `i` is replaced by `counts[i]` tokens."""
        slots = [position for position, token in enumerate(self.ids) if token == IMAGE_SLOT_ID]
        return tuple(slot - n + sum(counts[: n + 1]) for n, slot in enumerate(slots))

    def with_image_tokens(
        self, counts: Sequence[int], image_token_id: int
    ) -> "EncodedConversation":
        """Return a copy in which slot `i` is replaced by `counts[i]` image tokens."""
        widths = iter(counts)
        if len(counts) != len(self.image_paths):
            raise ValueError(f"{len(self.image_paths)} slots but {len(counts)} counts of tokens")
        ids: list[int] = []
        labels: list[int] = []
        for token, label in zip(self.ids, self.labels, strict=True):
            repeat = next(widths) if token == IMAGE_SLOT_ID else 1
            ids += [image_token_id if token == IMAGE_SLOT_ID else token] * repeat
            labels += [label] * repeat
        return EncodedConversation(tuple(ids), tuple(labels), self.image_paths)


_Previous = Literal["start", "image", "token", "text"]
"""What precedes a text: nothing but the start token, an image, a special token, or a text."""

_POSITIONS: dict[Segmentation, dict[_Previous, TextPosition]] = {
    "supervised": {"start": "first", "image": "after token", "token": "after token"},
    "legacy": {"start": "alone", "image": "alone", "token": "alone"},
    "original": {"start": "alone", "image": "alone", "token": "after token"},
    "original_4_31": {"start": "alone", "image": "alone", "token": "alone, stripped"},
}


class _Encoder:
    """Ids and labels of the spans encoded so far."""

    def __init__(self, tokenizer: ContextTokenizer) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self._tokenizer = tokenizer
        self._previous: _Previous = "start"

    def add_texts(self, spans: Sequence[TextSpan]) -> None:
        """Append adjacent texts, tokenized together; a token is supervised if its first character is."""
        text = "".join(span.text for span in spans)
        supervised = [span.supervised for span in spans for _ in span.text]
        if not spans[0].supervised and self.ids and self.ids[-1] in self._tokenizer.strips_right:
            text = text.lstrip()
            supervised = supervised[len(supervised) - len(text) :]
        if not text:
            return
        newline = self._tokenizer.newline if spans[0].newlines_supervised else None
        position = _POSITIONS[spans[0].segmentation].get(self._previous, "after text")
        ids, starts = self._tokenizer.encode_with_starts(text, position)
        self.ids += ids
        self.labels += [
            token if supervised[start] or token == newline else IGNORE_INDEX
            for token, start in zip(ids, starts, strict=True)
        ]
        self._previous = "text"

    def add_image(self) -> None:
        """Append the slot of an image."""
        self._add([IMAGE_SLOT_ID], "image", supervised=False)

    def add_tokens(self, ids: Sequence[int], *, supervised: bool) -> None:
        """Append a special token; text after the initial start token is still the first."""
        is_start = not self.ids and tuple(ids) == self._tokenizer.start
        self._add(ids, "start" if is_start else "token", supervised=supervised)

    def _add(self, ids: Sequence[int], kind: _Previous, *, supervised: bool) -> None:
        self.ids += ids
        self.labels += ids if supervised else [IGNORE_INDEX] * len(ids)
        self._previous = kind if ids else self._previous


def encode(spans: Iterable[Span], tokenizer: PreTrainedTokenizerFast) -> EncodedConversation:
    """Encode the spans of a template, with one IMAGE_SLOT_ID for each image.

    If no text spells a special token, the ids are those that the tokenizer gives for the full text, unless a token
    would be partly supervised or the spans have another segmentation. The start token is used if the tokenizer adds
    one itself.
    """
    context = context_tokenizer(tokenizer)
    encoder = _Encoder(context)
    paths: list[str] = []
    resolved = (_resolve_token(span, context) for span in spans)
    for segment, run in groupby(resolved, key=_segment):
        if segment is not None:
            encoder.add_texts([span for span in run if isinstance(span, TextSpan)])
            continue
        for span in run:
            if isinstance(span, ImageSlot):
                encoder.add_image()
                paths.append(span.image.path)
            elif not isinstance(span, TextSpan):
                encoder.add_tokens(_token_ids(span, context), supervised=span.supervised)
    return EncodedConversation(tuple(encoder.ids), tuple(encoder.labels), tuple(paths))


def _segment(span: Span) -> bool | str | None:
    """Return what adjacent texts that are tokenized together have in common; None for other spans."""
    if not isinstance(span, TextSpan):
        return None
    joins = span.segmentation in ("original", "original_4_31")
    return span.segmentation if joins else span.supervised


def _resolve_token(span: Span, tokenizer: ContextTokenizer) -> Span:
    """Turn a special token that this tokenizer spells as text into text."""
    if (
        isinstance(span, SpecialToken)
        and span.text_fallback is not None
        and span.spelling not in tokenizer.special
    ):
        return TextSpan(span.spelling, span.supervised, span.text_fallback)
    return span


def _token_ids(token: BoundaryToken | SpecialToken, tokenizer: ContextTokenizer) -> Sequence[int]:
    """Return the ids of a special token; raise if the tokenizer lacks it."""
    if isinstance(token, SpecialToken):
        if token.spelling in tokenizer.special:
            return [tokenizer.special[token.spelling]]
        users = [name for name, template in TEMPLATES.items() if token.spelling in template.tokens]
        raise ModelFormatError(
            f"the tokenizer has no special token {token.spelling!r}, which the template needs ({', '.join(users)} use "
            "it); choose a template of this language model, or train with that one, which adds the token"
        )
    if token.which == "start":
        return tokenizer.start
    if tokenizer.end is None:
        raise ModelFormatError("the tokenizer names no eos_token, so answers cannot end; set one")
    return [tokenizer.end]
