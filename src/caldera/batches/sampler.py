"""Sample lengths in, the order of batches out: like lengths together, the same for the same seed and epoch."""

from collections.abc import Sequence

import numpy as np

_POOL = 32
"""Batches whose samples are sorted together; more waste less padding, fewer mix the lengths better."""


def batches_of_epoch(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """Deal all samples into batches of like length, in random order.

    Shuffled samples are cut into pools of many batches, each pool is sorted by length and cut into batches, and all
    batches are shuffled. Every sample comes once an epoch; the last batch may be smaller.

    Args:
        lengths: Tokens of each sample.
        batch_size: Samples in a batch.
        seed: Of the run.
        epoch: Counted from 0; each has its own order.

    Returns:
        Indices into `lengths`, batch by batch.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * _POOL):
        pool = sorted(order[start : start + batch_size * _POOL].tolist(), key=lengths.__getitem__)
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[at] for at in rng.permutation(len(batches))]
