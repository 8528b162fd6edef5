"""Tokenize text segments as they would be tokenized in context.

SentencePiece-like tokenizers put a space before a text: some only at the beginning, some after every special token,
none in the middle of words. Special tokens are inserted by id between segments, so each segment is tokenized by itself,
by a variant of the tokenizer that puts the space exactly where the tokenizer would put it in the full text.
"""

import json
from collections.abc import Collection, Iterable
from typing import Any, Literal
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from caldera.conversation import IMAGE_PLACEHOLDER
from caldera.templates.registry import SPECIAL_TOKENS

TextPosition = Literal["first", "after token", "after text", "alone", "alone, stripped"]
"""What precedes a text segment, or that it is tokenized as if nothing did.

`alone` puts a space before any text if the tokenizer puts one before the first; `alone, stripped` removes it from the
first token again, where that leaves a token, if the tokenizer puts none after a special token.
"""

_RESERVED = SPECIAL_TOKENS | {IMAGE_PLACEHOLDER}
"""Tokens that no text may become, even if a tokenizer does not mark them as special."""

_EMPTY = {"type": "BPE", "vocab": {}, "merges": []}

LOW_LINE = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's character for a space."""


class ContextTokenizer:
    """Tokenizer of text segments by their position, and the special tokens by spelling."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Read a fast tokenizer; the tokenizer itself is not changed."""
        backend = tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder()
        self.start = tuple(start_ids(tokenizer))
        """Ids that the tokenizer itself puts before a text."""
        self.end: int | None = tokenizer.eos_token_id
        self.special: dict[str, int] = {token.content: key for key, token in added.items()}
        """Ids of added tokens by spelling."""
        self.strips_right = frozenset(key for key, token in added.items() if token.rstrip)
        """Ids of tokens that absorb the white space after them."""
        plain = {
            key: token
            for key, token in sorted(added.items())
            if not token.special and token.content not in _RESERVED
        }
        self._plain_tokens = list(plain.values())
        barred = self.special.keys() - {token.content for token in plain.values()}
        self._model = _model_without(backend, barred)
        self._steps = _pipeline(backend)
        start, after_token, after_text = (
            _pipeline_at(self._steps, position)
            for position in ("first", "after token", "after text")
        )
        self._spaces_first = start != after_text
        self.spaces_first_only = start != after_token
        """Whether it puts a space before the first text, and none before a text that a special token precedes."""
        self._token_to_id = backend.token_to_id
        self._variants: dict[str, Tokenizer] = {}
        first = self._variant("first")
        self._ids = {first.token_to_id(token.content): key for key, token in plain.items()}
        newline = self.encode("\n", "after text")
        self.newline = newline[0] if len(newline) == 1 else None
        """Id of the token that is one line end, if there is one."""

    def encode(self, text: str, position: TextPosition) -> list[int]:
        """Return the ids of a text segment; none of them is a special token's id."""
        return self.encode_with_starts(text, position)[0]

    def encode_with_starts(self, text: str, position: TextPosition) -> tuple[list[int], list[int]]:
        """Return the ids of a text segment, and the position in the text at which each token starts."""
        alone = position in ("alone", "alone, stripped")
        added = int(alone and self._spaces_first)
        variant = self._variant("after text" if alone else position)
        encoding = variant.encode(" " * added + text, add_special_tokens=False)
        ids = [self._ids.get(token, token) for token in encoding.ids] if self._ids else encoding.ids
        starts = [max(start - added, 0) for start, _ in encoding.offsets]
        if position == "alone, stripped" and self.spaces_first_only:
            piece = encoding.tokens[0].removeprefix(LOW_LINE)
            bare = self._token_to_id(piece) if piece else None
            first = [ids[0] if bare is None else bare] if piece else []
            return [*first, *ids[1:]], starts[1 - len(first) :]
        return ids, starts

    def _variant(self, position: TextPosition) -> Tokenizer:
        """Return the tokenizer for a position, built on first use: the same vocabulary without special tokens."""
        if position not in self._variants:
            steps = {
                "version": "1.0",
                "added_tokens": [],
                "model": _EMPTY,
                **_pipeline_at(self._steps, position),
            }
            variant = Tokenizer.from_str(json.dumps(steps))
            variant.model = self._model
            variant.add_tokens(self._plain_tokens)
            self._variants[position] = variant
        return self._variants[position]


_CACHE: WeakKeyDictionary[PreTrainedTokenizerFast, tuple[int, ContextTokenizer]] = (
    WeakKeyDictionary()
)
"""Context tokenizer of each tokenizer in use, and the size that the tokenizer had then."""


def context_tokenizer(tokenizer: PreTrainedTokenizerFast) -> ContextTokenizer:
    """Return the context tokenizer of a tokenizer, cached until tokens are added to it."""
    size = len(tokenizer)
    cached = _CACHE.get(tokenizer)
    if cached is None or cached[0] != size:
        cached = _CACHE[tokenizer] = (size, ContextTokenizer(tokenizer))
    return cached[1]


def start_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids that the tokenizer itself puts before a text: its start token, or nothing."""
    ids = tokenizer("").input_ids
    return [token for token in ids if token == tokenizer.bos_token_id][:1]


def _pipeline(backend: Tokenizer) -> dict[str, Any]:
    """Return the normalizer and pre-tokenizer as JSON."""
    shell = Tokenizer(models.BPE())
    shell.normalizer, shell.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    content = json.loads(shell.to_str())
    return {step: content[step] for step in ("normalizer", "pre_tokenizer")}


def _model_without(backend: Tokenizer, barred: Collection[str]) -> models.Model:
    """Return the tokenizer's model, or a changed copy if the model makes a barred token out of plain text."""
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
        # Texts of a Unigram model hold no spaces, so a piece that holds one is never used.
        inner["vocab"] = [
            (f" {piece}" if piece in barred else piece, score) for piece, score in inner["vocab"]
        ]
    return Tokenizer.from_str(json.dumps(content)).model


def _joined(pair: str | Iterable[str]) -> str:
    """Return the token that a merge makes; old files write the pair as one string."""
    return "".join(pair.split(" ") if isinstance(pair, str) else pair)


def _pipeline_at(steps: dict[str, Any], position: TextPosition) -> dict[str, Any]:
    """Return the steps before the model for a text at a position."""
    return {name: step and _step_at(step, position) for name, step in steps.items()}


def _step_at(step: dict[str, Any], position: TextPosition) -> dict[str, Any] | None:
    """Return a step that adds a space before a text only where the tokenizer would at this position."""
    within = position == "after text"
    match step["type"]:
        case "Sequence":
            [key] = step.keys() - {"type"}
            inner_steps = [_step_at(inner, position) for inner in step[key]]
            return {**step, key: [inner for inner in inner_steps if inner is not None]}
        case "Prepend" if within:
            return None
        case "Split" if within and step["pattern"].get("Regex", "").startswith(r"\A"):
            return None
        case "Metaspace" if within or (position != "first" and step["prepend_scheme"] == "first"):
            return {**step, "prepend_scheme": "never"}
        case "ByteLevel" if within:
            return {**step, "add_prefix_space": False}
    return step
