"""Conversations that wait for an answer in, answers out: prefill once, then a token at a time from the cache.

Prompts of a batch are padded on the left, with a mask and positions that start at each prompt's own first token, so a
batch of n gives what n single runs give.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from caldera.batches.anyres import Layout
from caldera.batches.inspection import stretches
from caldera.batches.labels import encode
from caldera.batches.picture_sources import PictureSource
from caldera.batches.templates import find_template
from caldera.conversation import IMAGE_MARK, Conversation
from caldera.errors import UsageError
from caldera.inference.sampling import Sampling, choose
from caldera.model.folder import Assistant, end_ids


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the model takes it, opened for the assistant's answer."""

    ids: tuple[int, ...]
    pictures: tuple[Path, ...]
    layouts: tuple[Layout, ...]
    """How each picture is shown."""


class Generator:
    """Answers with one assistant."""

    def __init__(self, assistant: Assistant, pictures: PictureSource) -> None:
        """Answer with `assistant`, which sees what `pictures` gives for a path."""
        self._assistant = assistant
        self._pictures = pictures
        self._template = find_template(assistant.card.template)
        self._stops = set(end_ids(assistant))
        self._never = _unused_ids(assistant, self._stops)

    def prompt(self, conversation: Conversation, folder: Path = Path()) -> Prompt:
        """Render a conversation that ends with the user; its picture paths start from `folder`.

        Raises:
            PictureError: The size of a picture counts, but cannot be read.
        """
        assistant = self._assistant
        encoded = encode(self._template.render(conversation), assistant.tokenizer)
        paths = tuple(folder / path for path in encoded.picture_paths)
        layouts = assistant.layouts(paths)
        counts = assistant.image_tokens(layouts)
        encoded = encoded.with_image_tokens(counts, assistant.model.image_token_id)
        return Prompt(encoded.ids, paths, layouts)

    def written(self, conversation: Conversation) -> str:
        """Spell a prompt as the model gets it, with `<image>` where a picture stands."""
        tokenizer = self._assistant.tokenizer
        encoded = encode(self._template.render(conversation), tokenizer)
        pieces = stretches(encoded, tokenizer, [1] * len(encoded.picture_paths))
        return "".join(IMAGE_MARK if piece.look == "picture" else piece.text for piece in pieces)

    @torch.inference_mode()
    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Yield the answer piece by piece; a piece never ends inside a character.

        Raises:
            UsageError: Prompt and answer do not fit the model's context.
        """
        ids: list[int] = []
        told = ""
        for tokens in self._tokens([prompt], sampling):
            [token] = tokens
            if token is None:
                break
            ids.append(token)
            text = self._text(ids)
            if self._stopped(text):
                break
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                sure = text[: len(text) - self._begun_stop(text)]
                yield sure[len(told) :]
                told = sure
        rest = self._cut(self._text(ids))[len(told) :]
        if rest.strip():
            yield rest

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[str]:
        """Answer all prompts together.

        Raises:
            UsageError: A prompt and its answer do not fit the model's context.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        for tokens in self._tokens(prompts, sampling):
            for ids, token in zip(answers, tokens, strict=True):
                if token is not None:
                    ids.append(token)
            if self._template.stop and all(
                token is None or self._stopped(self._text(ids))
                for ids, token in zip(answers, tokens, strict=True)
            ):
                break
        return [self._cut(self._text(ids)).strip() for ids in answers]

    @torch.inference_mode()
    def answer_ids(self, prompt: Prompt, sampling: Sampling) -> list[int]:
        """Answer one prompt with token ids, up to the end mark and without it.

        Raises:
            UsageError: Prompt and answer do not fit the model's context.
        """
        return [token for [token] in self._tokens([prompt], sampling) if token is not None]

    def _tokens(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[int | None]]:
        """Yield the next token of each prompt, None for those that have ended, until all have."""
        self.check_fit(prompts, sampling)
        model = self._assistant.model
        device = model.projector.layers[0].weight.device
        generator = torch.Generator(device=device).manual_seed(sampling.seed)
        ids, mask = left_padded(prompts, self._assistant.tokenizer.pad_token_id)
        ids, mask = ids.to(device), mask.to(device)
        pictures = self._pictures([path for prompt in prompts for path in prompt.pictures])
        layouts = [layout for prompt in prompts for layout in prompt.layouts]
        embedded = model.embed(ids, pictures.to(device), layouts)  # (rows, tokens, width)
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
            logits[:, self._never] = -torch.inf
            chosen = choose(logits, sampling, generator)  # (rows,)
            ended = [
                over or token in self._stops
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

    def check_fit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Refuse what the model has no room for.

        Raises:
            UsageError: Prompt and answer together are longer than the model's context.
        """
        room = self._assistant.model.context_length
        if room is None:
            return
        for prompt in prompts:
            if len(prompt.ids) + sampling.max_new_tokens > room:
                raise UsageError(
                    f"the conversation is {len(prompt.ids)} tokens long and asks for up to {sampling.max_new_tokens} "
                    f"more, but the model has room for {room}; start anew or ask for fewer"
                )

    def _text(self, ids: list[int]) -> str:
        """Spell an answer, from its first word on."""
        return str(self._assistant.tokenizer.decode(ids, skip_special_tokens=True)).lstrip()

    def _stopped(self, text: str) -> bool:
        return self._template.stop is not None and self._template.stop in text

    def _begun_stop(self, text: str) -> int:
        """Count the characters at the end of a text that the template's stop may begin with."""
        stop = self._template.stop or ""
        return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)

    def _cut(self, text: str) -> str:
        """Cut a text at the template's stop."""
        return text if self._template.stop is None else text.split(self._template.stop)[0]


def _unused_ids(assistant: Assistant, stops: set[int]) -> list[int]:
    """List ids that no answer may hold: pictures, padding, and rows that no token has."""
    tokenizer = assistant.tokenizer
    rows = len(assistant.model.word_table)
    special = {assistant.model.image_token_id, tokenizer.pad_token_id} - stops
    return [*special, *range(len(tokenizer), rows)]


def left_padded(prompts: Sequence[Prompt], padding_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (rows, tokens), padded on the left."""
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), padding_id)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, width - len(prompt.ids) :] = 1
    return ids, mask
