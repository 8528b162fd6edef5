"""Attention to image patches.

Places are shares of the image: 0 is its left or upper edge, 1 its right or lower one. What was shown beyond the
image, as the ground around a padded one, lies below 0 or above 1.

The weights are those of the language model's own attention, averaged over layers and heads. They say from where the
model read, not why it said something: attention is not an explanation.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast

from caldera.errors import UsageError
from caldera.images.anyres import (
    NEWLINE_INDEX,
    Size,
    TileLayout,
    choose_pinpoint,
    fit_within,
    image_token_order,
)
from caldera.images.processor import ImageProcessor
from caldera.inference.prompts import Prompt
from caldera.model.assistant import LlavaBundle
from caldera.model.vision_tower import VisionTower

Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of the image."""

_WHOLE: Rectangle = (0.0, 0.0, 1.0, 1.0)


def token_boxes(
    size: Size, layout: TileLayout, processor: ImageProcessor, tower: VisionTower
) -> Tensor:
    """Return the place of each image token, (image tokens, 4): left, top, right, bottom as shares of the image.

    Tokens that stand for no place, as those which end a row of tiles, have a box of all zeros.
    """
    views = view_boxes(size, layout, processor)
    patches = torch.cat(
        [_patches(view, tower.patches_per_side) for view in views]
    )  # (views * patches, 4)
    nowhere = torch.zeros(1, 4)
    if layout.views == 1:
        return torch.cat([nowhere.expand(tower.tokens_per_view - tower.patches, 4), patches])
    order = image_token_order(layout, tower.patches_per_side)  # (image tokens,)
    return torch.cat([patches, nowhere])[torch.where(order == NEWLINE_INDEX, len(patches), order)]


def view_boxes(size: Size, layout: TileLayout, processor: ImageProcessor) -> list[Rectangle]:
    """Return which part of an image each view shows: the base view, then the tiles, row by row."""
    match processor.aspect:
        case "square":
            return [_square(size, processor)]
        case "pad":
            return [_padded(size, processor)]
        case "anyres":
            return [_WHOLE, *_tiles(size, layout, processor)]


def rasterize(weights: Tensor, boxes: Tensor, grid: Size) -> Tensor:
    """Spread weights of image tokens over an image, each evenly over its box; what lies beyond the edge is left out.

    Args:
        weights: Of image tokens, (rows, image tokens).
        boxes: Their places, (image tokens, 4).
        grid: Columns and rows of the result.

    Returns:
        Weight in each cell, (rows, grid rows, grid columns).
    """
    across = _overlap(boxes[:, 0], boxes[:, 2], grid[0])  # (image tokens, grid columns)
    down = _overlap(boxes[:, 1], boxes[:, 3], grid[1])  # (image tokens, grid rows)
    return torch.einsum("wt,td,ta->wda", weights, down, across)


def _overlap(begin: Tensor, end: Tensor, cells: int) -> Tensor:
    """Return the share of each stretch that lies in each of `cells` equal parts of 0 to 1, (stretches, cells)."""
    edges = torch.arange(cells + 1) / cells  # (cells + 1,)
    inside = torch.minimum(end[:, None], edges[1:]) - torch.maximum(begin[:, None], edges[:-1])
    return inside.clamp(min=0) / (end - begin).clamp(min=1e-12)[:, None]


def _patches(view: Rectangle, cells: int) -> Tensor:
    """Cut a view into its patches, row by row, (patches, 4)."""
    left, top, right, bottom = view
    steps = torch.arange(cells) / cells
    across, down = left + steps * (right - left), top + steps * (bottom - top)
    width, height = (right - left) / cells, (bottom - top) / cells
    tops, lefts = torch.meshgrid(down, across, indexing="ij")
    boxes = torch.stack([lefts, tops, lefts + width, tops + height], dim=-1)
    return boxes.flatten(0, 1)


def _square(size: Size, processor: ImageProcessor) -> Rectangle:
    """Return the central square, or everything if the processor squashes."""
    if processor.resize_without_crop:
        return _WHOLE
    width, height = size
    edge = (
        processor.side if processor.resize_shortest_edge is None else processor.resize_shortest_edge
    )
    length = edge * max(size) // min(size)
    resized = (edge, length) if width <= height else (length, edge)
    left, top = ((long - processor.side) // 2 for long in resized)
    return _normalize_box((left, top), (processor.side, processor.side), resized)


def _padded(size: Size, processor: ImageProcessor) -> Rectangle:
    """Return the square around an image."""
    longest = max(size)
    seen = _square((longest, longest), processor)
    offsets = [(longest - length) // 2 for length in size]
    left, right = ((share * longest - offsets[0]) / size[0] for share in (seen[0], seen[2]))
    top, bottom = ((share * longest - offsets[1]) / size[1] for share in (seen[1], seen[3]))
    return left, top, right, bottom


def _tiles(size: Size, layout: TileLayout, processor: ImageProcessor) -> list[Rectangle]:
    """Return the tiles of the canvas on which an image lies in the middle."""
    canvas = choose_pinpoint(size, processor.pinpoints)
    small = fit_within(size, canvas)
    left, top = ((long - short) // 2 for long, short in zip(canvas, small, strict=True))
    side = processor.side
    return [
        _normalize_box((column * side - left, row * side - top), (side, side), small)
        for row in range(layout.rows)
        for column in range(layout.columns)
    ]


def _normalize_box(corner: Size, extent: Size, whole: Size) -> Rectangle:
    """Return a rectangle in pixels as shares of a whole."""
    (left, top), (width, height), (across, down) = corner, extent, whole
    return left / across, top / down, (left + width) / across, (top + height) / down


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
