"""An encoded conversation in, exactly what the model sees out: stretches of text, slots, marks, and what is learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from transformers import PreTrainedTokenizerFast

from caldera.batches.labels import IGNORED, SLOT, Encoded

Look = Literal["given", "learned", "picture"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring tokens of one kind."""

    look: Look
    text: str
    """The tokens as the tokenizer spells them, special ones included; a picture's path."""

    tokens: int
    """How many they are, image tokens included."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token as the model gets it."""

    position: int
    id: int
    text: str
    learned: bool


def stretches(
    encoded: Encoded, tokenizer: PreTrainedTokenizerFast, counts: Sequence[int]
) -> list[Stretch]:
    """Return a conversation as stretches, in order; `counts` are the tokens of each picture."""
    shown = zip(encoded.picture_paths, counts, strict=True)
    found = []
    pairs = zip(encoded.ids, encoded.labels, strict=True)
    for look, run in groupby(pairs, key=lambda pair: _look(*pair)):
        ids = [token for token, _ in run]
        if look == "picture":
            found += [Stretch(look, *next(shown)) for _ in ids]
        else:
            found.append(Stretch(look, _spelt(ids, tokenizer), len(ids)))
    return found


def token_rows(
    encoded: Encoded, tokenizer: PreTrainedTokenizerFast, counts: Sequence[int]
) -> list[TokenRow]:
    """Return a line for each token; the tokens of a picture, of which `counts` tells, share one."""
    rows, position = [], 0
    shown = zip(encoded.picture_paths, counts, strict=True)
    for token, label in zip(encoded.ids, encoded.labels, strict=True):
        text, width = _spelt([token], tokenizer) if token != SLOT else "", 1
        if token == SLOT:
            path, width = next(shown)
            text = f"{path} ({width} tokens)"
        rows.append(TokenRow(position, token, text, label != IGNORED))
        position += width
    return rows


def _spelt(ids: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """Spell tokens as they stand in the middle of a text: at its beginning, decoders leave away a space."""
    before = tokenizer.all_special_ids[:1]
    return str(tokenizer.decode([*before, *ids])).removeprefix(str(tokenizer.decode(before)))


def _look(token: int, label: int) -> Look:
    """Tell what kind of token it is."""
    if token == SLOT:
        return "picture"
    return "learned" if label != IGNORED else "given"
