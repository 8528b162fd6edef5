"""Shared prefixes, micro-batches, Batch.

Conversations about one image begin with the same tokens, those of the image among them. In a pack these come once.
Each conversation then sees the prefix and itself, at the positions it would have alone, so that its loss and gradients
are those of a row of its own.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from caldera.batches.samples import Sample
from caldera.images.anyres import TileLayout
from caldera.templates.encoding import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Pack:
    """Conversations that begin alike."""

    samples: tuple[Sample, ...]

    prefix_length: int
    """Tokens at their beginning that are laid once; none of them is learned."""

    @property
    def length(self) -> int:
        """Tokens that it takes."""
        return self.prefix_length + sum(
            sample.length - self.prefix_length for sample in self.samples
        )

    @property
    def num_shared_images(self) -> int:
        """Images within the shared tokens, of which each conversation has as many."""
        return self.samples[0].num_images_before(self.prefix_length)


def group_by_images(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the indices of samples in groups of those that show the same images; one without stands alone."""
    groups: dict[Hashable, list[int]] = {}
    for at, sample in enumerate(samples):
        key = (sample.images, sample.layouts) if sample.images else at
        groups.setdefault(key, []).append(at)
    return list(groups.values())


def build_packs(samples: Sequence[Sample], *, share: bool) -> list[Pack]:
    """Put samples into packs: those that are alike up to the end of their first image into one, others alone.

    Args:
        samples: Of a step, or a part of one.
        share: Whether samples may share a prefix; each stands alone if not.
    """
    alike: dict[Hashable, list[Sample]] = {}
    for at, sample in enumerate(samples):
        begins: Hashable = at
        if share and sample.images:
            begins = (sample.images, sample.layouts, sample.ids[: sample.image_ends[0]])
        alike.setdefault(begins, []).append(sample)
    return [
        Pack(tuple(some), _common_prefix_length(some) if len(some) > 1 else 0)
        for some in alike.values()
    ]


def _common_prefix_length(samples: Sequence[Sample]) -> int:
    """Return how many tokens at the beginning all samples have in common, before any that is learned or is the last."""
    first, *others = samples
    most = min(sample.length for sample in samples) - 1
    for at in range(most):
        if any(sample.labels[at] != IGNORE_INDEX for sample in samples):
            return at
        if any(other.ids[at] != first.ids[at] for other in others):
            return at
    return most


def pack_micro_batches(
    packs: Sequence[Pack], *, tokens: int, samples: int | None = None
) -> list[list[Pack]]:
    """Put packs into as few passes as a greedy best fit finds: the longest first, each where least room is left.

    Args:
        packs: Of one step.
        tokens: Most tokens of a pass; a pack that is longer goes alone.
        samples: Most samples of a pass, if that counts too; a pack of more goes alone.

    Returns:
        The passes, in an order that the packs' order alone decides.
    """
    room: Callable[[list[Pack]], int] = lambda some: tokens - sum(one.length for one in some)  # noqa: E731
    micro_batches: list[list[Pack]] = []
    for one in sorted(packs, key=lambda each: -each.length):
        fitting = [
            some
            for some in micro_batches
            if one.length <= room(some)
            and (samples is None or sum(len(each.samples) for each in [*some, one]) <= samples)
        ]
        if fitting:
            min(fitting, key=room).append(one)
        else:
            micro_batches.append([one])
    return micro_batches


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
