"""Packs of samples in, one Batch of tensors out: all tokens behind one another, without padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from caldera.batches.anyres import TileLayout
from caldera.batches.labels import IGNORE_INDEX
from caldera.batches.packing import Pack
from caldera.batches.samples import Sample


@dataclass(frozen=True, slots=True)
class PackedRow:
    """A stretch of tokens that sees nothing outside itself: a prefix, and branches that each see it and themselves."""

    start: int
    """Its first token's place in the batch."""

    prefix: int
    """Tokens that all branches share; 0 where there is one branch."""

    branches: tuple[int, ...]
    """Tokens of each branch."""

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self.prefix + sum(self.branches)

    @property
    def positions(self) -> Tensor:
        """Place of each token in its own conversation, (tokens,): each branch goes on where the prefix ends."""
        behind = [torch.arange(self.prefix, self.prefix + length) for length in self.branches]
        return torch.cat([torch.arange(self.prefix), *behind])


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes through the model at once."""

    input_ids: Tensor
    """Token ids, (tokens,); image tokens hold the image token's id."""

    positions: Tensor
    """Place of each token in its own conversation, (tokens,)."""

    rows: tuple[PackedRow, ...]
    """They cover the tokens, in order."""

    target_positions: Tensor
    """Tokens whose next one is learned, by place in the batch, (learned,); the last of a prefix may stand several
    times."""

    target_ids: Tensor
    """The ids that come next, (learned,)."""

    images: Tensor
    """Of all rows in order: pixels, (views, channels, height, width), or kept patch features, (views, patches,
    vision width)."""

    layouts: tuple[TileLayout, ...]
    """How the views of each image lie, in order."""

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            positions=self.positions.to(device),
            target_positions=self.target_positions.to(device),
            target_ids=self.target_ids.to(device),
            images=self.images.to(device),
        )

    @property
    def num_learned(self) -> int:
        """Tokens that the loss is taken on; the first token of a conversation is never predicted."""
        return len(self.target_ids)


def iter_new_images(packs: Sequence[Pack]) -> Iterator[tuple[Sample, slice]]:
    """Yield each sample of some packs with those of its images that come with it; shared ones come with the first."""
    for one in packs:
        for at, sample in enumerate(one.samples):
            yield sample, slice(one.num_shared_images if at else 0, None)


def collate(packs: Sequence[Pack], images: Tensor) -> Batch:
    """Lay packs behind one another.

    Args:
        packs: One for each row.
        images: Pixels or features of all views of the images that `shown` names, in order, (views, ...).

    Raises:
        ValueError: The number of views is not what the samples show.
    """
    layouts = tuple(
        layout for sample, some in iter_new_images(packs) for layout in sample.layouts[some]
    )
    views = sum(layout.views for layout in layouts)
    if views != len(images):
        raise ValueError(f"the samples show {views} views of images but {len(images)} arrived")
    ids: list[int] = []
    before: list[int] = []
    wanted: list[int] = []
    rows = []
    for one in packs:
        start, prefix = len(ids), one.prefix_length
        rows.append(
            PackedRow(start, prefix, tuple(sample.length - prefix for sample in one.samples))
        )
        ids += one.samples[0].ids[:prefix]
        for sample in one.samples:
            behind = len(ids) - prefix  # where the sample's own first token would be
            for at in range(max(1, prefix), sample.length):
                if sample.labels[at] != IGNORE_INDEX:
                    before.append(behind + at - 1 if at > prefix else start + at - 1)
                    wanted.append(sample.labels[at])
            ids += sample.ids[prefix:]
    return Batch(
        input_ids=torch.tensor(ids),
        positions=torch.cat([row.positions for row in rows]),
        rows=tuple(rows),
        target_positions=torch.tensor(before, dtype=torch.long),
        target_ids=torch.tensor(wanted, dtype=torch.long),
        images=images,
        layouts=layouts,
    )
