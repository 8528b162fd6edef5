"""Attention maps: which image tokens each word of an answer attended to.

Boxes are in fractions of the image: 0 is its left or upper edge, 1 its right or lower one. What a view shows beyond the
image, as the margins of a padded one, is below 0 or above 1.

The weights are those of the language model's attention, averaged over layers and heads. They show from where the model
read, not why it answered as it did: attention is not an explanation.
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
    raster_patches,
)
from caldera.images.processor import ImageProcessor
from caldera.inference.detokenizer import REPLACEMENT
from caldera.inference.features import embed_prompt
from caldera.inference.prompts import Prompt
from caldera.model.bundle import LlavaBundle
from caldera.model.vision_tower import VisionTower

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of the image."""

_FULL_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)


def token_boxes(
    size: Size, layout: TileLayout, processor: ImageProcessor, tower: VisionTower
) -> Tensor:
    """Return the box of each image token, (image tokens, 4).

    Tokens without a box, as those that end a row of tiles, have all zeros.
    """
    views = view_boxes(size, layout, processor)
    patches = torch.cat([_patches(view, tower) for view in views])  # (views * patches, 4)
    no_box = torch.zeros(1, 4)
    if layout.views == 1:
        prefix = no_box.expand(tower.tokens_per_view - tower.patches, 4)
        return torch.cat([prefix, patches, no_box[: layout.newline]])
    order = image_token_order(layout, tower.patches_per_side)  # (image tokens,)
    cells = _scale_boxes(patches, layout, tower.patches_per_side)
    return torch.cat([cells, no_box])[torch.where(order == NEWLINE_INDEX, len(cells), order)]


def view_boxes(size: Size, layout: TileLayout, processor: ImageProcessor) -> list[Box]:
    """Return the part of an image that each view shows: the base view, then the tiles, row by row."""
    match processor.aspect:
        case "square":
            return [_square(size, processor)]
        case "anyres" if layout.views > 1:
            return [_FULL_IMAGE, *_tiles(size, layout, processor)]
        case _:
            return [_padded(size, processor)]


def rasterize(weights: Tensor, boxes: Tensor, grid: Size) -> Tensor:
    """Spread the weight of each image token evenly over its box; what is beyond the edge is dropped.

    Args:
        weights: Weights of image tokens, (words, image tokens).
        boxes: Boxes of the image tokens, (image tokens, 4).
        grid: Columns and rows of the result.

    Returns:
        Weight in each cell, (words, grid rows, grid columns).
    """
    in_column = _overlap(boxes[:, 0], boxes[:, 2], grid[0])  # (image tokens, grid columns)
    in_row = _overlap(boxes[:, 1], boxes[:, 3], grid[1])  # (image tokens, grid rows)
    return torch.einsum("wt,tr,tc->wrc", weights, in_row, in_column)


def _overlap(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """Return the fraction of each interval in each of `cells` equal parts of [0, 1], (intervals, cells)."""
    edges = torch.arange(cells + 1) / cells  # (cells + 1,)
    inside = torch.minimum(end[:, None], edges[1:]) - torch.maximum(start[:, None], edges[:-1])
    return inside.clamp(min=0) / (end - start).clamp(min=1e-12)[:, None]


def _patches(view: Box, tower: VisionTower) -> Tensor:
    """Return the boxes of a view's patches, row by row, (patches, 4); what is left of its side belongs to none."""
    left, top, right, bottom = view
    fraction = tower.patch_size / tower.side
    steps = torch.arange(tower.patches_per_side) * fraction
    width, height = (right - left) * fraction, (bottom - top) * fraction
    tops, lefts = torch.meshgrid(
        top + steps * (bottom - top), left + steps * (right - left), indexing="ij"
    )
    boxes = torch.stack([lefts, tops, lefts + width, tops + height], dim=-1)
    return boxes.flatten(0, 1)


def _scale_boxes(patches: Tensor, layout: TileLayout, patches_per_side: int) -> Tensor:
    """Return the boxes of an image's patches, (patches, 4), with those of its tiles scaled down as its tokens are."""
    columns, rows = layout.grid(patches_per_side)
    if (columns, rows) == layout.raster(patches_per_side):
        return patches
    raster = patches[raster_patches(layout, patches_per_side)]  # (raster rows, raster columns, 4)
    across = _scale_edges(raster[0, :, 0], raster[0, -1, 2], columns)
    down = _scale_edges(raster[:, 0, 1], raster[-1, 0, 3], rows)
    tops, lefts = torch.meshgrid(down[:-1], across[:-1], indexing="ij")
    bottoms, rights = torch.meshgrid(down[1:], across[1:], indexing="ij")
    scaled = torch.stack([lefts, tops, rights, bottoms], dim=-1)  # (rows, columns, 4)
    return torch.cat([patches[: patches_per_side**2], scaled.flatten(0, 1)])


def _scale_edges(starts: Tensor, end: Tensor, cells: int) -> Tensor:
    """Return the edges of fewer cells, (cells + 1,), between the same outer edges."""
    edges = torch.cat([starts, end.unsqueeze(0)])
    positions = torch.arange(cells + 1) * (len(starts) / cells)
    before = positions.long().clamp(max=len(starts) - 1)
    return torch.lerp(edges[before], edges[before + 1], positions - before)


def _square(size: Size, processor: ImageProcessor) -> Box:
    """Return the central square, or the full image if the processor does not crop."""
    if processor.resize_without_crop:
        return _FULL_IMAGE
    width, height = size
    edge = (
        processor.side if processor.resize_shortest_edge is None else processor.resize_shortest_edge
    )
    length = edge * max(size) // min(size)
    resized = (edge, length) if width <= height else (length, edge)
    left, top = ((long - processor.side) // 2 for long in resized)
    return _normalize_box((left, top), (processor.side, processor.side), resized)


def _padded(size: Size, processor: ImageProcessor) -> Box:
    """Return the box of a square around an image."""
    longest = max(size)
    crop = _square((longest, longest), processor)
    offsets = [(longest - length) // 2 for length in size]
    left, right = ((edge * longest - offsets[0]) / size[0] for edge in (crop[0], crop[2]))
    top, bottom = ((edge * longest - offsets[1]) / size[1] for edge in (crop[1], crop[3]))
    return left, top, right, bottom


def _tiles(size: Size, layout: TileLayout, processor: ImageProcessor) -> list[Box]:
    """Return the boxes of the tiles of a canvas, on which the image is centered."""
    canvas = choose_pinpoint(size, processor.pinpoints)
    resized = fit_within(size, canvas)
    left, top = ((long - short) // 2 for long, short in zip(canvas, resized, strict=True))
    side = processor.side
    return [
        _normalize_box((column * side - left, row * side - top), (side, side), resized)
        for row in range(layout.rows)
        for column in range(layout.columns)
    ]


def _normalize_box(corner: Size, extent: Size, image_size: Size) -> Box:
    """Return a box in pixels as fractions of an image."""
    (left, top), (box_width, box_height), (width, height) = corner, extent, image_size
    return left / width, top / height, (left + box_width) / width, (top + box_height) / height


@dataclass(frozen=True, slots=True)
class AnswerWord:
    """A word of an answer with its range of tokens."""

    text: str
    """Text with the preceding space; the words, joined, are the answer."""

    start: int
    """Index of its first token in the answer."""

    stop: int
    """Index after its last token."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageAttention:
    """Attention of an answer to one image."""

    weights: Tensor
    """Weights of its image tokens, (words, image tokens)."""

    boxes: Tensor
    """Boxes of its image tokens, (image tokens, 4), as `token_boxes` returns them."""

    @property
    def attention_fraction(self) -> float:
        """Fraction of the attention that went to the image; the rest went to text."""
        return float(self.weights.sum(dim=1).mean())

    def heatmap(self, grid: Size) -> Tensor:
        """Return the weights in a grid of columns and rows over the image, (words, rows, columns)."""
        return rasterize(self.weights, self.boxes, grid)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMaps:
    """Attention of an answer to all images."""

    words: tuple[AnswerWord, ...]
    images: tuple[ImageAttention, ...]


@torch.inference_mode()
def attention_weights(assistant: LlavaBundle, prompt: Prompt, answer_tokens: int) -> Tensor:
    """Return the attention of an answer's tokens, (answer tokens, tokens), averaged over layers and heads.

    A token is chosen at the position before it, so its row is that position's. Rows sum to 1; nothing attends to the
    last token.

    Args:
        assistant: Used by nothing else meanwhile.
        prompt: Its ids end with the answer's.
        answer_tokens: Number of the answer's tokens, at least 1.

    Raises:
        UsageError: The language model does not return its weights.
    """
    language: Any = assistant.model.language
    embedded = embed_prompt(assistant, prompt)  # (1, tokens, width)
    first = len(prompt.ids) - answer_tokens - 1
    cache = DynamicCache()
    if first > 0:
        language.base_model(
            inputs_embeds=embedded[:, :first], past_key_values=cache, use_cache=True
        )
    original = language.config._attn_implementation
    # other implementations do not return weights
    language.set_attn_implementation("eager")
    try:
        attentions = language.base_model(
            inputs_embeds=embedded[:, first:-1],
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
        ).attentions
    finally:
        language.set_attn_implementation(original)
    # each (1, heads, answer tokens, tokens - 1)
    layers = [layer for layer in attentions or () if layer is not None]
    if not layers:
        raise UsageError(
            f"language models of type {language.config.model_type!r} do not return attention weights"
        )
    summed = torch.zeros(answer_tokens, len(prompt.ids))
    for layer in layers:
        summed[:, : layer.shape[-1]] += layer[0].float().mean(dim=0).cpu()
    return summed / len(layers)


def compute_attention_maps(
    assistant: LlavaBundle, prompt: Prompt, answer_tokens: int
) -> AttentionMaps:
    """Return the attention of each word of an answer; see `attention_weights`."""
    model = assistant.model
    weights = attention_weights(assistant, prompt, answer_tokens)  # (answer tokens, tokens)
    words = split_words(prompt.ids[-answer_tokens:], assistant.tokenizer)
    counts = assistant.image_tokens([image.layout for image in prompt.images])
    by_word = torch.stack([weights[word.start : word.stop].mean(dim=0) for word in words])
    images = [
        ImageAttention(
            by_word[:, start : start + count],  # (words, image tokens)
            token_boxes(image.size, image.layout, assistant.processor, model.vision),
        )
        for image, start, count in zip(prompt.images, prompt.starts, counts, strict=True)
    ]
    return AttentionMaps(tuple(words), tuple(images))


def split_words(ids: tuple[int, ...], tokenizer: PreTrainedTokenizerFast) -> list[AnswerWord]:
    """Split an answer into words of whole tokens: at spaces, and without spaces at each token."""
    words: list[AnswerWord] = []
    text = ""
    start = 0  # first token whose text is not complete UTF-8 yet
    for stop in range(1, len(ids) + 1):
        longer = str(tokenizer.decode(list(ids[:stop]), skip_special_tokens=True))
        piece = longer[len(text) :]
        if REPLACEMENT in piece and stop < len(ids):
            continue
        continues = piece[:1].isascii() and not piece[:1].isspace()
        if words and continues and words[-1].text[-1:].isascii():
            words[-1] = AnswerWord(words[-1].text + piece, words[-1].start, stop)
        else:
            words.append(AnswerWord(piece, start, stop))
        text, start = longer, stop
    return words
