"""Samples laid into rows keep their tokens, labels and pictures."""

from pathlib import Path

import pytest
import torch

from caldera.batches.anyres import WHOLE
from caldera.batches.collate import collate
from caldera.batches.labels import IGNORED
from caldera.batches.samples import Sample


def sample(name: str, length: int, pictures: int = 0) -> Sample:
    """Return a sample whose last two tokens are learned."""
    ids = tuple(range(10, 10 + length))
    labels = (*(IGNORED,) * (length - 2), *ids[-2:])
    paths = tuple(Path(f"{name}{at}") for at in range(pictures))
    return Sample(name, ids, labels, paths, (WHOLE,) * pictures)


def test_rows_are_padded_on_the_right() -> None:
    """Padding is masked and never learned; rows are as long as asked."""
    batch = collate([sample("a", 3), sample("b", 5)], torch.zeros(0, 2), padding_id=7, round_to=4)

    assert batch.ids.tolist()[0] == [10, 11, 12, 7, 7, 7, 7, 7]
    assert batch.labels.tolist()[0] == [IGNORED, 11, 12, *[IGNORED] * 5]
    assert batch.mask.sum(dim=1).tolist() == [3, 5]
    assert batch.num_learned == 4


def test_pictures_and_samples_must_agree() -> None:
    """A picture too many or too few stops the batch, with both numbers."""
    with pytest.raises(ValueError, match="show 2 views of pictures but 1 arrived"):
        collate([sample("a", 3, pictures=2)], torch.zeros(1, 5), padding_id=0)
