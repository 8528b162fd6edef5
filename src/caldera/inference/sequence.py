"""One request while it runs: logits in, tokens chosen and pieces told out, until the answer ends."""

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
        self, answering: AnswerStream, slot: int, vocabulary: TokenIds, stops: Sequence[str]
    ) -> None:
        """Begin; `stops` are the template's own."""
        self.answering = answering
        self.slot = slot
        self.num_cached_tokens = 0
        """Tokens of the prompt that were kept from an earlier one."""
        self.num_computed_tokens = 0
        """Tokens that the model has read, prompt and answer."""
        self.outcome: FinishReason | EngineError | None = None
        """How it ended."""
        self._vocabulary = vocabulary
        self._sampling = answering.request.sampling
        self._text = IncrementalDetokenizer(vocabulary.tokenizer, (*stops, *self._sampling.stop))
        self._generator: torch.Generator | None = None
        self._answer: list[int] = []
        self._pending: list[tuple[int, int, TokenLogprob | None]] = []
        """Tokens that were not told yet: id, place of their text's first character, chance."""

    @property
    def prompt(self) -> Prompt:
        """What is answered."""
        return self.answering.request.prompt

    @property
    def is_prefilling(self) -> bool:
        """Whether the model has not read the whole prompt yet."""
        return self.num_computed_tokens < len(self.prompt.ids)

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self._sampling.temperature == 0

    @property
    def last_token(self) -> int:
        """The newest token of the answer, which the model has not read."""
        return self._answer[-1]

    @property
    def consumed(self) -> Prompt:
        """All that the model has read, prompt and answer."""
        shown = sum(start < self.num_computed_tokens for start in self.prompt.starts)
        return Prompt(
            (*self.prompt.ids, *self._answer)[: self.num_computed_tokens],
            self.prompt.images[:shown],
            self.prompt.starts[:shown],
        )

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(len(self.prompt.ids), self.num_cached_tokens, len(self._answer))

    def sample(self, logits: Tensor) -> int:
        """Choose the next token by the request's own settings and seed; logits (vocabulary,)."""
        if self._generator is None:
            self._generator = torch.Generator(logits.device).manual_seed(self._sampling.seed)
        return int(sample_tokens(logits.unsqueeze(0), self._sampling, self._generator))

    def append(self, token: int, logits: Tensor) -> None:
        """Go on with a chosen token; `logits`, (vocabulary,), are those it was chosen by."""
        start = self._text.length
        self._answer.append(token)
        if token in self._vocabulary.eos:
            self._finish("stop")
            return
        chance = self._token_logprob(token, logits) if self._sampling.logprobs else None
        self._pending.append((token, start, chance))
        sure = self._text.append(token)
        if self._text.stopped:
            self._emit(sure, last=True)
            self.outcome = "stop"
        elif len(self._answer) >= self._sampling.max_new_tokens:
            self._emit(sure, last=False)
            self._finish("length")
        elif sure:
            self._emit(sure, last=False)

    def finish_stream(self) -> None:
        """Tell the reader how it ended."""
        assert self.outcome is not None
        self.answering.finish(self.outcome, self.usage)

    def _finish(self, reason: FinishReason) -> None:
        """Tell what was held back, and end."""
        self._emit(self._text.finish(), last=True)
        self.outcome = reason

    def _emit(self, text: str, *, last: bool) -> None:
        """Give the reader a text, with the tokens that it begins or whose text was given before."""
        told = [
            one
            for one in self._pending
            if one[1] < self._text.num_emitted or (last and not self._text.stopped)
        ]
        self._pending = self._pending[len(told) :]
        if text or told:
            chances = tuple(chance for _, _, chance in told if chance is not None)
            piece = TextDelta(text, tuple(token for token, _, _ in told), chances)
            self.answering.push(piece, self.usage)

    def _token_logprob(self, token: int, logits: Tensor) -> TokenLogprob:
        """Say how likely a token was."""
        chances = logits.float().log_softmax(dim=-1)  # (vocabulary,)
        spell = self._vocabulary.decode
        values, ids = chances.topk(self._sampling.top_logprobs)
        top = tuple(
            (one, spell(one), value)
            for one, value in zip(ids.tolist(), values.tolist(), strict=True)
        )
        return TokenLogprob(token, spell(token), float(chances[token]), top)


def nan_error() -> EngineError:
    """Say that a model computes no numbers for one answer."""
    return EngineError(
        "the model's numbers for this answer are not numbers (NaN); ask otherwise, or in float32 if this is a smaller "
        "precision"
    )
