"""Spans in, token ids and labels out, born together.

The law: the labels that are not IGNORED, decoded, spell exactly the assistant's turns and their end marks. A stretch of
text that is all learned or all not is tokenized once, with nothing else, so no token is partly learned, and a prompt
has the same tokens whether or not its answer follows; nothing is tokenized a second time to be counted.
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
"""Label of a token on which no loss is taken."""

IMAGE_SLOT_ID = -200
"""Stands for an image until it is known how many tokens the image has; LLaVA's own number for it."""


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """One conversation as numbers."""

    ids: tuple[int, ...]
    """Token ids, with SLOT where an image stands."""

    labels: tuple[int, ...]
    """The id where the token is learned, else IGNORED."""

    image_paths: tuple[str, ...]
    """Path for each SLOT, in order."""

    @property
    def num_supervised(self) -> int:
        """Tokens that the loss is taken on."""
        return sum(label != IGNORE_INDEX for label in self.labels)

    def image_end_positions(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Return where each image ends once its SLOT is replaced by as many tokens as `counts` says."""
        slots = [at for at, token in enumerate(self.ids) if token == IMAGE_SLOT_ID]
        return tuple(at - n + sum(counts[: n + 1]) for n, at in enumerate(slots))

    def with_image_tokens(
        self, counts: Sequence[int], image_token_id: int
    ) -> "EncodedConversation":
        """Return it with each SLOT replaced by as many image tokens as its image has.

        Raises:
            ValueError: There is not one count for each slot.
        """
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
    """Ids and labels of one conversation, as they come about."""

    def __init__(self, words: ContextTokenizer) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self._words = words
        self._place: TextPosition = "first"

    def add_text(self, spans: Sequence[TextSpan], *, learned: bool) -> None:
        """Write a stretch of text."""
        text = "".join(span.text for span in spans)
        alone = any(span.isolated for span in spans)
        if not learned and self.ids and self.ids[-1] in self._words.strips_right:
            text = text.lstrip()
        self._add(self._words.encode(text, self._place, alone=alone), "after text", learned=learned)

    def add_mark(self, ids: Sequence[int], *, learned: bool) -> None:
        """Write a special token or a slot; the start mark at the beginning leaves the text behind it the first."""
        opens = not self.ids and tuple(ids) == self._words.start
        self._add(ids, "first" if opens else "after mark", learned=learned)

    def _add(self, ids: Sequence[int], place: TextPosition, *, learned: bool) -> None:
        self.ids += ids
        self.labels += ids if learned else [IGNORE_INDEX] * len(ids)
        self._place = place if ids else self._place


def encode(spans: Iterable[Span], tokenizer: PreTrainedTokenizerFast) -> EncodedConversation:
    """Encode rendered spans.

    Args:
        spans: What a template rendered.
        tokenizer: A fast tokenizer; its start mark is used if it uses one itself.

    Returns:
        Ids and labels of equal length, one SLOT for each image. Where no text spells a special token, the ids are
        those that the tokenizer gives for the whole, marks spelled out, unless a token would be partly learned.

    Raises:
        ModelFolderError: The tokenizer lacks a special token that the template needs.
    """
    words = context_tokenizer(tokenizer)
    written = _Encoder(words)
    paths: list[str] = []
    for learned, run in groupby(
        (_resolve_token(span, words) for span in spans), key=_learned_as_text
    ):
        if learned is not None:
            written.add_text([span for span in run if isinstance(span, TextSpan)], learned=learned)
            continue
        for span in run:
            if isinstance(span, ImageSlot):
                written.add_mark([IMAGE_SLOT_ID], learned=False)
                paths.append(span.image.path)
            elif not isinstance(span, TextSpan):
                written.add_mark(_token_ids(span, words), learned=span.supervised)
    return EncodedConversation(tuple(written.ids), tuple(written.labels), tuple(paths))


def _learned_as_text(span: Span) -> bool | None:
    """Tell whether a text is learned: neighbors that agree are tokenized together; None for what is no text."""
    return span.supervised if isinstance(span, TextSpan) else None


def _resolve_token(span: Span, words: ContextTokenizer) -> Span:
    """Turn a special token that this tokenizer spells as text into text."""
    if isinstance(span, SpecialToken) and span.text_fallback and span.spelling not in words.special:
        return TextSpan(span.spelling, span.supervised)
    return span


def _token_ids(mark: BoundaryToken | SpecialToken, words: ContextTokenizer) -> Sequence[int]:
    """Return the ids of a mark.

    Raises:
        ModelFolderError: The tokenizer lacks it.
    """
    if isinstance(mark, SpecialToken):
        if mark.spelling in words.special:
            return [words.special[mark.spelling]]
        users = [name for name, template in TEMPLATES.items() if mark.spelling in template.tokens]
        raise ModelFormatError(
            f"the tokenizer has no special token {mark.spelling!r}, which the template needs ({', '.join(users)} use "
            "it); take a template of this language model, or train with that one, which adds it"
        )
    if mark.which == "start":
        return words.start
    if words.end is None:
        raise ModelFormatError("the tokenizer names no eos_token, so answers cannot end; set one")
    return [words.end]
