"""Rows of a prefix and branches in, blocks of queries and keys out, with masks, and with where their rows lie.

A block's keys are its row's prefix and a stretch that ends with its queries, so that few scores are computed in vain.
Blocks of like size go into a bucket, to be multiplied together, and rows are gathered for all buckets at once.
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
"""Of a block, at most: more of them compute more scores that the mask throws away, fewer make the products small."""

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's question: batch, head, query and key, whether it is seen."""

_MASKED_SCORE = -1e30
"""Added to the score of what a query may not see; finite, so that a row of nothing else is no NaN."""


@dataclass(frozen=True, slots=True)
class Block:
    """Queries that are computed together, and the keys they see: a row's prefix and a stretch that ends with them."""

    queries: range
    prefix: range
    """Seen whole; empty where the queries are the prefix's own."""

    local: range
    """Seen as the mask says."""

    @property
    def num_keys(self) -> int:
        """Keys of both kinds."""
        return len(self.prefix) + len(self.local)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Blocks that are made the same size and multiplied together."""

    queries: Tensor
    """Tokens, (blocks, queries); filled up with the spare token."""

    keys: Tensor
    """Tokens, (blocks, keys); filled up with the spare token."""


@dataclass(frozen=True, slots=True)
class GatherIndex:
    """Where the rows of all buckets' matrices come from and go to, for a number of heads.

    Queries, keys and values are tables of a row for each token and head; what is gathered is flat, bucket behind
    bucket, with a row of zeros at its end.
    """

    queries: Tensor
    """Row in the table of each gathered query, (gathered queries,)."""

    keys: Tensor
    """The same of each gathered key, (gathered keys,)."""

    of_query: Tensor
    """Where in what was gathered each row of the table of queries is, (tokens * heads,)."""

    of_key: Tensor
    """The same of keys, each of which may be in several blocks, (tokens * key heads, most blocks)."""

    query_shapes: tuple[tuple[int, int], ...]
    """Of each bucket: how many matrices its gathered queries are, and rows of each."""

    key_shapes: tuple[tuple[int, int], ...]
    """The same of keys."""


class AttentionPlan:
    """The blocks of a batch's rows, and which keys each of their queries sees."""

    def __init__(self, rows: Sequence[PackedRow], positions: Tensor) -> None:
        """Cut rows into blocks.

        Args:
            rows: They cover all tokens but some at the end, of which there must be one at least, the spare one.
            positions: Of each token in its own conversation, (tokens,).
        """
        self.blocks = tuple(block for row in rows for block in _blocks(row))
        tokens = sum(row.length for row in rows)
        assert tokens < len(positions), "the last token is a spare one"
        self.mean_keys_per_query = (
            sum(len(each.queries) * each.num_keys for each in self.blocks) / tokens
        )
        """Keys that the mean query is multiplied with."""
        self._positions = positions
        behind = len(positions) - tokens
        lengths = torch.tensor([row.length for row in rows])
        self._rows = _pad_with(
            torch.arange(len(rows)).repeat_interleave(lengths), behind, positions
        )
        self._branches = _pad_with(torch.cat([_branches(row) for row in rows]), behind, positions)
        self._spare = len(positions) - 1
        self._masks: dict[tuple[int | None, torch.dtype], list[Tensor]] = {}
        self._places: dict[tuple[int, int], GatherIndex] = {}

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The blocks, sorted by size."""
        return tuple(self._bucket(blocks) for blocks in _group_by_size(self.blocks))

    def _bucket(self, blocks: Sequence[Block]) -> Bucket:
        """Make blocks the same size."""
        queries = [[*each.queries] for each in blocks]
        keys = [[*each.prefix, *each.local] for each in blocks]
        return Bucket(self._pad_block(queries), self._pad_block(keys))

    def _pad_block(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return the tokens of blocks, (blocks, tokens), a shorter block filled up."""
        width = _rounded(max(len(some) for some in tokens))
        filled = [[*some, *[self._spare] * (width - len(some))] for some in tokens]
        return torch.tensor(filled, device=self._positions.device)

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

    def mask_rule(self) -> MaskRule:
        """Return `sees` as FlexAttention asks."""

        def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            del batch, head  # all alike
            return self.sees(query, key)

        return rule

    def masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor]:
        """Return what is added to the scores of each bucket, (blocks, 1, queries, keys).

        Args:
            window: Tokens that a query looks back, itself included, for models of sliding windows; None is all.
            dtype: Of the scores.
        """
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = [
                self._mask(each, window).to(dtype).unsqueeze(1) for each in self.buckets
            ]
        return self._masks[window, dtype]

    def _mask(self, bucket: Bucket, window: int | None) -> Tensor:
        """Return the mask of a bucket."""
        queries, keys = bucket.queries.unsqueeze(2), bucket.keys.unsqueeze(1)
        seen = self.sees(queries, keys)
        if window is not None:
            seen &= self._positions[queries] - self._positions[keys] < window
        return torch.where(seen, 0.0, _MASKED_SCORE)

    def places(self, heads: int, key_heads: int) -> GatherIndex:
        """Return where rows come from and go to, for so many heads."""
        if (heads, key_heads) not in self._places:
            self._places[heads, key_heads] = self._find_places(heads, key_heads)
        return self._places[heads, key_heads]

    def _find_places(self, heads: int, key_heads: int) -> GatherIndex:
        """Compute them."""
        by_group = torch.arange(heads, device=self.device).view(1, key_heads, -1, 1)
        by_key_head = torch.arange(key_heads, device=self.device).view(1, -1, 1)
        queries = torch.cat(
            [(each.queries[:, None, None] * heads + by_group).flatten() for each in self.buckets]
        )
        keys = torch.cat(
            [(each.keys[:, None] * key_heads + by_key_head).flatten() for each in self.buckets]
        )
        tokens = len(self._positions)
        of_query = _inverse_index(queries, tokens * heads, self._spare * heads)
        of_key = _inverse_index(keys, tokens * key_heads, self._spare * key_heads)
        group = heads // key_heads
        return GatherIndex(
            queries=queries,
            keys=keys,
            of_query=of_query.squeeze(1),
            of_key=of_key,
            query_shapes=tuple(
                (len(each.queries) * key_heads, group * each.queries.shape[1])
                for each in self.buckets
            ),
            key_shapes=tuple(
                (len(each.keys) * key_heads, each.keys.shape[1]) for each in self.buckets
            ),
        )


def _pad_with(values: Tensor, behind: int, like: Tensor) -> Tensor:
    """Return values for each token, -1 for those behind all rows."""
    return pad(values, (0, behind), value=-1).to(like.device)


def _inverse_index(gathered: Tensor, rows: int, spare: int) -> Tensor:
    """Return where in what was gathered each row is found, (rows, most times); the zeros at its end fill up.

    Args:
        gathered: Row of each gathered one.
        rows: In the table.
        spare: Rows from this one on are of the spare token, which is found nowhere.
    """
    order = gathered.argsort(stable=True)
    sorted_rows = gathered[order]
    order, sorted_rows = order[sorted_rows < spare], sorted_rows[sorted_rows < spare]
    counts = torch.bincount(sorted_rows, minlength=rows)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - first[sorted_rows]
    found = torch.full((rows, int(counts.max())), len(gathered), device=order.device)
    found[sorted_rows, rank] = order
    return found


def _branches(row: PackedRow) -> Tensor:
    """Return 0 for a row's prefix and 1, 2, ... for its branches, (tokens,)."""
    lengths = torch.tensor([row.prefix, *row.branches])
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def _blocks(row: PackedRow) -> Iterator[Block]:
    """Cut a row into blocks: short branches share one, long ones and the prefix are cut."""
    nothing = range(0)
    for queries in _cut(row.start, row.prefix):
        yield Block(queries, nothing, range(row.start, queries.stop))
    prefix = range(row.start, row.start + row.prefix)
    begin = end = prefix.stop
    for length in row.branches:
        if end > begin and end + length - begin > _QUERIES:
            yield Block(range(begin, end), prefix, range(begin, end))
            begin = end
        end += length
        if length > _QUERIES:
            for queries in _cut(begin, length):
                yield Block(queries, prefix, range(begin, queries.stop))
            begin = end
    if end > begin:
        yield Block(range(begin, end), prefix, range(begin, end))


def _cut(start: int, length: int) -> Iterator[range]:
    """Cut a stretch into equal pieces of at most _QUERIES."""
    pieces = -(-length // _QUERIES)
    edges = [start + length * at // max(1, pieces) for at in range(pieces + 1)]
    for one, other in itertools.pairwise(edges):
        yield range(one, other)


@cache
def _rounded(length: int) -> int:
    """Round up to a size of which there are eight between a power of two and the next, so at most by an eighth."""
    step = max(8, 2 ** (length.bit_length() - 4))
    return -(-length // step) * step


def _group_by_size(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Put blocks together that are rounded to the same size."""
    together: dict[tuple[int, int], list[Block]] = {}
    for block in blocks:
        size = _rounded(len(block.queries)), _rounded(block.num_keys)
        together.setdefault(size, []).append(block)
    yield from together.values()
