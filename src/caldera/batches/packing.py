"""Packing of samples into micro-batches that store shared prefixes once.

Conversations about one image begin with the same tokens, those of the image included. A pack holds these once, as a
prefix. Each conversation attends to the prefix and to itself, at the positions it would have alone, so its loss and
gradients are those of a row of its own.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from caldera.batches.image_sources import ImageSource
from caldera.batches.samples import Sample
from caldera.images.anyres import TileLayout
from caldera.templates.encoding import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Pack:
    """Conversations that begin with the same tokens."""

    samples: tuple[Sample, ...]

    prefix_length: int
    """Tokens at their beginning that are stored once; none of them is supervised."""

    @property
    def length(self) -> int:
        """Tokens in total."""
        return self.prefix_length + sum(
            sample.length - self.prefix_length for sample in self.samples
        )

    def new_images(self) -> list[tuple[Path, TileLayout]]:
        """Return the images of the pack in the order of its tokens; those in the prefix come once."""
        num_shared = self.samples[0].num_images_before(self.prefix_length)
        images = [*zip(self.samples[0].images, self.samples[0].layouts, strict=True)]
        for sample in self.samples[1:]:
            images += [*zip(sample.images, sample.layouts, strict=True)][num_shared:]
        return images


def group_by_images(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the indices of samples in groups with the same images; a sample without images is a group of its own."""
    groups: dict[Hashable, list[int]] = {}
    for index, sample in enumerate(samples):
        key = (sample.images, sample.layouts) if sample.images else index
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def build_packs(samples: Sequence[Sample], *, share: bool) -> list[Pack]:
    """Pack samples that are equal up to the end of their first image together, and each other sample alone.

    Args:
        samples: Of one step, or a part of one.
        share: Whether samples may share a prefix; if not, each is a pack of its own.
    """
    groups: dict[Hashable, list[Sample]] = {}
    for index, sample in enumerate(samples):
        key: Hashable = index
        if share and sample.images:
            key = (sample.images, sample.layouts, sample.ids[: sample.image_ends[0]])
        groups.setdefault(key, []).append(sample)
    return [
        Pack(tuple(group), _common_prefix_length(group) if len(group) > 1 else 0)
        for group in groups.values()
    ]


def _common_prefix_length(samples: Sequence[Sample]) -> int:
    """Return the length of the longest common prefix that contains no supervised token and not the last token."""
    first, *rest = samples
    limit = min(sample.length for sample in samples) - 1
    for position in range(limit):
        if any(sample.labels[position] != IGNORE_INDEX for sample in samples):
            return position
        if any(sample.ids[position] != first.ids[position] for sample in rest):
            return position
    return limit


def pack_micro_batches(
    packs: Sequence[Pack], *, max_tokens: int, max_samples: int | None = None
) -> list[list[Pack]]:
    """Distribute packs over few micro-batches by greedy best fit: longest first, into the fullest that has room.

    Args:
        packs: Of one step.
        max_tokens: Limit of a micro-batch; a longer pack is alone.
        max_samples: Further limit, if any; a pack of more samples is alone.

    Returns:
        The micro-batches, in an order that depends on the order of the packs alone.
    """

    def free_tokens(micro_batch: list[Pack]) -> int:
        return max_tokens - sum(pack.length for pack in micro_batch)

    def fits(pack: Pack, micro_batch: list[Pack]) -> bool:
        num_samples = sum(len(other.samples) for other in [*micro_batch, pack])
        return pack.length <= free_tokens(micro_batch) and (
            max_samples is None or num_samples <= max_samples
        )

    micro_batches: list[list[Pack]] = []
    for pack in sorted(packs, key=lambda pack: -pack.length):
        fitting = [micro_batch for micro_batch in micro_batches if fits(pack, micro_batch)]
        if fitting:
            min(fitting, key=free_tokens).append(pack)
        else:
            micro_batches.append([pack])
    return micro_batches


@dataclass(frozen=True, slots=True)
class PackedRow:
    """A span of tokens that attends to nothing outside itself: a prefix, and branches that attend to it."""

    start: int
    """Index of its first token in the batch."""

    prefix: int
    """Number of tokens that all branches share; 0 where there is one branch."""

    branches: tuple[int, ...]
    """Number of tokens of each branch."""

    @property
    def length(self) -> int:
        """Tokens in total."""
        return self.prefix + sum(self.branches)

    @property
    def positions(self) -> Tensor:
        """Position of each token in its own conversation, (tokens,): each branch continues the prefix."""
        branches = [torch.arange(self.prefix, self.prefix + length) for length in self.branches]
        return torch.cat([torch.arange(self.prefix), *branches])


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch: packed rows without padding, and the images of their conversations."""

    record_ids: tuple[str, ...]
    """Ids of the conversations."""

    input_ids: Tensor
    """Token ids, (tokens,); image tokens have the image token's id."""

    positions: Tensor
    """Position of each token in its own conversation, (tokens,)."""

    rows: tuple[PackedRow, ...]
    """The rows cover the tokens, in order."""

    target_positions: Tensor
    """Index in the batch of the token before each supervised token, (supervised,); the last token of a prefix may occur
    several times."""

    target_ids: Tensor
    """The supervised tokens, (supervised,)."""

    image_paths: tuple[Path, ...]
    """Files of the images, in the order of their tokens."""

    layouts: tuple[TileLayout, ...]
    """Tile layout of each image."""

    images: Tensor
    """All views of all images in order: pixels, (views, channels, height, width), or cached patch features,
    (views, patches, vision width)."""

    loss_weight: float = 1.0
    """Factor of the summed loss in the loss of a step."""

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
    def num_supervised_tokens(self) -> int:
        """Tokens in the loss; the first token of a conversation is never predicted."""
        return len(self.target_ids)


def collate(packs: Sequence[Pack], load_images: ImageSource) -> Batch:
    """Concatenate packs into one batch, each a row, and load their images.

    Args:
        packs: One for each row.
        load_images: Source of pixels or features.

    Raises:
        ImageError: An image cannot be used.
        ValueError: The number of views differs from the samples' tile layouts.
    """
    new_images = [image for pack in packs for image in pack.new_images()]
    image_paths = tuple(path for path, _ in new_images)
    layouts = tuple(layout for _, layout in new_images)
    images = load_images(image_paths, layouts)  # (views, ...)
    num_views = sum(layout.views for layout in layouts)
    if num_views != len(images):
        raise ValueError(
            f"the samples have {num_views} views of images but {len(images)} were loaded"
        )
    ids: list[int] = []
    target_positions: list[int] = []
    target_ids: list[int] = []
    rows = []
    for pack in packs:
        start, prefix = len(ids), pack.prefix_length
        branches = tuple(sample.length - prefix for sample in pack.samples)
        rows.append(PackedRow(start, prefix, branches))
        ids += pack.samples[0].ids[:prefix]
        for sample in pack.samples:
            # Where the sample's first token would be if its prefix were not shared.
            offset = len(ids) - prefix
            for position in range(max(1, prefix), sample.length):
                if sample.labels[position] != IGNORE_INDEX:
                    first = offset if position > prefix else start
                    target_positions.append(first + position - 1)
                    target_ids.append(sample.labels[position])
            ids += sample.ids[prefix:]
    return Batch(
        record_ids=tuple(sample.id for pack in packs for sample in pack.samples),
        input_ids=torch.tensor(ids),
        positions=torch.cat([row.positions for row in rows]),
        rows=tuple(rows),
        target_positions=torch.tensor(target_positions, dtype=torch.long),
        target_ids=torch.tensor(target_ids, dtype=torch.long),
        image_paths=image_paths,
        layouts=layouts,
        images=images,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchBuilder:
    """Builder of micro-batches from samples, the same for training and validation."""

    load_images: ImageSource
    """Source of pixels or features."""

    share_prefixes: bool
    """Whether conversations about the same images share their common tokens."""

    max_tokens: int
    """Tokens of a micro-batch, at most; a longer pack is alone."""

    max_samples: int | None = None
    """Samples of a micro-batch, at most; None is no limit."""

    loss_batch_size: int | None = None
    """Consecutive samples of a step whose mean loss counts as much as that of the others; None is all samples."""

    def plan(self, samples: Sequence[Sample]) -> list[list[Pack]]:
        """Return the packs of each micro-batch."""
        packs = build_packs(samples, share=self.share_prefixes)
        return pack_micro_batches(packs, max_tokens=self.max_tokens, max_samples=self.max_samples)

    def collate(self, packs: Sequence[Pack]) -> Batch:
        """Return one micro-batch, with its images loaded."""
        return collate(packs, self.load_images)

    def build(self, samples: Sequence[Sample]) -> list[Batch]:
        """Return all micro-batches of the samples of one step, each with samples of one loss batch."""
        size = self.loss_batch_size or len(samples)
        loss_batches = [
            [self.collate(packs) for packs in self.plan(samples[start : start + size])]
            for start in range(0, len(samples), size)
        ]
        if len(loss_batches) == 1:
            return loss_batches[0]
        counts = [sum(batch.num_supervised_tokens for batch in part) for part in loss_batches]
        mean = sum(counts) / len(counts)
        return [
            replace(batch, loss_weight=mean / max(1, count))
            for part, count in zip(loss_batches, counts, strict=True)
            for batch in part
        ]
