"""Encode rendered spans as token ids and labels.

The labels other than `IGNORE_INDEX`, decoded, are exactly the assistant's turns and their end tokens. A segment of text
that is all supervised or all unsupervised is tokenized once and by itself. So no token is partly supervised, a prompt
has the same tokens whether or not its answer follows, and nothing is tokenized again to count its tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.templates.template import (
    TEMPLATES,
    BoundaryToken,
    ImageSlot,
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


class _Encoder:
    """Ids and labels of the spans encoded so far."""

    def __init__(self, tokenizer: ContextTokenizer) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self._tokenizer = tokenizer
        self._position: TextPosition = "first"

    def add_text(self, spans: Sequence[TextSpan], *, supervised: bool) -> None:
        """Append adjacent texts, tokenized together."""
        text = "".join(span.text for span in spans)
        isolated = any(span.isolated for span in spans)
        if not supervised and self.ids and self.ids[-1] in self._tokenizer.strips_right:
            text = text.lstrip()
        ids = self._tokenizer.encode(text, self._position, isolated=isolated)
        self._add(ids, "after text", supervised=supervised)

    def add_tokens(self, ids: Sequence[int], *, supervised: bool) -> None:
        """Append a special token or a slot; text after the initial start token is still the first."""
        is_start = not self.ids and tuple(ids) == self._tokenizer.start
        self._add(ids, "first" if is_start else "after token", supervised=supervised)

    def _add(self, ids: Sequence[int], position: TextPosition, *, supervised: bool) -> None:
        self.ids += ids
        self.labels += ids if supervised else [IGNORE_INDEX] * len(ids)
        self._position = position if ids else self._position


def encode(spans: Iterable[Span], tokenizer: PreTrainedTokenizerFast) -> EncodedConversation:
    """Encode the spans of a template, with one IMAGE_SLOT_ID for each image.

    If no text spells a special token, the ids are those that the tokenizer gives for the full text, unless a token
    would be partly supervised. The start token is used if the tokenizer adds one itself.
    """
    context = context_tokenizer(tokenizer)
    encoder = _Encoder(context)
    paths: list[str] = []
    resolved = (_resolve_token(span, context) for span in spans)
    for supervised, run in groupby(resolved, key=_text_supervision):
        if supervised is not None:
            texts = [span for span in run if isinstance(span, TextSpan)]
            encoder.add_text(texts, supervised=supervised)
            continue
        for span in run:
            if isinstance(span, ImageSlot):
                encoder.add_tokens([IMAGE_SLOT_ID], supervised=False)
                paths.append(span.image.path)
            elif not isinstance(span, TextSpan):
                encoder.add_tokens(_token_ids(span, context), supervised=span.supervised)
    return EncodedConversation(tuple(encoder.ids), tuple(encoder.labels), tuple(paths))


def _text_supervision(span: Span) -> bool | None:
    """Return whether a text is supervised, None for other spans; adjacent equal texts are tokenized together."""
    return span.supervised if isinstance(span, TextSpan) else None


def _resolve_token(span: Span, tokenizer: ContextTokenizer) -> Span:
    """Turn a special token that this tokenizer spells as text into text."""
    if (
        isinstance(span, SpecialToken)
        and span.text_fallback
        and span.spelling not in tokenizer.special
    ):
        return TextSpan(span.spelling, span.supervised)
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
