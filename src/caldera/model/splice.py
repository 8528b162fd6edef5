"""Put each image's tokens in their order, and where its slot stands."""

from collections.abc import Sequence

import torch
from torch import Tensor

from caldera.batches.anyres import NEWLINE_INDEX, TileLayout, image_token_order


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
