"""Conversations that wait for an answer in, answers out, in bulk: prefill once, then a token at a time from the cache.

Prompts of a batch are padded on the left, with a mask and positions that start at each prompt's own first token, so a
batch of n gives what n single runs give. The whole batch begins and ends together, which suits a benchmark's questions
of like length; people are answered by the engine.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from caldera.batches.image_sources import ImageSource
from caldera.conversation import Conversation
from caldera.inference.detokenizer import IncrementalDetokenizer, TokenIds
from caldera.inference.prompts import FilePrompt, PromptBuilder, check_context_length
from caldera.inference.sampling import SamplingParams, sample_tokens
from caldera.model.assistant import LlavaBundle


class BatchGenerator:
    """Answers with one assistant."""

    def __init__(self, assistant: LlavaBundle, images: ImageSource) -> None:
        """Answer with `assistant`, which sees what `images` gives for a path."""
        self._assistant = assistant
        self._images = images
        self._prompter = PromptBuilder(assistant)
        self._vocabulary = TokenIds(assistant)

    def prompt(self, conversation: Conversation, folder: Path = Path()) -> FilePrompt:
        """Render a conversation that ends with the user; its image paths start from `folder`.

        Raises:
            ImageError: The size of an image counts, but cannot be read.
        """
        return self._prompter.from_files(conversation, folder)

    def prompt_text(self, conversation: Conversation) -> str:
        """Spell a prompt as the model gets it, with `<image>` where an image stands."""
        return self._prompter.as_text(conversation)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[FilePrompt], sampling: SamplingParams) -> list[str]:
        """Answer all prompts together.

        Raises:
            UsageError: A prompt and its answer do not fit the model's context.
        """
        stops = (*self._prompter.stops, *sampling.stop)
        texts = [IncrementalDetokenizer(self._vocabulary.tokenizer, stops) for _ in prompts]
        answers = [""] * len(prompts)
        for tokens in self._generate_tokens(prompts, sampling):
            writing = False
            for row, (text, token) in enumerate(zip(texts, tokens, strict=True)):
                if token is not None and not text.stopped:
                    answers[row] += text.append(token)
                    writing = writing or not text.stopped
            if not writing:
                break
        return [(told + text.finish()).strip() for told, text in zip(answers, texts, strict=True)]

    @torch.inference_mode()
    def generate_ids(self, prompt: FilePrompt, sampling: SamplingParams) -> list[int]:
        """Answer one prompt with token ids, up to the end mark and without it.

        Raises:
            UsageError: Prompt and answer do not fit the model's context.
        """
        return [token for [token] in self._generate_tokens([prompt], sampling) if token is not None]

    def _generate_tokens(
        self, prompts: Sequence[FilePrompt], sampling: SamplingParams
    ) -> Iterator[list[int | None]]:
        """Yield the next token of each prompt, None for those that have ended, until all have."""
        self.check_fit(prompts, sampling)
        model = self._assistant.model
        device = model.projector.layers[0].weight.device
        generator = torch.Generator(device=device).manual_seed(sampling.seed)
        ids, mask = left_padded(prompts, self._assistant.tokenizer.pad_token_id)
        ids, mask = ids.to(device), mask.to(device)
        images = self._images([path for prompt in prompts for path in prompt.images])
        layouts = [layout for prompt in prompts for layout in prompt.layouts]
        embedded = model.embed(ids, images.to(device), layouts)  # (rows, tokens, width)
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)  # (rows, tokens)
        cache = DynamicCache(config=model.language.config)
        ended = [False] * len(prompts)
        for _ in range(sampling.max_new_tokens):
            logits = model.language(
                inputs_embeds=embedded,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]  # (rows, vocabulary)
            logits[:, self._vocabulary.banned] = -torch.inf
            chosen = sample_tokens(logits, sampling, generator)  # (rows,)
            ended = [
                over or token in self._vocabulary.eos
                for over, token in zip(ended, chosen.tolist(), strict=True)
            ]
            if all(ended):
                return
            yield [
                None if over else token for over, token in zip(ended, chosen.tolist(), strict=True)
            ]
            embedded = model.language.get_input_embeddings()(chosen.unsqueeze(1))
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=-1)
            positions = positions[:, -1:] + 1

    def check_fit(self, prompts: Sequence[FilePrompt], sampling: SamplingParams) -> None:
        """Refuse what the model has no room for.

        Raises:
            UsageError: Prompt and answer together are longer than the model's context.
        """
        for prompt in prompts:
            check_context_length(prompt.ids, sampling, self._assistant.model.context_length)


def left_padded(prompts: Sequence[FilePrompt], padding_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (rows, tokens), padded on the left."""
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), padding_id)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, width - len(prompt.ids) :] = 1
    return ids, mask
