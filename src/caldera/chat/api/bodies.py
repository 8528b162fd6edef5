"""Pieces of answers in, OpenAI's JSON out: whole completions, and the chunks of a stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caldera.chat.api.answers import CompletionStreams
from caldera.inference.engine import TextDelta, TokenLogprob


@dataclass(frozen=True, slots=True)
class ResponseBuilder:
    """What stands at the head of everything that is said of one answer."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    logprobs: bool = False
    """Whether each token's logarithm is told."""
    usage: bool = False
    """Whether a stream ends with its tokens counted."""

    def completion(
        self, answers: CompletionStreams, pieces: Sequence[Sequence[TextDelta]]
    ) -> dict[str, Any]:
        """Return a whole answer, with the pieces of each choice."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": "".join(piece.text for piece in told),
                    "refusal": None,
                },
                "logprobs": self._logprobs(told),
                "finish_reason": answers.choices[index].finish_reason,
            }
            for index, told in enumerate(pieces)
        ]
        return {**self._base("chat.completion"), "choices": choices, "usage": answers.usage}

    def role_chunk(self, index: int) -> dict[str, Any]:
        """Return a choice's first chunk."""
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def text_chunk(self, index: int, piece: TextDelta) -> dict[str, Any]:
        """Return a chunk with some more of a choice."""
        return self._chunk(index, {"content": piece.text}, logprobs=self._logprobs([piece]))

    def finish_chunk(self, index: int, reason: str | None) -> dict[str, Any]:
        """Return a choice's last chunk."""
        return self._chunk(index, {}, reason=reason)

    def usage_chunk(self, usage: dict[str, object]) -> dict[str, Any]:
        """Return the chunk that counts a stream's tokens."""
        return {**self._base("chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._base("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self.usage else chunk

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, pieces: Sequence[TextDelta]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [_token_logprob(chance) for piece in pieces for chance in piece.logprobs]
        return {"content": content, "refusal": None}


def _token_logprob(chance: TokenLogprob) -> dict[str, Any]:
    top = [_token(text, logprob) for _, text, logprob in chance.top_logprobs]
    return {**_token(chance.text, chance.logprob), "top_logprobs": top}


def _token(text: str, logprob: float) -> dict[str, Any]:
    """Return a token; the bytes of half a character are not known from its spelling."""
    known = "\N{REPLACEMENT CHARACTER}" not in text
    return {
        "token": text,
        "logprob": max(logprob, -9999.0),
        "bytes": list(text.encode()) if known else None,
    }
