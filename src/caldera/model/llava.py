"""Embed, splice, hidden states, loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from caldera.batches.packing import Batch
from caldera.errors import ModelFormatError
from caldera.images.anyres import NEWLINE_INDEX, TileLayout, count_tokens, image_token_order
from caldera.model.batch_layout import BatchLayout, choose_batch_layout, run_language_model
from caldera.model.chunked_loss import chunked_cross_entropy
from caldera.model.fast_norms import replace_norms
from caldera.model.projector import Projector
from caldera.model.vision_tower import VisionTower


def order_image_tokens(
    patches: Tensor, layouts: Sequence[TileLayout], newline: Tensor | None
) -> Tensor:
    """Return the image tokens of all images, (image tokens, width), in the order the language model reads them.

    Args:
        patches: Projected features of all views in order, (views, patches, width).
        layouts: How the views of each image lie.
        newline: Ends each row of tiles, (width,); None for models that show no tiles.

    Raises:
        ValueError: The images do not have as many views as arrived, or tiles, but the model has no newline.
    """
    views = sum(layout.views for layout in layouts)
    if views != len(patches):
        raise ValueError(f"the images have {views} views but {len(patches)} arrived")
    flat = patches.flatten(0, 1)  # (views * patches, width)
    if all(layout.views == 1 for layout in layouts):
        return flat
    if newline is None:
        raise ValueError("images arrived in tiles, but the model has no newline for their rows")
    per_view = patches.shape[1]
    orders, start = [], 0
    for layout in layouts:
        order = _order(layout, per_view)
        orders.append(torch.where(order == NEWLINE_INDEX, len(flat), order + start))
        start += layout.views * per_view
    chosen = torch.cat(orders).to(flat.device)  # (image tokens,)
    return torch.cat([flat, newline.to(flat.dtype).unsqueeze(0)])[chosen]


def _order(layout: TileLayout, per_view: int) -> Tensor:
    """Return which of an image's patches stand where, (image tokens,)."""
    if layout.views == 1:
        return torch.arange(per_view)
    return image_token_order(layout, round(per_view**0.5))


def insert_image_tokens(embeddings: Tensor, image_tokens: Tensor, is_image: Tensor) -> Tensor:
    """Return `embeddings` with the rows under `is_image` replaced by `image_tokens`, in order.

    Args:
        embeddings: Token embeddings, (rows, tokens, width).
        image_tokens: Of all images, (image tokens, width).
        is_image: True where a token stands for a patch, (rows, tokens).

    Raises:
        ValueError: The slots do not hold exactly the tokens of the images.
    """
    marked, arrived = int(is_image.sum()), len(image_tokens)
    if marked != arrived:
        raise ValueError(f"{marked} tokens are marked as image but {arrived} image tokens arrived")
    if arrived == 0:
        return embeddings + image_tokens.sum()  # adds nothing, but keeps the projector in the graph
    flat = image_tokens.to(embeddings.dtype)  # (image tokens, width)
    return embeddings.masked_scatter(is_image.unsqueeze(-1), flat)  # (rows, tokens, width)


_PIXEL_AXES = 4

_RECOMPUTE = partial(checkpoint, use_reentrant=False)
"""How transformers' layers keep their inputs only."""

LOGIT_TRANSFORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logits_scaling": lambda logits, by: logits / by,
    "logit_scale": lambda logits, by: logits * by,
    "final_logit_softcapping": lambda logits, cap: cap * torch.tanh(logits / cap),
}
"""What language models do to logits after the head, by the setting of their config: Granite divides, Cohere multiplies,
Gemma 2 caps. `check_logits` refuses a model that does something else."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss that can be added up over batches before it is divided."""

    total: Tensor
    """Cross entropy summed over the learned tokens, in nats; a scalar."""

    num_tokens: int
    """Learned tokens it was summed over."""

    @property
    def mean(self) -> float:
        """Nats per learned token; 0 where nothing was learned."""
        return float(self.total.detach()) / max(1, self.num_tokens)


def logit_settings(config: PretrainedConfig) -> dict[str, float]:
    """Return what a language model does to its logits: the settings of BEHIND_THE_HEAD that its config gives."""
    settings = config.to_dict()
    return {name: settings[name] for name in LOGIT_TRANSFORMS if settings.get(name) is not None}


def compute_logits(language: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the logits, (..., vocabulary), of last hidden states, (..., width), as the model itself makes them."""
    logits = language.get_output_embeddings()(hidden).float()
    for setting, by in logit_settings(language.config).items():
        logits = LOGIT_TRANSFORMS[setting](logits, by)
    return logits


@torch.no_grad()
def check_logits_match(language: PreTrainedModel) -> None:
    """Compare `logits_of` with what a model in evaluation mode itself says about two tokens.

    Raises:
        ModelFolderError: They differ, so a loss would be another than the model's own.
    """
    ids = torch.tensor([[0, 1]], device=language.device)  # (rows, tokens)
    hidden = language.base_model(input_ids=ids, use_cache=False).last_hidden_state
    own = language(input_ids=ids, use_cache=False).logits.float()  # (rows, tokens, vocabulary)
    if not torch.allclose(compute_logits(language, hidden), own, rtol=1e-3, atol=1e-3):
        raise ModelFormatError(
            f"language models of type {language.config.model_type!r} change their logits in a way that caldera does "
            "not know; choose another one, or add the setting to BEHIND_THE_HEAD in model/llava.py"
        )


class Llava(nn.Module):
    """Vision tower, projector and language model, joined as LLaVA joins them."""

    def __init__(
        self,
        vision: VisionTower,
        projector: Projector,
        language: PreTrainedModel,
        image_token_id: int,
    ) -> None:
        """Join the parts; `image_token_id` is the id that stands for image tokens in a batch."""
        super().__init__()
        self.vision = vision
        self.projector = projector
        self.language = language
        self.image_token_id = image_token_id
        self.arrangement: BatchLayout = "padded"
        """How rows of a batch reach the language model; `arrange` chooses."""

    def choose_batch_layout(self, attention: str) -> None:
        """Make the language model ready to learn fast: the fastest arrangement that it takes, and norms that cost less.

        Args:
            attention: transformers' name of the attention function for padded rows.
        """
        self.arrangement = choose_batch_layout(self.language, attention)
        replace_norms(self.language)

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Have the towers' layers keep their inputs only and compute the rest again in backward, or not."""
        for module in self.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.gradient_checkpointing = on
                module._gradient_checkpointing_func = _RECOMPUTE  # type: ignore[assignment] # a function

    def train(self, mode: bool = True) -> Self:
        """Set the mode of training; a part whose weights are all frozen stays in evaluation, without dropout."""
        super().train(mode)
        for part in self.children():
            part.train(mode and any(each.requires_grad for each in part.parameters()))
        for module in self.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = (
                    mode  # a frozen layer is recomputed, too; its parts stay in evaluation
                )
        return self

    @property
    def embedding_weight(self) -> Tensor:
        """The language model's embeddings, (vocabulary, width)."""
        return self.language.get_input_embeddings().weight  # type: ignore[return-value] # a Parameter

    @property
    def context_length(self) -> int | None:
        """Tokens that the language model has positions for; None where its config states no limit, as BLOOM's."""
        # a default, against the house's rule: configs share no type that says which of them have the setting
        length = getattr(self.language.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    def count_tokens(self, layout: TileLayout) -> int:
        """Return how many tokens an image becomes that is shown in this way."""
        return (
            self.vision.tokens_per_view
            if layout.views == 1
            else count_tokens(layout, self.vision.patches_per_side)
        )

    def patch_features(self, images: Tensor) -> Tensor:
        """Return (views, patches, vision width) from pixels, or pass on features that were kept."""
        return self.vision(images) if images.ndim == _PIXEL_AXES else images

    def embed(self, ids: Tensor, images: Tensor, layouts: Sequence[TileLayout]) -> Tensor:
        """Return the language model's input, (rows, tokens, width), or (tokens, width) of one axis of tokens.

        Args:
            ids: Token ids, (rows, tokens) or (tokens,), with the image token's id under each image.
            images: Pixels or features of all views of all images in order, (views, ...).
            layouts: How the views of each image lie, in order.

        Raises:
            ValueError: Image tokens and images disagree in number.
        """
        is_image = ids == self.image_token_id  # (rows, tokens)
        words = self.language.get_input_embeddings()(ids)  # (rows, tokens, width)
        dtype = self.projector.layers[0].weight.dtype
        if len(images) == 0:
            features = words.new_zeros(0, 1, self.vision.width, dtype=dtype)
        else:
            features = self.patch_features(images).to(dtype)  # (views, patches, vision width)
        projected = self.projector(features)  # (views, patches, width)
        return insert_image_tokens(
            words, order_image_tokens(projected, layouts, self.projector.image_newline), is_image
        )

    def hidden_states(self, batch: Batch) -> Tensor:
        """Return the language model's last hidden states, (tokens, width)."""
        embedded = self.embed(batch.input_ids, batch.images, batch.layouts)
        return run_language_model(
            self.language, embedded, batch.positions, batch.rows, self.arrangement
        )

    def loss(self, batch: Batch) -> Loss:
        """Return the cross entropy of the learned tokens; logits exist only where a label is.

        Each token is predicted from the hidden state before it, and image tokens are never predicted.
        """
        before = self.hidden_states(batch)[batch.target_positions]  # (learned, width)
        head = self.language.get_output_embeddings()
        total = chunked_cross_entropy(
            lambda hidden: compute_logits(self.language, hidden),
            before,
            batch.target_ids,
            vocabulary=len(head.weight),
            head=[*head.parameters()],
        )
        return Loss(total, batch.num_learned)
