"""Attention over packed rows: a prefix once, and behind it branches that each see the prefix and themselves.

All rows lie behind one another on one axis of tokens, without padding. `Packing` cuts them into blocks of queries
whose keys are the row's prefix and a stretch right before the queries, so that few scores are computed in vain. The
function is given to transformers by its AttentionInterface under NAME and works for every language model that takes its
attention from there and hands keyword arguments on to it; `find_arrangement` asks the model itself.

Scores are plain matrix products, which beat fused attention on CPUs at these lengths. The weights of short rows are
kept for backward, once and in the precision of the products; those of long rows are computed again, so that what a
layer keeps grows with the tokens and not with their square.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from caldera.batches.collate import Row

NAME = "caldera_packed"
"""What transformers calls this attention."""

_QUERIES = 128
"""Of a block, at most: more of them compute more scores that the mask throws away, fewer make the products small."""

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's question: batch, head, query and key, whether it is seen."""

_KEPT_KEYS = 8
"""Weights are kept if a query has no more of them than this many times a head's width, so about as much as the rest of
what a layer keeps; more are computed again."""

_UNSEEN = -1e30
"""Added to the score of what a query may not see; finite, so that a row of nothing else is no NaN."""


@dataclass(frozen=True, slots=True)
class Block:
    """Queries that are computed together, and the keys they see: a row's prefix and a stretch that ends with them."""

    queries: slice
    prefix: slice
    """Seen whole; empty where the queries are the prefix's own."""

    near: slice
    """Seen as the mask says."""

    @property
    def scores(self) -> int:
        """Products of a query and a key."""
        keys = self.prefix.stop - self.prefix.start + self.near.stop - self.near.start
        return (self.queries.stop - self.queries.start) * keys


class Packing:
    """The blocks of a batch's rows, and which near keys each of their queries sees."""

    def __init__(self, rows: Sequence[Row], positions: Tensor) -> None:
        """Cut `rows` into blocks; `positions`, (tokens,), restart behind each prefix."""
        self.blocks = tuple(block for row in rows for block in _blocks(row))
        scores = sum(block.scores for block in self.blocks)
        self.keys_of_a_query = scores / sum(row.length for row in rows)
        """Keys that the mean query is multiplied with."""
        self._positions = positions
        lengths = torch.tensor([row.length for row in rows])
        self._rows = torch.arange(len(rows)).repeat_interleave(lengths).to(positions.device)
        self._branches = torch.cat([_branches(row) for row in rows]).to(positions.device)
        self._masks: dict[tuple[int | None, torch.dtype], list[Tensor]] = {}

    def masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor]:
        """Return what is added to the scores of each block's near keys, and of its prefix too where a window ends.

        Args:
            window: Tokens that a query looks back, itself included, for models of sliding windows; None is all.
            dtype: Of the scores.

        Returns:
            For each block (queries, near keys), or (queries, prefix and near keys) with a window.
        """
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = [
                self._mask(block, window).to(dtype) for block in self.blocks
            ]
        return self._masks[window, dtype]

    def _mask(self, block: Block, window: int | None) -> Tensor:
        """Return the mask of one block."""
        keys = torch.arange(block.near.start, block.near.stop, device=self._positions.device)
        if window is not None:
            prefix = torch.arange(block.prefix.start, block.prefix.stop, device=keys.device)
            keys = torch.cat([prefix, keys])
        queries = torch.arange(block.queries.start, block.queries.stop, device=keys.device)
        seen = self.sees(queries[:, None], keys[None, :])
        if window is not None:
            seen &= self._positions[queries][:, None] - self._positions[keys][None, :] < window
        return torch.where(seen, 0.0, _UNSEEN)

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self._positions.device

    def sees(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Tell which queries see which keys, by their place on the axis of tokens; both broadcast."""
        together = self._rows[queries] == self._rows[keys]
        own = self._branches[queries] == self._branches[keys]
        prefix = self._branches[keys] == 0
        return together & (own | prefix) & (keys <= queries)

    def mask_rule(self, tokens: int) -> MaskRule:
        """Return `sees` as FlexAttention asks, on an axis of `tokens` whose last ones may lie behind all rows."""
        more = tokens - len(self._rows)
        rows = pad(self._rows, (0, more), value=-1)
        branches = pad(self._branches, (0, more))

        def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            del batch, head  # all alike
            seen = (branches[query] == branches[key]) | (branches[key] == 0)
            return (rows[query] == rows[key]) & seen & (key <= query)

        return rule


def _branches(row: Row) -> Tensor:
    """Return 0 for a row's prefix and 1, 2, ... for its branches, (tokens,)."""
    lengths = torch.tensor([row.prefix, *row.branches])
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def _blocks(row: Row) -> Iterator[Block]:
    """Cut a row into blocks: short branches share one, long ones and the prefix are cut."""
    empty = slice(row.start, row.start)
    for queries in _cut(row.start, row.prefix):
        yield Block(queries, empty, slice(row.start, queries.stop))
    prefix = slice(row.start, row.start + row.prefix)
    begin = end = prefix.stop
    for length in row.branches:
        if end > begin and end + length - begin > _QUERIES:
            yield Block(slice(begin, end), prefix, slice(begin, end))
            begin = end
        end += length
        if length > _QUERIES:
            for queries in _cut(begin, length):
                yield Block(queries, prefix, slice(begin, queries.stop))
            begin = end
    if end > begin:
        yield Block(slice(begin, end), prefix, slice(begin, end))


def _cut(start: int, length: int) -> Iterator[slice]:
    """Cut a stretch into equal pieces of at most _QUERIES."""
    pieces = -(-length // _QUERIES)
    edges = [start + length * at // max(1, pieces) for at in range(pieces + 1)]
    for one, other in itertools.pairwise(edges):
        yield slice(one, other)


def packed_attention(  # noqa: PLR0913 - transformers' signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
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
    out: Tensor = _Attention.apply(query[0], key[0], value[0], packing, scale, sliding_window)  # type: ignore[no-untyped-call]
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Attention(torch.autograd.Function):
    """Attention block by block; query heads that share a key head are rows of one matrix."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's, which has no type
        query: Tensor,
        key: Tensor,
        value: Tensor,
        packing: Packing,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Return (tokens, heads, head width) of query (heads, tokens, head width), key and value (key heads, ...)."""
        heads, tokens, width = query.shape
        out = query.new_zeros(tokens, heads, width)
        by_key_head = out.view(tokens, len(key), heads // len(key), width)
        kept = []
        for block, mask in zip(packing.blocks, packing.masks(window, query.dtype), strict=True):
            weights = _weights(block, mask, query, key, scale)  # (key heads, group * queries, keys)
            seen = torch.bmm(weights, _keys(block, value))  # (key heads, group * queries, width)
            by_key_head[block.queries] = _ungrouped(seen, block).permute(2, 0, 1, 3)
            if packing.keys_of_a_query <= _KEPT_KEYS * width:
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.packing, ctx.scale, ctx.window = packing, scale, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        """Take the weights of each block, or compute them again, and from them the gradients."""
        query, key, value, *kept = ctx.saved_tensors
        packing, scale, window = ctx.packing, ctx.scale, ctx.window
        by_query = torch.zeros_like(query)
        by_key, by_value = torch.zeros_like(key), torch.zeros_like(value)
        incoming = gradient.permute(1, 0, 2)  # (heads, tokens, width)
        masks = packing.masks(window, query.dtype)
        for at, block in enumerate(packing.blocks):
            weights = kept[at] if kept else _weights(block, masks[at], query, key, scale)
            part = _grouped(incoming, block, len(key))  # (key heads, group * queries, width)
            _add(by_value, block, torch.bmm(weights.transpose(1, 2), part))
            by_weights = torch.bmm(part, _keys(block, value).transpose(1, 2))
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            by_scores *= scale
            of_query = torch.bmm(by_scores, _keys(block, key))
            by_query[:, block.queries] = _ungrouped(of_query, block).flatten(0, 1)
            _add(
                by_key,
                block,
                torch.bmm(by_scores.transpose(1, 2), _grouped(query, block, len(key))),
            )
        return by_query, by_key, by_value, None, None, None


def _grouped(query: Tensor, block: Block, key_heads: int) -> Tensor:
    """Return a block's queries, (key heads, group * queries, width), of (heads, tokens, width)."""
    return query[:, block.queries].reshape(key_heads, -1, query.shape[-1])


def _ungrouped(rows: Tensor, block: Block) -> Tensor:
    """Return (key heads, group, queries, width) of (key heads, group * queries, width)."""
    return rows.unflatten(1, (-1, block.queries.stop - block.queries.start))


def _keys(block: Block, keys: Tensor) -> Tensor:
    """Return a block's keys or values, (key heads, prefix + near, width)."""
    if block.prefix.start == block.prefix.stop:
        return keys[:, block.near]
    if block.prefix.stop == block.near.start:
        return keys[:, block.prefix.start : block.near.stop]
    return torch.cat([keys[:, block.prefix], keys[:, block.near]], dim=1)


def _add(gradients: Tensor, block: Block, part: Tensor) -> None:
    """Add the gradients of a block's keys, (key heads, prefix + near, width), to where they belong."""
    prefix = block.prefix.stop - block.prefix.start
    gradients[:, block.prefix] += part[:, :prefix]
    gradients[:, block.near] += part[:, prefix:]


def _weights(block: Block, mask: Tensor, query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return the attention weights of a block, (key heads, group * queries, keys)."""
    scores = torch.bmm(_grouped(query, block, len(key)), _keys(block, key).transpose(1, 2))
    scores *= scale
    masked = _ungrouped(scores, block)[..., -mask.shape[-1] :]
    masked += mask
    return scores.softmax(dim=-1)
