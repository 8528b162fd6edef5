"""Samples laid into batches, ours and plain padded ones, for tests that need either."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from caldera.batches.collate import Batch, collate, shown
from caldera.batches.labels import IGNORED
from caldera.batches.packing import pack
from caldera.batches.picture_sources import Pixels
from caldera.batches.samples import Sample
from caldera.model.folder import Assistant


def batch_of(assistant: Assistant, samples: Sequence[Sample], *, share: bool = False) -> Batch:
    """Lay samples into one batch with their pixels."""
    packs = pack(samples, share=share)
    paths = [path for sample, some in shown(packs) for path in sample.pictures[some]]
    return collate(packs, Pixels(assistant.processor)(paths))


class Padded(NamedTuple):
    """A plain batch, as transformers takes it: each (rows, tokens)."""

    ids: Tensor
    labels: Tensor
    mask: Tensor


def padded(samples: Sequence[Sample]) -> Padded:
    """Lay each sample into a row of its own, padded on the right."""
    width = max(sample.length for sample in samples)
    ids = [[*sample.ids, *[0] * (width - sample.length)] for sample in samples]
    labels = [[*sample.labels, *[IGNORED] * (width - sample.length)] for sample in samples]
    mask = [[1] * sample.length + [0] * (width - sample.length) for sample in samples]
    return Padded(torch.tensor(ids), torch.tensor(labels), torch.tensor(mask))
