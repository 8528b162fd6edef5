"""Log likelihood of given answers to a question; nothing is generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from caldera.batches.image_sources import ImageSource
from caldera.conversation import Conversation
from caldera.errors import UsageError
from caldera.inference.prompts import FilePrompt, PromptBuilder
from caldera.model.bundle import LlavaBundle


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    """Log likelihood of one answer."""

    sum: float
    """Log probability, summed over the answer's tokens, in nats; never positive."""

    num_tokens: int

    greedy: bool
    """True if each token is the most likely one at its position."""

    @property
    def per_token(self) -> float:
        """Mean over the tokens, so that long answers are not at a disadvantage."""
        return self.sum / self.num_tokens


@dataclass(frozen=True, slots=True)
class ScoredContinuation:
    """A prompt that is followed by an answer."""

    prompt: FilePrompt
    """Its ids end with the answer's."""

    num_tokens: int
    """Number of the answer's tokens, without the end token."""


class LikelihoodScorer:
    """Scores answers by their likelihood under one assistant."""

    def __init__(self, assistant: LlavaBundle, images: ImageSource) -> None:
        """Use an assistant with the pixels or features that `images` gives for a path."""
        self._assistant = assistant
        self._images = images
        self._builder = PromptBuilder(assistant)

    def prompt(
        self, conversation: Conversation, answer: str, folder: Path = Path()
    ) -> ScoredContinuation:
        """Build the prompt of a conversation that ends with the user, followed by an answer.

        Raises:
            ImageError: The size of an image decides its tiles, but cannot be read.
            ConversationError: The answer is empty.
            UsageError: Both together exceed the model's context.
        """
        prompt, num_tokens = self._builder.with_answer(conversation, answer, folder)
        context_length = self._assistant.model.context_length
        if context_length is not None and len(prompt.ids) > context_length:
            raise UsageError(
                f"question and answer are {len(prompt.ids)} tokens long, but the model has room for {context_length}"
            )
        return ScoredContinuation(prompt, num_tokens)

    @torch.inference_mode()
    def score(self, continuations: Sequence[ScoredContinuation]) -> list[LogLikelihood]:
        """Return the log likelihood of each answer; all are computed in one batch."""
        model, prompts = self._assistant.model, [scored.prompt for scored in continuations]
        device = model.projector.layers[0].weight.device
        ids, mask = _pad_left(prompts, self._assistant.tokenizer.pad_token_id)
        ids, mask = ids.to(device), mask.to(device)  # (rows, tokens)
        layouts = [layout for prompt in prompts for layout in prompt.layouts]
        images = self._images([path for prompt in prompts for path in prompt.images], layouts)
        longest = max(scored.num_tokens for scored in continuations)
        logits = model.language(
            inputs_embeds=model.embed(ids, images.to(device), layouts),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=longest + 1,
        ).logits.float()  # (rows, longest + 1, vocabulary)
        # the logits at a position predict the next token
        logprobs = logits[:, :-1].log_softmax(dim=-1)  # (rows, longest, vocabulary)
        targets = ids[:, -longest:]  # (rows, longest)
        target_logprobs = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (rows, longest)
        most_likely = logprobs.argmax(dim=-1) == targets  # (rows, longest)
        return [
            LogLikelihood(
                float(row[longest - scored.num_tokens :].sum()),
                scored.num_tokens,
                greedy=bool(best[longest - scored.num_tokens :].all()),
            )
            for row, best, scored in zip(target_logprobs, most_likely, continuations, strict=True)
        ]


def _pad_left(prompts: Sequence[FilePrompt], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (rows, tokens), padded on the left."""
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_token_id)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, width - len(prompt.ids) :] = 1
    return ids, mask
