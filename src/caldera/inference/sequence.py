"""State of one running request: sampled tokens, emitted text, and how the answer ended."""

from collections.abc import Sequence

import torch
from torch import Tensor

from caldera.errors import EngineError
from caldera.inference.detokenizer import IncrementalDetokenizer, TokenIds
from caldera.inference.prompts import Prompt
from caldera.inference.requests import AnswerStream, FinishReason, TextDelta, TokenLogprob, Usage
from caldera.inference.sampling import sample_tokens


class SequenceState:
    """One request in its slot."""

    def __init__(
        self, stream: AnswerStream, slot: int, token_ids: TokenIds, stops: Sequence[str]
    ) -> None:
        """Start a request; `stops` are the template's own."""
        self.stream = stream
        self.slot = slot
        self.num_cached_tokens = 0
        """Prompt tokens whose keys and values came from the prefix cache."""
        self.num_computed_tokens = 0
        """Tokens of prompt and answer that the model has processed."""
        self.outcome: FinishReason | EngineError | None = None
        """How it ended; None while it runs."""
        self._token_ids = token_ids
        self._sampling = stream.request.sampling
        template_stops = () if self._sampling.ignore_template_stop else stops
        self._text = IncrementalDetokenizer(
            token_ids.tokenizer, (*template_stops, *self._sampling.stop)
        )
        self._generator: torch.Generator | None = None
        self._answer: list[int] = []
        self._pending: list[tuple[int, int, TokenLogprob | None]] = []
        """Tokens that were not emitted yet: id, index of their first character, log probability."""

    @property
    def prompt(self) -> Prompt:
        """The request's prompt."""
        return self.stream.request.prompt

    @property
    def is_prefilling(self) -> bool:
        """True until the model has processed the prompt."""
        return self.num_computed_tokens < len(self.prompt.ids)

    @property
    def greedy(self) -> bool:
        """True if the most likely token is taken."""
        return self._sampling.temperature == 0

    @property
    def last_token(self) -> int:
        """Newest token of the answer, which the model has not processed."""
        return self._answer[-1]

    @property
    def consumed(self) -> Prompt:
        """Tokens of prompt and answer that the model has processed."""
        num_images = sum(start < self.num_computed_tokens for start in self.prompt.starts)
        return Prompt(
            (*self.prompt.ids, *self._answer)[: self.num_computed_tokens],
            self.prompt.images[:num_images],
            self.prompt.starts[:num_images],
        )

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(len(self.prompt.ids), self.num_cached_tokens, len(self._answer))

    def sample(self, logits: Tensor) -> int:
        """Sample the next token with the request's own settings and seed; logits (vocabulary,)."""
        if self._generator is None:
            self._generator = torch.Generator(logits.device).manual_seed(self._sampling.seed)
        return int(sample_tokens(logits.unsqueeze(0), self._sampling, self._generator))

    def append(self, token: int, logits: Tensor) -> None:
        """Append a token that was chosen by `logits`, (vocabulary,), and emit the text that is final."""
        start = self._text.length
        self._answer.append(token)
        if token in self._token_ids.eos:
            self._finish("stop")
            return
        logprob = self._token_logprob(token, logits) if self._sampling.logprobs else None
        self._pending.append((token, start, logprob))
        text = self._text.append(token)
        if self._text.stopped:
            self._emit(text, last=True)
            self.outcome = "stop"
        elif len(self._answer) >= self._sampling.max_new_tokens:
            self._emit(text, last=False)
            self._finish("length")
        elif text:
            self._emit(text, last=False)

    def finish_stream(self) -> None:
        """End the stream with the outcome."""
        assert self.outcome is not None
        self.stream.finish(self.outcome, self.usage)

    def _finish(self, reason: FinishReason) -> None:
        """Emit the text that was held back, and end."""
        self._emit(self._text.finish(), last=True)
        self.outcome = reason

    def _emit(self, text: str, *, last: bool) -> None:
        """Push a text with the tokens that begin in it or in text emitted before."""
        emitted = [
            (token, logprob)
            for token, start, logprob in self._pending
            if start < self._text.num_emitted or (last and not self._text.stopped)
        ]
        self._pending = self._pending[len(emitted) :]
        if text or emitted:
            tokens = tuple(token for token, _ in emitted)
            logprobs = tuple(logprob for _, logprob in emitted if logprob is not None)
            self.stream.push(TextDelta(text, tokens, logprobs), self.usage)

    def _token_logprob(self, token: int, logits: Tensor) -> TokenLogprob:
        """Return the log probability of a token and of its alternatives."""
        logprobs = logits.float().log_softmax(dim=-1)  # (vocabulary,)
        decode = self._token_ids.decode
        values, ids = logprobs.topk(self._sampling.top_logprobs)
        top = tuple(
            (candidate, decode(candidate), value)
            for candidate, value in zip(ids.tolist(), values.tolist(), strict=True)
        )
        return TokenLogprob(token, decode(token), float(logprobs[token]), top)


def nan_error() -> EngineError:
    """Return the error of a request whose logits are NaN."""
    return EngineError(
        "the model produced NaN logits for this request; try --dtype float32 or another prompt"
    )
