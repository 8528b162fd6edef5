"""A question and answers that could be given in, how likely the model finds each out: nothing is generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from caldera.batches.image_sources import ImageSource
from caldera.conversation import Conversation
from caldera.errors import UsageError
from caldera.inference.batch_generator import left_padded
from caldera.inference.prompts import FilePrompt, PromptBuilder
from caldera.model.assistant import LlavaBundle


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    """How likely one answer is."""

    sum: float
    """Logarithm of its probability, summed over its tokens, in nats; never positive."""

    tokens: int

    greedy: bool
    """Whether each of its tokens is the likeliest at its place."""

    @property
    def per_token(self) -> float:
        """The same divided by the number of tokens, so that long answers are not at a disadvantage."""
        return self.sum / self.tokens


@dataclass(frozen=True, slots=True)
class ScoredContinuation:
    """A prompt with an answer behind it."""

    prompt: FilePrompt
    """Its ids end with the answer's."""

    tokens: int
    """Of the answer, without the mark that would end it."""


class LikelihoodScorer:
    """Weighs answers by one assistant."""

    def __init__(self, assistant: LlavaBundle, images: ImageSource) -> None:
        """Weigh by `assistant`, which sees what `images` gives for a path."""
        self._assistant = assistant
        self._images = images
        self._prompter = PromptBuilder(assistant)

    def prompt(
        self, conversation: Conversation, answer: str, folder: Path = Path()
    ) -> ScoredContinuation:
        """Render a conversation that ends with the user, and an answer behind it.

        Raises:
            ImageError: The size of an image counts, but cannot be read.
            RecordError: The answer is empty.
            UsageError: Both together do not fit the model's context.
        """
        prompt, tokens = self._prompter.with_answer(conversation, answer, folder)
        room = self._assistant.model.context_length
        if room is not None and len(prompt.ids) > room:
            raise UsageError(
                f"question and answer are {len(prompt.ids)} tokens long, but the model has room for {room}"
            )
        return ScoredContinuation(prompt, tokens)

    @torch.inference_mode()
    def score(self, answered: Sequence[ScoredContinuation]) -> list[LogLikelihood]:
        """Return how likely each answer is behind its prompt, all of them together."""
        model, prompts = self._assistant.model, [each.prompt for each in answered]
        device = model.projector.layers[0].weight.device
        ids, mask = left_padded(prompts, self._assistant.tokenizer.pad_token_id)
        ids, mask = ids.to(device), mask.to(device)  # (rows, tokens)
        images = self._images([path for prompt in prompts for path in prompt.images])
        layouts = [layout for prompt in prompts for layout in prompt.layouts]
        longest = max(each.tokens for each in answered)
        logits = model.language(
            inputs_embeds=model.embed(ids, images.to(device), layouts),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=longest + 1,
        ).logits.float()  # (rows, longest + 1, vocabulary)
        chances = logits[:, :-1].log_softmax(dim=-1)  # each token's, from the position before it
        wanted = ids[:, -longest:]  # (rows, longest)
        each_token = chances.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)  # (rows, longest)
        likeliest = chances.argmax(dim=-1) == wanted  # (rows, longest)
        return [
            LogLikelihood(
                float(row[longest - one.tokens :].sum()),
                one.tokens,
                greedy=bool(best[longest - one.tokens :].all()),
            )
            for row, best, one in zip(each_token, likeliest, answered, strict=True)
        ]
