"""Packed rows (one shared prefix, several branches) split into attention blocks with their masks.

The keys of a block are its row's prefix and a span that ends with its queries, so that few scores are computed only to
be masked. Blocks of similar size form a bucket and are multiplied together; rows are gathered for all buckets at once.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from caldera.batches.packing import PackedRow

_QUERIES = 128
"""Queries of a block, at most: more compute more masked scores, fewer make the matrix products small."""

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's `mask_mod`: batch, head, query and key to whether the query attends to the key."""

_MASKED_SCORE = -1e30
"""Added to the score of a masked key; finite, so that a row with nothing else is not NaN; in fp16, half its range."""


@dataclass(frozen=True, slots=True)
class Block:
    """Queries that are computed together, and their keys: a row's prefix and a span that ends with the queries."""

    queries: range
    prefix: range
    """Keys that all queries attend to; empty where the queries are the prefix itself."""

    local: range
    """Keys under the mask."""

    @property
    def num_keys(self) -> int:
        """Keys of both kinds."""
        return len(self.prefix) + len(self.local)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Blocks padded to the same size and multiplied together."""

    queries: Tensor
    """Token indices, (blocks, queries); padded with the spare token."""

    keys: Tensor
    """Token indices, (blocks, keys); padded with the spare token."""


@dataclass(frozen=True, slots=True)
class GatherIndex:
    """Indices that gather the rows of all buckets' matrices and scatter the results, for a number of heads.

    Queries, keys and values are tables of a row for each token and head; the gathered rows are flat, bucket after
    bucket, with a row of zeros at the end.
    """

    queries: Tensor
    """Row in the table of each gathered query, (gathered queries,)."""

    keys: Tensor
    """Row in the table of each gathered key, (gathered keys,)."""

    of_query: Tensor
    """Gathered row of each row of the table of queries, (tokens * heads,)."""

    of_key: Tensor
    """Gathered rows of each row of the table of keys, as it may be in several blocks, (tokens * key heads, maximum
    number of blocks)."""

    query_shapes: tuple[tuple[int, int], ...]
    """Number of matrices of gathered queries, and rows of each, by bucket."""

    key_shapes: tuple[tuple[int, int], ...]
    """Number of matrices of gathered keys, and rows of each, by bucket."""


class AttentionPlan:
    """Attention blocks of a batch's rows, and their masks."""

    def __init__(self, rows: Sequence[PackedRow], positions: Tensor) -> None:
        """Split rows into blocks.

        Args:
            rows: Rows that cover all tokens except some at the end, at least one, the spare token.
            positions: Position of each token in its own conversation, (tokens,).
        """
        self.blocks = tuple(block for row in rows for block in _blocks(row))
        num_tokens = sum(row.length for row in rows)
        assert num_tokens < len(positions), "the last token is a spare one"
        num_scores = sum(len(block.queries) * block.num_keys for block in self.blocks)
        self.mean_keys_per_query = num_scores / num_tokens
        """Mean number of keys that a query is multiplied with."""
        self._positions = positions
        padding = len(positions) - num_tokens
        lengths = torch.tensor([row.length for row in rows])
        row_of_token = torch.arange(len(rows)).repeat_interleave(lengths)
        branch_of_token = torch.cat([_branches(row) for row in rows])
        # -1 for the padding after all rows.
        self._rows = pad(row_of_token, (0, padding), value=-1).to(positions.device)
        self._branches = pad(branch_of_token, (0, padding), value=-1).to(positions.device)
        self._spare = len(positions) - 1
        self._masks: dict[tuple[int | None, torch.dtype], list[Tensor]] = {}
        self._gather_indices: dict[tuple[int, int], GatherIndex] = {}

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The blocks, grouped by size."""
        return tuple(self._bucket(blocks) for blocks in _group_by_size(self.blocks))

    def _bucket(self, blocks: Sequence[Block]) -> Bucket:
        """Pad blocks to the same size."""
        queries = [[*block.queries] for block in blocks]
        keys = [[*block.prefix, *block.local] for block in blocks]
        return Bucket(self._pad_block(queries), self._pad_block(keys))

    def _pad_block(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return the tokens of blocks, (blocks, tokens), padded with the spare token."""
        width = _rounded(max(len(block) for block in tokens))
        padded = [[*block, *[self._spare] * (width - len(block))] for block in tokens]
        return torch.tensor(padded, device=self._positions.device)

    @property
    def device(self) -> torch.device:
        """Device of the masks."""
        return self._positions.device

    def attends(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return which queries attend to which keys, given by token index; both broadcast."""
        same_row = self._rows[queries] == self._rows[keys]
        same_branch = self._branches[queries] == self._branches[keys]
        in_prefix = self._branches[keys] == 0
        return same_row & (same_branch | in_prefix) & (keys <= queries)

    def mask_rule(self) -> MaskRule:
        """Return `attends` as FlexAttention's `mask_mod`."""

        def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            # The mask is the same for all heads.
            del batch, head
            return self.attends(query, key)

        return rule

    def masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor]:
        """Return the additive mask of each bucket's scores, (blocks, 1, queries, keys).

        Args:
            window: Sliding window in tokens, the query included; None is unlimited.
            dtype: Of the scores.
        """
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = [
                self._mask(bucket, window, dtype).unsqueeze(1) for bucket in self.buckets
            ]
        return self._masks[window, dtype]

    def _mask(self, bucket: Bucket, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the mask of a bucket, (blocks, queries, keys)."""
        queries, keys = bucket.queries.unsqueeze(2), bucket.keys.unsqueeze(1)
        attends = self.attends(queries, keys)
        if window is not None:
            attends &= self._positions[queries] - self._positions[keys] < window
        masked_score = max(_MASKED_SCORE, torch.finfo(dtype).min / 2)
        return torch.where(attends, 0.0, masked_score).to(dtype)

    def gather_index(self, heads: int, key_heads: int) -> GatherIndex:
        """Return the indices for numbers of heads; computed once, as all layers of a model have the same."""
        if (heads, key_heads) not in self._gather_indices:
            self._gather_indices[heads, key_heads] = self._build_gather_index(heads, key_heads)
        return self._gather_indices[heads, key_heads]

    def _build_gather_index(self, heads: int, key_heads: int) -> GatherIndex:
        """Compute the indices for numbers of heads."""
        by_group = torch.arange(heads, device=self.device).view(1, key_heads, -1, 1)
        by_key_head = torch.arange(key_heads, device=self.device).view(1, -1, 1)
        queries = torch.cat(
            [
                (bucket.queries[:, None, None] * heads + by_group).flatten()
                for bucket in self.buckets
            ]
        )
        keys = torch.cat(
            [(bucket.keys[:, None] * key_heads + by_key_head).flatten() for bucket in self.buckets]
        )
        num_tokens = len(self._positions)
        of_query = _inverse_index(queries, num_tokens * heads, self._spare * heads)
        of_key = _inverse_index(keys, num_tokens * key_heads, self._spare * key_heads)
        group = heads // key_heads
        return GatherIndex(
            queries=queries,
            keys=keys,
            of_query=of_query.squeeze(1),
            of_key=of_key,
            query_shapes=tuple(
                (len(bucket.queries) * key_heads, group * bucket.queries.shape[1])
                for bucket in self.buckets
            ),
            key_shapes=tuple(
                (len(bucket.keys) * key_heads, bucket.keys.shape[1]) for bucket in self.buckets
            ),
        )


def _inverse_index(gathered: Tensor, num_rows: int, spare: int) -> Tensor:
    """Return the gathered rows of each table row, (rows, maximum count); padded with the row of zeros at their end.

    Args:
        gathered: Table row of each gathered row.
        num_rows: Rows of the table.
        spare: First table row of the spare token, whose rows are omitted.
    """
    order = gathered.argsort(stable=True)
    sorted_rows = gathered[order]
    order, sorted_rows = order[sorted_rows < spare], sorted_rows[sorted_rows < spare]
    counts = torch.bincount(sorted_rows, minlength=num_rows)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - first[sorted_rows]
    inverse = torch.full((num_rows, int(counts.max())), len(gathered), device=order.device)
    inverse[sorted_rows, rank] = order
    return inverse


def _branches(row: PackedRow) -> Tensor:
    """Return 0 for a row's prefix and 1, 2, ... for its branches, (tokens,)."""
    lengths = torch.tensor([row.prefix, *row.branches])
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def _blocks(row: PackedRow) -> Iterator[Block]:
    """Split a row into blocks: short branches share one, long ones and the prefix are cut."""
    no_keys = range(0)
    for queries in _cut(row.start, row.prefix):
        yield Block(queries, no_keys, range(row.start, queries.stop))
    prefix = range(row.start, row.start + row.prefix)
    start = end = prefix.stop
    for length in row.branches:
        if end > start and end + length - start > _QUERIES:
            yield Block(range(start, end), prefix, range(start, end))
            start = end
        end += length
        if length > _QUERIES:
            for queries in _cut(start, length):
                yield Block(queries, prefix, range(start, queries.stop))
            start = end
    if end > start:
        yield Block(range(start, end), prefix, range(start, end))


def _cut(start: int, length: int) -> Iterator[range]:
    """Cut a span into equal parts of at most _QUERIES."""
    count = -(-length // _QUERIES)
    edges = [start + length * index // max(1, count) for index in range(count + 1)]
    for first, stop in itertools.pairwise(edges):
        yield range(first, stop)


@cache
def _rounded(length: int) -> int:
    """Round up to one of eight sizes between consecutive powers of two, so by at most an eighth."""
    step = max(8, 2 ** (length.bit_length() - 4))
    return -(-length // step) * step


def _group_by_size(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Group the blocks that are rounded to the same size."""
    groups: dict[tuple[int, int], list[Block]] = {}
    for block in blocks:
        size = _rounded(len(block.queries)), _rounded(block.num_keys)
        groups.setdefault(size, []).append(block)
    yield from groups.values()
