"""An encoded conversation in, exactly what the model sees out: stretches of text, slots, marks, and what is learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from transformers import PreTrainedTokenizerFast

from caldera.templates.encoding import IGNORE_INDEX, IMAGE_SLOT_ID, EncodedConversation

SegmentKind = Literal["given", "learned", "image"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighboring tokens of one kind."""

    look: SegmentKind
    text: str
    """The tokens as the tokenizer spells them, special ones included; an image's path."""

    tokens: int
    """How many they are, image tokens included."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """One token as the model gets it."""

    position: int
    id: int
    text: str
    learned: bool


def segments(
    encoded: EncodedConversation, tokenizer: PreTrainedTokenizerFast, counts: Sequence[int]
) -> list[Segment]:
    """Return a conversation as stretches, in order; `counts` are the tokens of each image."""
    shown = zip(encoded.image_paths, counts, strict=True)
    found = []
    pairs = zip(encoded.ids, encoded.labels, strict=True)
    for look, run in groupby(pairs, key=lambda pair: _kind(*pair)):
        ids = [token for token, _ in run]
        if look == "image":
            found += [Segment(look, *next(shown)) for _ in ids]
        else:
            found.append(Segment(look, _decode(ids, tokenizer), len(ids)))
    return found


def tokens(
    encoded: EncodedConversation, tokenizer: PreTrainedTokenizerFast, counts: Sequence[int]
) -> list[TokenInfo]:
    """Return a line for each token; the tokens of an image, of which `counts` tells, share one."""
    rows, position = [], 0
    shown = zip(encoded.image_paths, counts, strict=True)
    for token, label in zip(encoded.ids, encoded.labels, strict=True):
        text, width = _decode([token], tokenizer) if token != IMAGE_SLOT_ID else "", 1
        if token == IMAGE_SLOT_ID:
            path, width = next(shown)
            text = f"{path} ({width} tokens)"
        rows.append(TokenInfo(position, token, text, label != IGNORE_INDEX))
        position += width
    return rows


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """Spell tokens as they stand in the middle of a text: at its beginning, decoders leave away a space."""
    before = tokenizer.all_special_ids[:1]
    return str(tokenizer.decode([*before, *ids])).removeprefix(str(tokenizer.decode(before)))


def _kind(token: int, label: int) -> SegmentKind:
    """Tell what kind of token it is."""
    if token == IMAGE_SLOT_ID:
        return "image"
    return "learned" if label != IGNORE_INDEX else "given"
