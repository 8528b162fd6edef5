"""A prompt with its answer in, how strongly each token of the answer attended to everything before it out.

The weights are those of the language model's own attention, averaged over layers and heads. They say from where the
model read, not why it said something: attention is not an explanation.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast

from caldera.batches.anyres import Size
from caldera.errors import UsageError
from caldera.inference.image_places import rasterize, token_boxes
from caldera.inference.prompts import Prompt
from caldera.model.folder import LlavaBundle


@dataclass(frozen=True, slots=True)
class AnswerWord:
    """A word of an answer."""

    text: str
    """With the space before it; the words together are the answer."""

    first: int
    """Of its tokens, counted from the answer's first."""

    last: int
    """One behind its last token."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageAttention:
    """What an answer attended to in one image."""

    weights: Tensor
    """Of its image tokens, (words, image tokens)."""

    boxes: Tensor
    """Places of its image tokens, (image tokens, 4), as `token_boxes` gives them."""

    @property
    def attention_fraction(self) -> float:
        """Part of all attention that went to the image; the rest went to words, those of the answer among them."""
        return float(self.weights.sum(dim=1).mean())

    def heatmap(self, grid: Size) -> Tensor:
        """Return weights in the cells of a grid of columns and rows over the image, (words, rows, columns)."""
        return rasterize(self.weights, self.boxes, grid)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMaps:
    """What an answer attended to."""

    words: tuple[AnswerWord, ...]
    images: tuple[ImageAttention, ...]


@torch.inference_mode()
def attention_weights(assistant: LlavaBundle, prompt: Prompt, answer_tokens: int) -> Tensor:
    """Return how an answer's tokens attended when they were chosen, (answer tokens, tokens), averaged over all heads.

    A token is chosen at the place of the token before it, so its row is that place's. The rows sum to 1; the last token
    is never attended to.

    Args:
        assistant: Used by nothing else meanwhile.
        prompt: Its ids end with the answer's.
        answer_tokens: How many of them are the answer's, at least 1.

    Raises:
        UsageError: The language model does not give its weights.
    """
    model = assistant.model
    language: Any = model.language
    device = model.embedding_weight.device
    ids = torch.tensor([prompt.ids], device=device)  # (1, tokens)
    side = assistant.processor.side
    pixels = torch.cat([torch.zeros(0, 3, side, side), *(one.pixels for one in prompt.images)])
    layouts = [one.layout for one in prompt.images]
    embedded = model.embed(ids, pixels.to(device), layouts)  # (1, tokens, width)
    first = len(prompt.ids) - answer_tokens - 1
    cache = DynamicCache()
    if first > 0:
        language.base_model(
            inputs_embeds=embedded[:, :first], past_key_values=cache, use_cache=True
        )
    usual = language.config._attn_implementation
    language.set_attn_implementation("eager")  # others do not tell their weights
    try:
        told = language.base_model(
            inputs_embeds=embedded[:, first:-1],
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
        ).attentions
    finally:
        language.set_attn_implementation(usual)
    layers = [
        layer for layer in told or () if layer is not None
    ]  # each (1, heads, answer, tokens - 1)
    if not layers:
        raise UsageError(
            f"language models of type {language.config.model_type!r} do not tell what they attend to"
        )
    summed = torch.zeros(answer_tokens, len(prompt.ids))
    for layer in layers:
        summed[:, : layer.shape[-1]] += layer[0].float().mean(dim=0).cpu()
    return summed / len(layers)


def compute_attention_maps(
    assistant: LlavaBundle, prompt: Prompt, answer_tokens: int
) -> AttentionMaps:
    """Return which image tokens each word of an answer attended to.

    Args:
        assistant: Used by nothing else meanwhile.
        prompt: Its ids end with the answer's.
        answer_tokens: How many of them are the answer's, at least 1.

    Raises:
        UsageError: The language model does not give its weights.
    """
    model = assistant.model
    weights = attention_weights(assistant, prompt, answer_tokens)  # (answer tokens, tokens)
    words = split_words(prompt.ids[-answer_tokens:], assistant.tokenizer)
    counts = assistant.image_tokens([image.layout for image in prompt.images])
    by_word = torch.stack([weights[word.first : word.last].mean(dim=0) for word in words])
    images = [
        ImageAttention(
            by_word[:, start : start + count],  # (words, image tokens)
            token_boxes(one.size, one.layout, assistant.processor, model.vision),
        )
        for one, start, count in zip(prompt.images, prompt.starts, counts, strict=True)
    ]
    return AttentionMaps(tuple(words), tuple(images))


def split_words(ids: tuple[int, ...], tokenizer: PreTrainedTokenizerFast) -> list[AnswerWord]:
    """Cut an answer into words, each of whole tokens: at spaces, and where there are none, at each token."""
    words: list[AnswerWord] = []
    text = ""
    begin = 0  # of the tokens whose text is half a character so far
    for place in range(len(ids)):
        grown = str(tokenizer.decode(list(ids[: place + 1]), skip_special_tokens=True))
        piece = grown[len(text) :]
        if "\N{REPLACEMENT CHARACTER}" in piece and place + 1 < len(ids):
            continue
        joins = piece[:1].isascii() and not piece[:1].isspace()
        if words and joins and words[-1].text[-1:].isascii():
            words[-1] = AnswerWord(words[-1].text + piece, words[-1].first, place + 1)
        else:
            words.append(AnswerWord(piece, begin, place + 1))
        text, begin = grown, place + 1
    return words
