"""Every sample once an epoch, like lengths together, the same order for the same seed."""

import numpy as np
import pytest

from caldera.batches.sampler import batches_of_epoch


@pytest.mark.parametrize(("count", "size"), [(1, 4), (97, 8), (1000, 7)])
def test_every_sample_comes_once(count: int, size: int) -> None:
    """Nothing is lost or repeated, and only the last batch of a pool may be small."""
    batches = batches_of_epoch(list(range(count)), size, seed=3, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    assert all(len(batch) <= size for batch in batches)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    """The same seed and epoch give the same batches; another of either gives others."""
    lengths = [index % 13 for index in range(100)]
    first = batches_of_epoch(lengths, 8, seed=1, epoch=0)
    assert first == batches_of_epoch(lengths, 8, seed=1, epoch=0)
    assert first != batches_of_epoch(lengths, 8, seed=1, epoch=1)
    assert first != batches_of_epoch(lengths, 8, seed=2, epoch=0)


def test_like_lengths_come_together() -> None:
    """Padding is a fraction of what random batches would need."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 500, size=2000).tolist()

    def padding(batches: list[list[int]]) -> int:
        return sum(
            max(lengths[index] for index in batch) - lengths[index]
            for batch in batches
            for index in batch
        )

    grouped = padding(batches_of_epoch(lengths, 8, seed=0, epoch=0))
    random = padding([list(range(at, at + 8)) for at in range(0, 2000, 8)])
    assert grouped < random / 10
