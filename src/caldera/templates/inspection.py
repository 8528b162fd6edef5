"""Decode an encoded conversation for inspection: segments and tokens, marked as context, supervised or image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from transformers import PreTrainedTokenizerFast

from caldera.templates.encoding import IGNORE_INDEX, IMAGE_SLOT_ID, EncodedConversation

SegmentKind = Literal["context", "supervised", "image"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Adjacent tokens of one kind."""

    kind: SegmentKind
    text: str
    """The decoded tokens, special ones included, or the path of an image."""

    num_tokens: int
    """Number of tokens, image tokens included."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """One token as the model receives it."""

    position: int
    id: int
    text: str
    supervised: bool


def segments(
    encoded: EncodedConversation, tokenizer: PreTrainedTokenizerFast, counts: Sequence[int]
) -> list[Segment]:
    """Return the segments of a conversation in order; image `i` has `counts[i]` tokens."""
    images = zip(encoded.image_paths, counts, strict=True)
    result = []
    pairs = zip(encoded.ids, encoded.labels, strict=True)
    for kind, run in groupby(pairs, key=lambda pair: _kind(*pair)):
        ids = [token for token, _ in run]
        if kind == "image":
            result += [Segment(kind, *next(images)) for _ in ids]
        else:
            result.append(Segment(kind, _decode(ids, tokenizer), len(ids)))
    return result


def tokens(
    encoded: EncodedConversation, tokenizer: PreTrainedTokenizerFast, counts: Sequence[int]
) -> list[TokenInfo]:
    """Return one entry for each token; image `i` has one entry for all its `counts[i]` tokens."""
    rows, position = [], 0
    images = zip(encoded.image_paths, counts, strict=True)
    for token, label in zip(encoded.ids, encoded.labels, strict=True):
        if token == IMAGE_SLOT_ID:
            path, width = next(images)
            text = f"{path} ({width} tokens)"
        else:
            text, width = _decode([token], tokenizer), 1
        rows.append(TokenInfo(position, token, text, label != IGNORE_INDEX))
        position += width
    return rows


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """Decode tokens as in the middle of a text: at its beginning, decoders omit a space."""
    prefix = tokenizer.all_special_ids[:1]
    return str(tokenizer.decode([*prefix, *ids])).removeprefix(str(tokenizer.decode(prefix)))


def _kind(token: int, label: int) -> SegmentKind:
    if token == IMAGE_SLOT_ID:
        return "image"
    return "supervised" if label != IGNORE_INDEX else "context"
