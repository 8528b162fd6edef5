"""One request while it runs: logits in, tokens chosen and pieces told out, until the answer ends."""

from collections.abc import Sequence

import torch
from torch import Tensor

from caldera.errors import EngineError
from caldera.inference.answer_text import AnswerText
from caldera.inference.prompts import Prompt
from caldera.inference.requests import Answering, FinishReason, Piece, TokenChance, Usage
from caldera.inference.sampling import choose
from caldera.inference.vocabulary import Vocabulary


class Running:
    """One request in its slot."""

    def __init__(
        self, answering: Answering, slot: int, vocabulary: Vocabulary, stops: Sequence[str]
    ) -> None:
        """Begin; `stops` are the template's own."""
        self.answering = answering
        self.slot = slot
        self.cached = 0
        """Tokens of the prompt that were kept from an earlier one."""
        self.filled = 0
        """Tokens that the model has read, prompt and answer."""
        self.outcome: FinishReason | EngineError | None = None
        """How it ended."""
        self._vocabulary = vocabulary
        self._sampling = answering.request.sampling
        self._text = AnswerText(vocabulary.tokenizer, (*stops, *self._sampling.stop))
        self._generator: torch.Generator | None = None
        self._answer: list[int] = []
        self._told: list[tuple[int, int, TokenChance | None]] = []
        """Tokens that were not told yet: id, place of their text's first character, chance."""

    @property
    def prompt(self) -> Prompt:
        """What is answered."""
        return self.answering.request.prompt

    @property
    def reading(self) -> bool:
        """Whether the model has not read the whole prompt yet."""
        return self.filled < len(self.prompt.ids)

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self._sampling.temperature == 0

    @property
    def last(self) -> int:
        """The newest token of the answer, which the model has not read."""
        return self._answer[-1]

    @property
    def read(self) -> Prompt:
        """All that the model has read, prompt and answer."""
        shown = sum(start < self.filled for start in self.prompt.starts)
        return Prompt(
            (*self.prompt.ids, *self._answer)[: self.filled],
            self.prompt.pictures[:shown],
            self.prompt.starts[:shown],
        )

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(len(self.prompt.ids), self.cached, len(self._answer))

    def draw(self, logits: Tensor) -> int:
        """Choose the next token by the request's own settings and seed; logits (vocabulary,)."""
        if self._generator is None:
            self._generator = torch.Generator(logits.device).manual_seed(self._sampling.seed)
        return int(choose(logits.unsqueeze(0), self._sampling, self._generator))

    def take(self, token: int, logits: Tensor) -> None:
        """Go on with a chosen token; `logits`, (vocabulary,), are those it was chosen by."""
        start = self._text.length
        self._answer.append(token)
        if token in self._vocabulary.ends:
            self._finish("stop")
            return
        chance = self._chance(token, logits) if self._sampling.logprobs else None
        self._told.append((token, start, chance))
        sure = self._text.add(token)
        if self._text.stopped:
            self._tell(sure, last=True)
            self.outcome = "stop"
        elif len(self._answer) >= self._sampling.max_new_tokens:
            self._tell(sure, last=False)
            self._finish("length")
        elif sure:
            self._tell(sure, last=False)

    def tell_outcome(self) -> None:
        """Tell the reader how it ended."""
        assert self.outcome is not None
        self.answering.end(self.outcome, self.usage)

    def _finish(self, reason: FinishReason) -> None:
        """Tell what was held back, and end."""
        self._tell(self._text.finish(), last=True)
        self.outcome = reason

    def _tell(self, text: str, *, last: bool) -> None:
        """Give the reader a text, with the tokens that it begins or whose text was given before."""
        told = [
            one
            for one in self._told
            if one[1] < self._text.told or (last and not self._text.stopped)
        ]
        self._told = self._told[len(told) :]
        if text or told:
            chances = tuple(chance for _, _, chance in told if chance is not None)
            piece = Piece(text, tuple(token for token, _, _ in told), chances)
            self.answering.tell(piece, self.usage)

    def _chance(self, token: int, logits: Tensor) -> TokenChance:
        """Say how likely a token was."""
        chances = logits.float().log_softmax(dim=-1)  # (vocabulary,)
        spell = self._vocabulary.spell
        values, ids = chances.topk(self._sampling.top_logprobs)
        top = tuple(
            (one, spell(one), value)
            for one, value in zip(ids.tolist(), values.tolist(), strict=True)
        )
        return TokenChance(token, spell(token), float(chances[token]), top)


def not_a_number() -> EngineError:
    """Say that a model computes no numbers for one answer."""
    return EngineError(
        "the model's numbers for this answer are not numbers (NaN); ask otherwise, or in float32 if this is a smaller "
        "precision"
    )
