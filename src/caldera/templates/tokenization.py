"""Stretches of text and their places in, token ids out: what the tokenizer gives for a text where it stands.

Tokenizers of SentencePiece's kind put a space before a text, some where it begins, some behind every special token,
none in the middle of words. Special tokens are put between stretches by id, so every stretch is tokenized by itself,
and a twin of the tokenizer for each kind of place puts that space exactly where the tokenizer would in the whole.
"""

import json
from collections.abc import Collection, Iterable
from typing import Any, Literal
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from caldera.conversation import IMAGE_PLACEHOLDER
from caldera.templates.template import SPECIAL_TOKENS

TextPosition = Literal["first", "after mark", "after text"]

_MARKS = SPECIAL_TOKENS | {IMAGE_PLACEHOLDER}
"""Tokens that no text may become, even where a tokenizer does not call them special."""

_EMPTY = {"type": "BPE", "vocab": {}, "merges": []}


class ContextTokenizer:
    """What one tokenizer makes of texts, and its special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Read a fast tokenizer; nothing of it is changed."""
        backend = tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder()
        self.start = tuple(start_ids(tokenizer))
        """Ids that the tokenizer itself puts before a text."""
        self.end: int | None = tokenizer.eos_token_id
        self.special: dict[str, int] = {token.content: key for key, token in added.items()}
        """Ids of added tokens by spelling."""
        self.strips_right = frozenset(key for key, token in added.items() if token.rstrip)
        """Ids of tokens that take the white space behind them with them."""
        kept = {
            key: token
            for key, token in sorted(added.items())
            if not token.special and token.content not in _MARKS
        }
        self._kept = list(kept.values())
        barred = self.special.keys() - {token.content for token in kept.values()}
        self._model = _model_without(backend, barred)
        self._steps = _pipeline(backend)
        self._copies: dict[str, Tokenizer] = {}
        first = self._variant("first")
        self._ids = {first.token_to_id(token.content): key for key, token in kept.items()}

    def encode(self, text: str, place: TextPosition, *, alone: bool = False) -> list[int]:
        """Return the ids of a text; none of them is a special token's, whatever it spells.

        Args:
            text: One stretch, which no token may reach across.
            place: Where it stands.
            alone: Whether it gets a space before it, if the tokenizer puts one before any text; not within text.
        """
        if alone and place != "after text":
            if _pipeline_at(self._steps, "first") != _pipeline_at(self._steps, "after text"):
                text = f" {text}"
            place = "after text"
        ids = self._variant(place).encode(text, add_special_tokens=False).ids
        return [self._ids.get(token, token) for token in ids] if self._ids else list(ids)

    def _variant(self, place: TextPosition) -> Tokenizer:
        """Return the tokenizer for a place, made when first asked for: the same vocabulary, but no special tokens."""
        if place not in self._copies:
            steps = {
                "version": "1.0",
                "added_tokens": [],
                "model": _EMPTY,
                **_pipeline_at(self._steps, place),
            }
            shell = Tokenizer.from_str(json.dumps(steps))
            shell.model = self._model
            shell.add_tokens(self._kept)
            self._copies[place] = shell
        return self._copies[place]


_CACHE: WeakKeyDictionary[PreTrainedTokenizerFast, tuple[int, ContextTokenizer]] = (
    WeakKeyDictionary()
)
"""What was read of tokenizers that are still in use, and how many tokens they had then."""


def context_tokenizer(tokenizer: PreTrainedTokenizerFast) -> ContextTokenizer:
    """Return what a tokenizer makes of texts; it is read anew where tokens were added since."""
    size = len(tokenizer)
    known = _CACHE.get(tokenizer)
    if known is None or known[0] != size:
        known = _CACHE[tokenizer] = (size, ContextTokenizer(tokenizer))
    return known[1]


def start_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids that the tokenizer itself puts before a text: its start mark, or nothing."""
    given = list(tokenizer("").input_ids)
    return [token for token in given if token == tokenizer.bos_token_id][:1]


def _pipeline(backend: Tokenizer) -> dict[str, Any]:
    """Return as JSON what a tokenizer does to a text before its model."""
    shell = Tokenizer(models.BPE())
    shell.normalizer, shell.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    content = json.loads(shell.to_str())
    return {step: content[step] for step in ("normalizer", "pre_tokenizer")}


def _model_without(backend: Tokenizer, barred: Collection[str]) -> models.Model:
    """Return the tokenizer's model; a copy, if it makes one of the barred tokens out of text by itself."""
    model = backend.model
    if all(
        [piece.value for piece in model.tokenize(token)] != [token] for token in barred if token
    ):
        return model
    content = json.loads(backend.to_str())
    inner = content["model"]
    if "merges" in inner:
        inner["merges"] = [pair for pair in inner["merges"] if _joined(pair) not in barred]
    if inner["type"] == "Unigram":
        inner["vocab"] = [  # its texts hold no spaces, so a piece that does is never met
            (f" {piece}" if piece in barred else piece, score) for piece, score in inner["vocab"]
        ]
    return Tokenizer.from_str(json.dumps(content)).model


def _joined(pair: str | Iterable[str]) -> str:
    """Return what a merge makes; old files write its two sides as one text."""
    return "".join(pair.split(" ") if isinstance(pair, str) else pair)


def _pipeline_at(steps: dict[str, Any], place: TextPosition) -> dict[str, Any]:
    """Return the steps before the model as they are at a place."""
    return {name: step and _step_at(step, place) for name, step in steps.items()}


def _step_at(step: dict[str, Any], place: TextPosition) -> dict[str, Any] | None:
    """Return a normalizer or pre-tokenizer as it is at a place: it puts a space before a text there, or none."""
    within = place == "after text"
    match step["type"]:
        case "Sequence":
            [inner] = step.keys() - {"type"}
            kept = [_step_at(one, place) for one in step[inner]]
            return {**step, inner: [one for one in kept if one is not None]}
        case "Prepend" if within:
            return None
        case "Metaspace" if within or (place != "first" and step["prepend_scheme"] == "first"):
            return {**step, "prepend_scheme": "never"}
        case "ByteLevel" if within:
            return {**step, "add_prefix_space": False}
    return step
