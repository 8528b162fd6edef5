"""The LLaVA model, from token ids and images to the loss."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from caldera.batches.packing import Batch
from caldera.errors import ModelFormatError
from caldera.images.anyres import (
    NEWLINE_INDEX,
    TileLayout,
    count_tokens,
    image_token_order,
    raster_patches,
)
from caldera.model.batch_layout import BatchLayout, choose_batch_layout, run_language_model
from caldera.model.fast_norms import replace_norms
from caldera.model.projector import Projector
from caldera.model.vision_tower import VisionTower

_PIXEL_AXES = 4

_CHECKPOINT = partial(checkpoint, use_reentrant=False)
"""Gradient checkpointing of one layer."""

MAX_LOGIT_BYTES = 2**28
"""Size of a chunk's logits in fp32, at most."""

LogitsFn = Callable[[Tensor], Tensor]
"""Hidden states, (positions, width), to logits, (positions, vocabulary)."""

LOGIT_TRANSFORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logits_scaling": lambda logits, factor: logits / factor,
    "logit_scale": lambda logits, factor: logits * factor,
    "final_logit_softcapping": lambda logits, cap: cap * torch.tanh(logits / cap),
}
"""Transforms of the logits after the head, by the setting of a language model's config: Granite divides, Cohere
multiplies, Gemma 2 caps. `check_logits_match` rejects models with any other."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Loss of a batch, to be summed over batches before it is divided."""

    total: Tensor
    """Cross entropy summed over the supervised tokens, in nats; a scalar."""

    num_tokens: int
    """Supervised tokens."""

    @property
    def mean(self) -> float:
        """Nats per supervised token; 0 where there is none."""
        return float(self.total.detach()) / max(1, self.num_tokens)


class Llava(nn.Module):
    """Vision tower, projector and language model, joined as in LLaVA."""

    excluded_ids: Tensor
    """Tokens that take no part in the loss, (tokens,)."""

    def __init__(
        self,
        vision: VisionTower,
        projector: Projector,
        language: PreTrainedModel,
        image_token_id: int,
    ) -> None:
        """Join the parts; `image_token_id` is the id of image tokens in a batch."""
        super().__init__()
        self.vision = vision
        self.projector = projector
        self.language = language
        self.image_token_id = image_token_id
        self.batch_layout: BatchLayout = "padded"
        """Form in which rows are passed to the language model; `choose_batch_layout` sets it."""
        self.register_buffer("excluded_ids", torch.empty(0, dtype=torch.long), persistent=False)

    def exclude_from_loss(self, token_ids: Sequence[int]) -> None:
        """Leave tokens that are never supervised out of the softmax of the loss, so that their rows are not trained."""
        self.excluded_ids = torch.tensor(
            token_ids, dtype=torch.long, device=self.excluded_ids.device
        )

    @torch.no_grad()
    def reset_excluded_rows(self) -> None:
        """Set the head's rows of excluded tokens to the mean of the others, if these were trained.

        A shift of all trained rows changes no loss, so they drift, and rows that stay behind would become likely.
        """
        head = self.language.get_output_embeddings()
        if not head.weight.requires_grad:
            return
        for table in head.parameters():
            excluded = table[self.excluded_ids]  # (excluded, width) or, of a bias, (excluded,)
            rest = table.sum(dim=0) - excluded.sum(dim=0)
            table[self.excluded_ids] = rest / (len(table) - len(excluded))

    def forward(self, batch: Batch) -> Loss:
        """Return the cross entropy of the supervised tokens; logits are computed only where one follows.

        Each token is predicted from the hidden state before it, and image tokens are never predicted.
        """
        hidden = self.hidden_states(batch)[batch.target_positions]  # (supervised, width)
        head = self.language.get_output_embeddings()
        total = chunked_cross_entropy(
            self._loss_logits,
            hidden,
            batch.target_ids,
            vocabulary=len(head.weight),
            head=[*head.parameters()],
        )
        return Loss(total, batch.num_supervised_tokens)

    def _loss_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, (positions, vocabulary), of hidden states, (positions, width), for the loss."""
        logits = compute_logits(self.language, hidden)
        if len(self.excluded_ids):
            logits.index_fill_(-1, self.excluded_ids, -torch.inf)
        return logits

    def hidden_states(self, batch: Batch) -> Tensor:
        """Return the language model's last hidden states, (tokens, width)."""
        embedded = self.embed(batch.input_ids, batch.images, batch.layouts)
        return run_language_model(
            self.language, embedded, batch.positions, batch.rows, self.batch_layout
        )

    def embed(self, ids: Tensor, images: Tensor, layouts: Sequence[TileLayout]) -> Tensor:
        """Return the language model's input, (rows, tokens, width), or (tokens, width) for packed tokens.

        Args:
            ids: Token ids, (rows, tokens) or (tokens,), with the image token's id at each image token.
            images: Pixels or features of all views of all images in order, (views, ...).
            layouts: Tile layout of each image, in order.

        Raises:
            ValueError: The numbers of image tokens and images disagree.
        """
        is_image = ids == self.image_token_id  # (rows, tokens)
        words = self.language.get_input_embeddings()(ids)  # (rows, tokens, width)
        dtype = self.projector.layers[0].weight.dtype
        if len(images) == 0:
            features = words.new_zeros(0, 1, self.vision.width, dtype=dtype)
        else:
            features = self.patch_features(images).to(dtype)  # (views, patches, vision width)
        projected = self.projector(features)  # (views, patches, width)
        image_tokens = order_image_tokens(projected, layouts, self.projector.image_newline)
        return insert_image_tokens(words, image_tokens, is_image)

    def patch_features(self, images: Tensor) -> Tensor:
        """Return features, (views, patches, vision width), of pixels; cached features are returned unchanged."""
        return self.vision(images) if images.ndim == _PIXEL_AXES else images

    def count_tokens(self, layout: TileLayout) -> int:
        """Return the number of image tokens of an image with a tile layout."""
        if layout.views == 1:
            return self.vision.tokens_per_view + layout.newline
        return count_tokens(layout, self.vision.patches_per_side)

    @property
    def embedding_weight(self) -> Tensor:
        """The language model's input embeddings, (vocabulary, width)."""
        return self.language.get_input_embeddings().weight  # type: ignore[return-value] # a Parameter

    @property
    def context_length(self) -> int | None:
        """Positions of the language model; None where its config has no limit, as BLOOM's."""
        # `getattr` with a default: configs share no type that has the setting.
        length = getattr(self.language.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    def choose_batch_layout(self, attention: str) -> None:
        """Prepare the language model for training: the fastest batch layout it supports, and faster norms.

        Args:
            attention: transformers' name of the attention function for padded rows.
        """
        self.batch_layout = choose_batch_layout(self.language, attention)
        replace_norms(self.language)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Enable or disable gradient checkpointing of the layers of both towers.

        Convolutional towers have no such layers in transformers; they are checkpointed as a whole.
        """
        for module in self.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.gradient_checkpointing = enabled
                module._gradient_checkpointing_func = _CHECKPOINT  # type: ignore[assignment] # a function
        has_layers = any(isinstance(m, GradientCheckpointingLayer) for m in self.vision.modules())
        self.vision.gradient_checkpointing = enabled and not has_layers

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a part whose weights are all frozen stays in evaluation mode, without dropout."""
        super().train(mode)
        for part in self.children():
            part.train(mode and any(weight.requires_grad for weight in part.parameters()))
        for module in self.language.modules():
            if isinstance(module, GradientCheckpointingLayer):
                # Checkpointing needs training mode, in frozen layers too, since gradients pass through them to the
                # projector; their submodules stay in evaluation mode.
                module.training = mode and (module.training or module.gradient_checkpointing)
        return self


def order_image_tokens(
    patches: Tensor, layouts: Sequence[TileLayout], newline: Tensor | None
) -> Tensor:
    """Return the image tokens of all images, (image tokens, width), in the order of the language model's input.

    Args:
        patches: Projected features of all views in order, (views, patches, width).
        layouts: Tile layout of each image.
        newline: Embedding at the end of each row of tiles, (width,); None for models without tiles.

    Raises:
        ValueError: The number of views differs from the layouts, or a layout has newlines but the model has none.
    """
    num_views = [layout.views for layout in layouts]
    if sum(num_views) != len(patches):
        raise ValueError(f"the images have {sum(num_views)} views but {len(patches)} arrived")
    if all(layout.views == 1 and not layout.newline for layout in layouts):
        return patches.flatten(0, 1)  # (views * patches, width)
    if newline is None:
        raise ValueError("images have tiles, but the model has no newline embedding for them")
    per_view = patches.shape[1]
    side = round(per_view**0.5)
    cells, orders, start = [], [], 0
    for views, layout in zip(patches.split(num_views), layouts, strict=True):
        if layout.views == 1:
            order = torch.tensor([*range(per_view), *[NEWLINE_INDEX] * layout.newline])
        else:
            order = image_token_order(layout, side)
        cells.append(_scale_tiles(views, layout, side))  # (cells, width)
        orders.append(torch.where(order == NEWLINE_INDEX, NEWLINE_INDEX, order + start))
        start += len(cells[-1])
    # The newline is the last row, at index -1.
    table = torch.cat([*cells, newline.to(patches.dtype).unsqueeze(0)])
    return table[torch.cat(orders).to(table.device)]


def _scale_tiles(views: Tensor, layout: TileLayout, patches_per_side: int) -> Tensor:
    """Return an image's patches, (patches, width); where its layout limits tokens, the tiles' raster is scaled down.

    Scaled bilinearly, without antialiasing, as in LLaVA-OneVision.
    """
    flat = views.flatten(0, 1)  # (views * patches, width)
    columns, rows = layout.grid(patches_per_side)
    if layout.views == 1 or (columns, rows) == layout.raster(patches_per_side):
        return flat
    raster = flat[raster_patches(layout, patches_per_side).to(flat.device)]
    scaled = interpolate(
        raster.permute(2, 0, 1).unsqueeze(0),  # (1, width, raster rows, raster columns)
        size=(rows, columns),
        mode="bilinear",
    )
    return torch.cat([views[0], scaled[0].flatten(1).T])


def insert_image_tokens(embeddings: Tensor, image_tokens: Tensor, is_image: Tensor) -> Tensor:
    """Return `embeddings` with the rows under `is_image` replaced by `image_tokens`, in order.

    Args:
        embeddings: Token embeddings, (rows, tokens, width).
        image_tokens: Of all images, (image tokens, width).
        is_image: Whether each token is an image token, (rows, tokens).

    Raises:
        ValueError: The numbers of marked tokens and of image tokens differ.
    """
    marked, arrived = int(is_image.sum()), len(image_tokens)
    if marked != arrived:
        raise ValueError(f"{marked} tokens are marked as image but {arrived} image tokens arrived")
    if arrived == 0:
        # Adds zero, but keeps the projector in the graph.
        return embeddings + image_tokens.sum()
    flat = image_tokens.to(embeddings.dtype)  # (image tokens, width)
    return embeddings.masked_scatter(is_image.unsqueeze(-1), flat)  # (rows, tokens, width)


def logit_settings(config: PretrainedConfig) -> dict[str, float]:
    """Return a language model's transforms of its logits: the settings of LOGIT_TRANSFORMS in its config."""
    settings = config.to_dict()
    return {name: settings[name] for name in LOGIT_TRANSFORMS if settings.get(name) is not None}


def compute_logits(language: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the logits, (..., vocabulary), of last hidden states, (..., width), as the model itself computes them."""
    logits = language.get_output_embeddings()(hidden).float()
    for setting, value in logit_settings(language.config).items():
        logits = LOGIT_TRANSFORMS[setting](logits, value)
    return logits


@torch.no_grad()
def check_logits_match(language: PreTrainedModel) -> None:
    """Compare `compute_logits` with the logits of a model in evaluation mode for two tokens.

    Raises:
        ModelFormatError: They differ, so the loss would not be the model's own.
    """
    ids = torch.tensor([[0, 1]], device=language.device)  # (rows, tokens)
    hidden = language.base_model(input_ids=ids, use_cache=False).last_hidden_state
    expected = language(input_ids=ids, use_cache=False).logits.float()  # (rows, tokens, vocabulary)
    if not torch.allclose(compute_logits(language, hidden), expected, rtol=1e-3, atol=1e-3):
        raise ModelFormatError(
            f"language models of type {language.config.model_type!r} change their logits in a way that caldera does "
            "not know; choose another one, or add the setting to LOGIT_TRANSFORMS in model/llava.py"
        )


def chunked_cross_entropy(
    to_logits: LogitsFn, hidden: Tensor, targets: Tensor, *, vocabulary: int, head: Sequence[Tensor]
) -> Tensor:
    """Return the cross entropy summed over positions, in nats; a scalar in fp32.

    Logits of 262,144 words take a megabyte per position, twice with their gradient. So the gradient of each chunk of
    positions is computed as soon as its logits are, and the logits are released: the forward pass stores the gradients
    of the hidden states and of the head, which the backward pass only scales. The mathematics is that of one chunk.

    Args:
        to_logits: The model's head, with its transform of the logits.
        hidden: Last hidden states, (positions, width).
        targets: The next token at each position, (positions,).
        vocabulary: Width of the logits.
        head: Weights in `to_logits`; the trainable ones get their gradient.
    """
    trainable = [weight for weight in head if weight.requires_grad]
    size = max(1, MAX_LOGIT_BYTES // (4 * vocabulary))
    if torch.is_grad_enabled() and (hidden.requires_grad or trainable):
        total: Tensor = _ChunkedCrossEntropy.apply(to_logits, size, hidden, targets, *trainable)  # type: ignore[no-untyped-call]
        return total
    total = hidden.new_zeros((), dtype=torch.float32)
    for chunk in _chunks(len(targets), size):
        total = total + cross_entropy(to_logits(hidden[chunk]), targets[chunk], reduction="sum")
    return total


def _chunks(count: int, size: int) -> Iterator[slice]:
    """Yield the slices that cut `count` positions into chunks."""
    for start in range(0, count, size):
        yield slice(start, start + size)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross entropy whose gradients are computed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's, which has no type
        to_logits: LogitsFn,
        size: int,
        hidden: Tensor,
        targets: Tensor,
        *trainable: Tensor,
    ) -> Tensor:
        """Sum the loss, and store the gradients."""
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weights = [torch.zeros_like(weight) for weight in trainable]
        for chunk in _chunks(len(targets), size):
            with torch.enable_grad():
                states = hidden[chunk].detach().requires_grad_()
                loss = cross_entropy(to_logits(states), targets[chunk], reduction="sum")
                chunk_hidden, *chunk_weights = torch.autograd.grad(loss, (states, *trainable))
            total += loss.detach()
            grad_hidden[chunk] = chunk_hidden
            for grad_weight, chunk_weight in zip(grad_weights, chunk_weights, strict=True):
                grad_weight += chunk_weight
        ctx.save_for_backward(grad_hidden, *grad_weights)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        """Scale the stored gradients."""
        grad_hidden, *grad_weights = ctx.saved_tensors
        scaled = (gradient * grad_weight for grad_weight in grad_weights)
        return None, None, gradient.to(grad_hidden.dtype) * grad_hidden, None, *scaled
