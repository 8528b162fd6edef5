"""Incremental text; special ids.

Sure is what no later token can change: no half characters, nothing that may be the beginning of a stop, no white space
that may stand at the end. So what was told piece by piece is the whole answer, letter for letter.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from caldera.model.assistant import LlavaBundle, eos_token_ids

_HALF = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """One answer's text, as it grows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stops: Sequence[str] = ()) -> None:
        """Begin an answer that ends before the first of `stops`."""
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._context, self._read = 0, 0
        """Tokens from `_context` to `_read` are spelt already; they are decoded again with the new ones, as some
        tokenizers write a token's space only behind another."""
        self._text = ""
        self._told = 0
        self.stopped = False
        """Whether a stop was met."""

    @property
    def length(self) -> int:
        """Characters that are spelt so far, whether they are sure or not."""
        return len(self._text)

    @property
    def num_emitted(self) -> int:
        """Characters that were given out."""
        return self._told

    def append(self, token: int) -> str:
        """Take the next token; return the text that has become sure by it."""
        self._ids.append(token)
        fresh = self._decode_new()
        return "" if fresh.endswith(_HALF) else self._emit(fresh, last=False)

    def finish(self) -> str:
        """End the answer; return the rest of its text."""
        return "" if self.stopped else self._emit(self._decode_new(), last=True)

    def _decode_new(self) -> str:
        """Spell the tokens that are not spelt yet."""
        known = self._decode(self._ids[self._context : self._read])
        return self._decode(self._ids[self._context :])[len(known) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _emit(self, fresh: str, *, last: bool) -> str:
        """Add a spelt text and return what is sure."""
        self._context, self._read = self._read, len(self._ids)
        before = len(self._text)
        self._text = self._text + fresh if self._text else fresh.lstrip()
        self._apply_stops(before)
        end = (
            len(self._text)
            if last or self.stopped
            else len(self._text) - self._partial_stop_length()
        )
        sure = max(self._told, len(self._text[:end].rstrip()))
        piece, self._told = self._text[self._told : sure], sure
        return piece

    def _apply_stops(self, before: int) -> None:
        """Cut the text at the stop that is complete first; none is within its first `before` characters."""
        start = max(0, before - max(map(len, self._stops), default=0))
        met = [
            (at + len(stop), at)
            for stop in self._stops
            if (at := self._text.find(stop, start)) >= 0
        ]
        if met:
            self._text, self.stopped = self._text[: min(met)[1]], True

    def _partial_stop_length(self) -> int:
        """Count the characters at the end of the text that a stop may begin with."""
        return max((_suffix_prefix_overlap(self._text, stop) for stop in self._stops), default=0)


def _suffix_prefix_overlap(text: str, stop: str) -> int:
    """Count the characters at the end of a text that a stop may begin with."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


class TokenIds:
    """What one assistant's token ids mean."""

    def __init__(self, assistant: LlavaBundle) -> None:
        """Read an assistant's tokenizer."""
        self.tokenizer = assistant.tokenizer
        ends = eos_token_ids(assistant)
        self.eos = frozenset(ends)
        """Ids that end an answer."""
        rows = len(assistant.model.embedding_weight)
        special = {assistant.model.image_token_id, self.tokenizer.pad_token_id} - self.eos
        self.banned = [*special, *range(len(self.tokenizer), rows)]
        """Ids that no answer may hold: images, padding, and rows that no token has."""

    def decode(self, token: int) -> str:
        """Spell one token."""
        return str(self.tokenizer.decode([token]))
