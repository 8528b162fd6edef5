"""Attention over packed rows: a prefix once, and behind it branches that each see the prefix and themselves.

All rows lie behind one another on one axis of tokens, without padding, and are multiplied block by block as
`attention_blocks` cuts them. The function is given to transformers by its AttentionInterface under NAME and works for
every language model that takes its attention from there and hands keyword arguments on to it; `find_arrangement` asks
the model itself.

Scores are plain matrix products, which beat fused attention on CPUs at these lengths. The weights of short rows are
kept for backward, once and in the precision of the products; those of long rows are computed again, so that what a
layer keeps grows with the tokens and not with their square.
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
"""What transformers calls this attention."""

_SAVE_WEIGHTS_LIMIT = 8
"""Weights are kept if a query has no more of them than this many times a head's width, so about as much as the rest of
what a layer keeps; more are computed again."""


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
    **others: Any,  # noqa: ANN401 - whatever else a model hands on
) -> tuple[Tensor, None]:
    """Attend as `packing` says; without one, as torch's own attention does.

    Args:
        module: The layer.
        query: (1, heads, tokens, head width).
        key: (1, key heads, tokens, head width).
        value: As `key`.
        attention_mask: Not used with a packing.
        scaling: Of the scores; one over the root of the head width if None.
        dropout: Must be 0 with a packing.
        packing: The rows.
        sliding_window: Tokens that a query looks back.
        softcap: Must be None with a packing, as `s_aux`.
        s_aux: See `softcap`.
        others: Go on to torch's attention.

    Returns:
        (1, tokens, heads, head width), and no weights.

    Raises:
        ValueError: The model wants what a packing does not have.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    if dropout or softcap is not None or s_aux is not None:
        raise ValueError("packed attention has no dropout, softcap or sinks")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = torch.get_autocast_dtype(query.device.type)
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    tables = (each[0].transpose(0, 1) for each in (query, key, value))  # (tokens, heads, width)
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
        packing: AttentionPlan,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Return (tokens, heads, head width) of query, which is the same, and key and value of (key) heads."""
        matrices = _BlockTensors(packing, query, key, window)
        queries, keys = matrices.gather_queries(query) * scale, matrices.gather_keys(key)
        values = matrices.gather_keys(value)
        out = matrices.empty_queries()
        kept = []
        for at in range(len(packing.buckets)):
            weights = matrices.weights(at, queries, keys)
            torch.bmm(weights, matrices.key_block(at, values), out=matrices.query_block(at, out))
            if packing.mean_keys_per_query <= _SAVE_WEIGHTS_LIMIT * query.shape[-1]:
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.packing, ctx.scale, ctx.window = packing, scale, window
        return matrices.scatter_queries(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        """Take the weights of each bucket, or compute them again, and from them the gradients."""
        query, key, value, *kept = ctx.saved_tensors
        matrices = _BlockTensors(ctx.packing, query, key, ctx.window)
        queries, keys = matrices.gather_queries(query) * ctx.scale, matrices.gather_keys(key)
        values, incoming = matrices.gather_keys(value), matrices.gather_queries(gradient)
        by_query, by_key, by_value = (
            matrices.empty_queries(), matrices.empty_keys(), matrices.empty_keys()
        )  # fmt: skip
        for at in range(len(ctx.packing.buckets)):
            weights = kept[at] if kept else matrices.weights(at, queries, keys)
            part = matrices.query_block(
                at, incoming
            )  # (blocks * key heads, group * queries, width)
            torch.bmm(weights.transpose(1, 2), part, out=matrices.key_block(at, by_value))
            by_weights = torch.bmm(part, matrices.key_block(at, values).transpose(1, 2))
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            torch.bmm(
                by_scores, matrices.key_block(at, keys), out=matrices.query_block(at, by_query)
            )
            scaled = matrices.query_block(at, queries)
            torch.bmm(by_scores.transpose(1, 2), scaled, out=matrices.key_block(at, by_key))
        return (
            matrices.scatter_queries(by_query) * ctx.scale,
            matrices.sum_keys(by_key),
            matrices.sum_keys(by_value),
            None,
            None,
            None,
        )


class _BlockTensors:
    """Moves rows between the tables of a layer and the matrices of its buckets."""

    def __init__(
        self, packing: AttentionPlan, query: Tensor, key: Tensor, window: int | None
    ) -> None:
        """Measure the tables: query (tokens, heads, width), key (tokens, key heads, width)."""
        self._heads, self._key_heads, self._width = query.shape[1], key.shape[1], query.shape[2]
        self._places = packing.places(self._heads, self._key_heads)
        self._masks = packing.masks(window, query.dtype)
        self._like = query

    def gather_queries(self, table: Tensor) -> Tensor:
        """Return the rows of all buckets' queries, (gathered queries, width)."""
        return table.reshape(-1, self._width).index_select(0, self._places.queries)

    def gather_keys(self, table: Tensor) -> Tensor:
        """Return the rows of all buckets' keys or values, (gathered keys, width)."""
        return table.reshape(-1, self._width).index_select(0, self._places.keys)

    def empty_queries(self) -> Tensor:
        """Return room for rows of queries, with a row of zeros behind them."""
        return self._empty(len(self._places.queries))

    def empty_keys(self) -> Tensor:
        """Return room for rows of keys, with a row of zeros behind them."""
        return self._empty(len(self._places.keys))

    def _empty(self, rows: int) -> Tensor:
        made = self._like.new_empty(rows + 1, self._width)
        made[-1] = 0
        return made

    def query_block(self, at: int, rows: Tensor) -> Tensor:
        """Return the matrices of a bucket's queries, (blocks * key heads, group * queries, width)."""
        return _block(rows, self._places.query_shapes, at)

    def key_block(self, at: int, rows: Tensor) -> Tensor:
        """Return the matrices of a bucket's keys, (blocks * key heads, keys, width)."""
        return _block(rows, self._places.key_shapes, at)

    def weights(self, at: int, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the attention weights of a bucket, (blocks * key heads, group * queries, keys)."""
        scores = torch.bmm(self.query_block(at, queries), self.key_block(at, keys).transpose(1, 2))
        mask = self._masks[at]  # (blocks, 1, queries, keys)
        blocks, _, num_queries, num_keys = mask.shape
        scores.view(blocks, -1, num_queries, num_keys).add_(mask)
        return scores.softmax(dim=-1)

    def scatter_queries(self, rows: Tensor) -> Tensor:
        """Return a table, (tokens, heads, width), of rows of queries."""
        found = rows.index_select(0, self._places.of_query)
        return found.view(-1, self._heads, self._width)

    def sum_keys(self, rows: Tensor) -> Tensor:
        """Return a table, (tokens, key heads, width), of rows of keys, summed over the blocks each was in."""
        places = self._places.of_key
        found = rows.index_select(0, places.flatten()).view(*places.shape, self._width)
        return found.sum(dim=1).view(-1, self._key_heads, self._width)


def _block(rows: Tensor, shapes: Sequence[tuple[int, int]], at: int) -> Tensor:
    """Return the matrices of bucket `at` among rows that lie bucket behind bucket."""
    start = sum(count * size for count, size in shapes[:at])
    count, size = shapes[at]
    return rows[start : start + count * size].view(count, size, -1)
