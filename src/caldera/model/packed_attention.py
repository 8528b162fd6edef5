"""Attention over packed rows, each a shared prefix and branches that attend to it.

All rows are concatenated without padding and multiplied block by block, as `attention_blocks` splits them. The function
is registered with transformers' AttentionInterface under NAME and works for every language model that gets its
attention there and passes keyword arguments on to it; `choose_batch_layout` tries it.

Scores are plain matrix products, which are faster than fused attention on CPUs at these lengths. The attention weights
of short rows are saved for the backward pass, once and in the dtype of the products; those of long rows are recomputed,
so that the memory of a layer grows linearly with the tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from caldera.model.attention_blocks import AttentionPlan

NAME = "caldera_packed"
"""transformers' name of this attention."""

_SAVE_WEIGHTS_LIMIT = 8
"""Attention weights are saved if a query has at most this many times a head's width of them, so about as much as the
rest of a layer's saved tensors; more are recomputed."""


def packed_attention(  # noqa: PLR0913 - transformers' signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: AttentionPlan | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,  # noqa: ANN401 - other arguments of a model
) -> tuple[Tensor, None]:
    """Compute attention by the plan in `packing`; without one, by torch's own attention.

    Args:
        module: The layer.
        query: (1, heads, tokens, head width).
        key: (1, key heads, tokens, head width).
        value: As `key`.
        attention_mask: Not used with a plan.
        scaling: Of the scores; one over the root of the head width if None.
        dropout: Must be 0 with a plan.
        packing: The attention plan; models pass it on under this name.
        sliding_window: Tokens that a query attends to, itself included.
        softcap: Must be None with a plan, as `s_aux`.
        s_aux: See `softcap`.
        kwargs: Passed to torch's attention.

    Returns:
        (1, tokens, heads, head width), and no weights.

    Raises:
        ValueError: The model uses a feature that packed attention does not support.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if dropout or softcap is not None or s_aux is not None:
        raise ValueError("packed attention has no dropout, softcap or sinks")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = torch.get_autocast_dtype(query.device.type)
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    tables = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (tokens, heads, width)
    out: Tensor = _Attention.apply(*tables, packing, scale, sliding_window)  # type: ignore[no-untyped-call]
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Attention(torch.autograd.Function):
    """Attention bucket by bucket; query heads that share a key head are rows of one matrix."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's, which has no type
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Return (tokens, heads, head width), given a query of this shape, and key and value of the key heads."""
        blocks = _BlockTensors(plan, query, key, window)
        queries, keys = blocks.gather_queries(query) * scale, blocks.gather_keys(key)
        values = blocks.gather_keys(value)
        out = blocks.empty_queries()
        saved = []
        for bucket in range(len(plan.buckets)):
            weights = blocks.weights(bucket, queries, keys)
            value_block = blocks.key_block(bucket, values)
            torch.bmm(weights, value_block, out=blocks.query_block(bucket, out))
            if plan.mean_keys_per_query <= _SAVE_WEIGHTS_LIMIT * query.shape[-1]:
                saved.append(weights)
        ctx.save_for_backward(query, key, value, *saved)
        ctx.plan, ctx.scale, ctx.window = plan, scale, window
        return blocks.scatter_queries(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        """Compute the gradients of each bucket from its saved or recomputed weights."""
        query, key, value, *saved = ctx.saved_tensors
        blocks = _BlockTensors(ctx.plan, query, key, ctx.window)
        queries, keys = blocks.gather_queries(query) * ctx.scale, blocks.gather_keys(key)
        values, grad_out = blocks.gather_keys(value), blocks.gather_queries(gradient)
        grad_query = blocks.empty_queries()
        grad_key, grad_value = blocks.empty_keys(), blocks.empty_keys()
        for bucket in range(len(ctx.plan.buckets)):
            weights = saved[bucket] if saved else blocks.weights(bucket, queries, keys)
            # (blocks * key heads, group * queries, width)
            grad_block = blocks.query_block(bucket, grad_out)
            value_out = blocks.key_block(bucket, grad_value)
            torch.bmm(weights.transpose(1, 2), grad_block, out=value_out)
            value_block = blocks.key_block(bucket, values)
            grad_weights = torch.bmm(grad_block, value_block.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            key_block = blocks.key_block(bucket, keys)
            torch.bmm(grad_scores, key_block, out=blocks.query_block(bucket, grad_query))
            query_block = blocks.query_block(bucket, queries)
            key_out = blocks.key_block(bucket, grad_key)
            torch.bmm(grad_scores.transpose(1, 2), query_block, out=key_out)
        return (
            blocks.scatter_queries(grad_query) * ctx.scale,
            blocks.sum_keys(grad_key),
            blocks.sum_keys(grad_value),
            None,
            None,
            None,
        )


class _BlockTensors:
    """Views of a layer's tables as the matrices of its buckets, and the way back."""

    def __init__(self, plan: AttentionPlan, query: Tensor, key: Tensor, window: int | None) -> None:
        """Take the sizes of the tables: query (tokens, heads, width), key (tokens, key heads, width)."""
        self._heads, self._key_heads, self._width = query.shape[1], key.shape[1], query.shape[2]
        self._index = plan.gather_index(self._heads, self._key_heads)
        self._masks = plan.masks(window, query.dtype)
        self._like = query

    def gather_queries(self, table: Tensor) -> Tensor:
        """Return the rows of all buckets' queries, (gathered queries, width)."""
        return table.reshape(-1, self._width).index_select(0, self._index.queries)

    def gather_keys(self, table: Tensor) -> Tensor:
        """Return the rows of all buckets' keys or values, (gathered keys, width)."""
        return table.reshape(-1, self._width).index_select(0, self._index.keys)

    def empty_queries(self) -> Tensor:
        """Return an uninitialized tensor for rows of queries, followed by a row of zeros."""
        return self._empty(len(self._index.queries))

    def empty_keys(self) -> Tensor:
        """Return an uninitialized tensor for rows of keys, followed by a row of zeros."""
        return self._empty(len(self._index.keys))

    def _empty(self, num_rows: int) -> Tensor:
        """Return an uninitialized tensor of some rows, followed by a row of zeros."""
        rows = self._like.new_empty(num_rows + 1, self._width)
        rows[-1] = 0
        return rows

    def query_block(self, bucket: int, rows: Tensor) -> Tensor:
        """Return the matrices of a bucket's queries, (blocks * key heads, group * queries, width)."""
        return _block(rows, self._index.query_shapes, bucket)

    def key_block(self, bucket: int, rows: Tensor) -> Tensor:
        """Return the matrices of a bucket's keys, (blocks * key heads, keys, width)."""
        return _block(rows, self._index.key_shapes, bucket)

    def weights(self, bucket: int, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the attention weights of a bucket, (blocks * key heads, group * queries, keys)."""
        query_block, key_block = self.query_block(bucket, queries), self.key_block(bucket, keys)
        scores = torch.bmm(query_block, key_block.transpose(1, 2))
        mask = self._masks[bucket]  # (blocks, 1, queries, keys)
        blocks, _, num_queries, num_keys = mask.shape
        scores.view(blocks, -1, num_queries, num_keys).add_(mask)
        return scores.softmax(dim=-1)

    def scatter_queries(self, rows: Tensor) -> Tensor:
        """Return a table, (tokens, heads, width), of rows of queries."""
        table = rows.index_select(0, self._index.of_query)
        return table.view(-1, self._heads, self._width)

    def sum_keys(self, rows: Tensor) -> Tensor:
        """Return a table, (tokens, key heads, width), of rows of keys, summed over the blocks of each key."""
        of_key = self._index.of_key
        table = rows.index_select(0, of_key.flatten()).view(*of_key.shape, self._width)
        return table.sum(dim=1).view(-1, self._key_heads, self._width)


def _block(rows: Tensor, shapes: Sequence[tuple[int, int]], bucket: int) -> Tensor:
    """Return the matrices of one bucket from the rows of all buckets, which are in order."""
    start = sum(count * size for count, size in shapes[:bucket])
    count, size = shapes[bucket]
    return rows[start : start + count * size].view(count, size, -1)
