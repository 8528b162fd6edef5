"""Incremental detokenizer for streamed answers, and the special token ids of a model.

Emitted text is final: incomplete UTF-8, partial stop texts and trailing white space are held back until a later token
decides them. So the emitted pieces, joined, are exactly the answer.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from caldera.model.bundle import LlavaBundle, eos_token_ids

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Decoded form of an incomplete UTF-8 sequence."""


class IncrementalDetokenizer:
    """Text of one answer while it is generated."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stops: Sequence[str] = ()) -> None:
        """Start an answer that ends before the first of `stops`."""
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        # Tokens from _context to _decoded are in the text already. They are decoded again with the new ones, because
        # some tokenizers write a token's leading space only after another token.
        self._context, self._decoded = 0, 0
        self._text = ""
        self._num_emitted = 0
        self.stopped = False
        """True once a stop text was generated."""

    @property
    def length(self) -> int:
        """Number of characters so far, final or not."""
        return len(self._text)

    @property
    def num_emitted(self) -> int:
        """Number of characters that were emitted."""
        return self._num_emitted

    def append(self, token: int) -> str:
        """Add the next token; return the text that has become final."""
        self._ids.append(token)
        new_text = self._decode_new()
        return "" if new_text.endswith(REPLACEMENT) else self._emit(new_text, last=False)

    def finish(self) -> str:
        """End the answer; return the rest of its text."""
        return "" if self.stopped else self._emit(self._decode_new(), last=True)

    def _decode_new(self) -> str:
        """Decode the tokens that are not in the text yet."""
        context = self._decode(self._ids[self._context : self._decoded])
        return self._decode(self._ids[self._context :])[len(context) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _emit(self, new_text: str, *, last: bool) -> str:
        """Add decoded text and return what has become final."""
        self._context, self._decoded = self._decoded, len(self._ids)
        searched = len(self._text)
        self._text = self._text + new_text if self._text else new_text.lstrip()
        self._apply_stops(searched)
        end = len(self._text)
        if not last and not self.stopped:
            end -= max((_overlap(self._text, stop) for stop in self._stops), default=0)
        final = max(self._num_emitted, len(self._text[:end].rstrip()))
        piece, self._num_emitted = self._text[self._num_emitted : final], final
        return piece

    def _apply_stops(self, searched: int) -> None:
        """Cut the text at the stop that is complete first; the first `searched` characters contain none."""
        start = max(0, searched - max(map(len, self._stops), default=0))
        matches = [
            (position + len(stop), position)
            for stop in self._stops
            if (position := self._text.find(stop, start)) >= 0
        ]
        if matches:
            self._text, self.stopped = self._text[: min(matches)[1]], True


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


class TokenIds:
    """Special token ids of one assistant."""

    def __init__(self, assistant: LlavaBundle) -> None:
        """Read an assistant's tokenizer."""
        self.tokenizer = assistant.tokenizer
        end_ids = eos_token_ids(assistant)
        self.eos = frozenset(end_ids)
        """Ids that end an answer."""
        rows = len(assistant.model.embedding_weight)
        special = {assistant.model.image_token_id, self.tokenizer.pad_token_id} - self.eos
        self.banned = [*special, *range(len(self.tokenizer), rows)]
        """Ids that no answer may contain: the image token, padding, and embedding rows without a token."""

    def decode(self, token: int) -> str:
        """Return the text of one token."""
        return str(self.tokenizer.decode([token]))
