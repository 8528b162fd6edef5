"""Samples in, one Batch of tensors out.

A packed layout would be another function from samples to a Batch: the model reads nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from caldera.batches.anyres import Layout
from caldera.batches.labels import IGNORED
from caldera.batches.samples import Sample


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of the model takes."""

    ids: Tensor
    """Token ids, (rows, tokens); image tokens hold the image token's id, padding any id."""

    labels: Tensor
    """Ids to be predicted at their own position, IGNORED elsewhere, (rows, tokens)."""

    mask: Tensor
    """True at real tokens, False at padding, (rows, tokens)."""

    pictures: Tensor
    """Of all rows in order: pixels, (views, channels, height, width), or kept patch features, (views, patches,
    vision width)."""

    layouts: tuple[Layout, ...]
    """How the views of each picture lie, in order."""

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""
        return replace(
            self,
            ids=self.ids.to(device),
            labels=self.labels.to(device),
            mask=self.mask.to(device),
            pictures=self.pictures.to(device),
        )

    @property
    def num_learned(self) -> int:
        """Tokens that the loss is taken on; the first token of a row is never predicted."""
        return int((self.labels[:, 1:] != IGNORED).sum())


def collate(
    samples: Sequence[Sample],
    pictures: Tensor,
    *,
    padding_id: int,
    round_to: int = 1,
    context_length: int | None = None,
) -> Batch:
    """Lay samples into rows, padded on the right.

    Args:
        samples: One for each row.
        pictures: Pixels or features of all views of their pictures in order, (views, ...).
        padding_id: Fills rows behind their end; masked, so it may be any id.
        round_to: Rows are made a multiple of this long, so that few different shapes occur.
        context_length: But not longer than this, as padding takes positions, too.

    Raises:
        ValueError: The number of views is not what the samples show.
    """
    layouts = tuple(layout for sample in samples for layout in sample.layouts)
    shown = sum(layout.views for layout in layouts)
    if shown != len(pictures):
        raise ValueError(f"the samples show {shown} views of pictures but {len(pictures)} arrived")
    longest = max(sample.length for sample in samples)
    width = -(-longest // round_to) * round_to
    if context_length is not None:
        width = max(longest, min(width, context_length))
    ids = torch.full((len(samples), width), padding_id)
    labels = torch.full((len(samples), width), IGNORED)
    mask = torch.zeros((len(samples), width), dtype=torch.bool)
    for row, sample in enumerate(samples):
        ids[row, : sample.length] = torch.tensor(sample.ids)
        labels[row, : sample.length] = torch.tensor(sample.labels)
        mask[row, : sample.length] = True
    return Batch(ids, labels, mask, pictures, layouts)
