"""Samples packed into batches, and plain padded batches as a reference."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from caldera.batches.image_sources import DecodedImages
from caldera.batches.packing import Batch, build_packs, collate
from caldera.batches.samples import Sample
from caldera.model.bundle import LlavaBundle
from caldera.templates.encoding import IGNORE_INDEX


def batch_of(assistant: LlavaBundle, samples: Sequence[Sample], *, share: bool = False) -> Batch:
    """Pack samples into one batch with their pixels."""
    return collate(build_packs(samples, share=share), DecodedImages(assistant.processor))


class Padded(NamedTuple):
    """A plain batch as transformers takes it; each tensor is (rows, tokens)."""

    ids: Tensor
    labels: Tensor
    mask: Tensor


def padded(samples: Sequence[Sample]) -> Padded:
    """Return a batch with a row for each sample, padded on the right."""
    width = max(sample.length for sample in samples)
    ids = [[*sample.ids, *[0] * (width - sample.length)] for sample in samples]
    labels = [[*sample.labels, *[IGNORE_INDEX] * (width - sample.length)] for sample in samples]
    mask = [[1] * sample.length + [0] * (width - sample.length) for sample in samples]
    return Padded(torch.tensor(ids), torch.tensor(labels), torch.tensor(mask))
