"""Order of the training steps, and the split into training and validation samples.

The order depends on seed and epoch alone. A step has a number of samples, or of tokens counted before packing. Samples
that share images are in the same step, so that their common tokens are computed once; where nothing is shared, samples
of similar length are, so that little is padded.
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caldera.batches.samples import Sample

log = logging.getLogger(__name__)

_POOL_STEPS = 32
"""Steps whose samples are sorted by length together; more waste less padding, fewer mix the lengths better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimit:
    """Size of a step."""

    samples: int
    """Samples of a step, at most."""

    tokens: int | None = None
    """Tokens of a step, at most, counted before packing; then `samples` is ignored. A longer sample is a step alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSampler:
    """Sampler of the samples of each step."""

    lengths: Sequence[int]
    """Tokens of each sample."""

    groups: Sequence[Sequence[int]] | None
    """Indices of samples that are in the same step where it has room; None groups by similar length."""

    limit: BatchLimit
    epochs: int
    seed: int
    max_steps: int | None = None

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        if self.limit.tokens is None:
            steps = -(-len(self.lengths) // self.limit.samples) * self.epochs
            return steps if self.max_steps is None else min(steps, self.max_steps)
        return sum(1 for _ in self.steps())

    def steps(self, first: int = 0) -> Iterator[list[int]]:
        """Yield the indices of each step's samples, beginning with step `first`."""
        number = 0
        for epoch in range(self.epochs):
            for indices in self.epoch(epoch):
                if number == self.max_steps:
                    return
                if number >= first:
                    yield indices
                number += 1

    def epoch(self, epoch: int) -> list[list[int]]:
        """Distribute all samples over the steps of an epoch, counted from 0; each epoch has its own order."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.groups is None:
            return self._length_grouped(rng)
        order = rng.permutation(len(self.groups))
        shuffled = (rng.permutation(self.groups[group]).tolist() for group in order)
        return list(self._cut_into_steps(index for group in shuffled for index in group))

    def _length_grouped(self, rng: np.random.Generator) -> list[list[int]]:
        """Cut shuffled samples into pools of many steps, sort each pool by length, cut it, and shuffle all steps."""
        order = rng.permutation(len(self.lengths))
        steps: list[list[int]] = []
        pool_size = self.limit.samples * _POOL_STEPS
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size].tolist(), key=self.lengths.__getitem__)
            steps += self._cut_into_steps(pool)
        return [steps[index] for index in rng.permutation(len(steps))]

    def _cut_into_steps(self, order: Iterable[int]) -> Iterator[list[int]]:
        """Cut samples in this order into steps."""
        step: list[int] = []
        tokens = 0
        for index in order:
            if step and self._is_full(len(step), tokens + self.lengths[index]):
                yield step
                step, tokens = [], 0
            step.append(index)
            tokens += self.lengths[index]
        if step:
            yield step

    def _is_full(self, num_samples: int, tokens_with_next: int) -> bool:
        """Return whether a step has no room for another sample."""
        if self.limit.tokens is None:
            return num_samples == self.limit.samples
        return tokens_with_next > self.limit.tokens


def validation_limit(num_samples: int, size: int) -> int:
    """Return the size of the validation split, at most, given the requested one: a tenth of all samples."""
    return min(size, num_samples // 10)


def split_validation(
    samples: Sequence[Sample], size: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Split off about `size` validation samples, at most a tenth, that share no image with the training samples.

    Where chains of shared images leave few, whole images are split off: all samples with the same first image, which
    training samples may have as a further image. What was split off is logged.

    Returns:
        Training samples and validation samples.
    """
    split = _choose_validation(samples, validation_limit(len(samples), size), seed)
    training = [sample for index, sample in enumerate(samples) if index not in split.validation]
    validation = [samples[index] for index in sorted(split.validation)]
    if size:
        _log_split(training, validation, split)
    return training, validation


def splits_whole_images(samples: Sequence[Sample], size: int, seed: int) -> bool:
    """Return whether `split_validation` splits off whole images although some samples share no image with others.

    Earlier versions split off those few samples.
    """
    split = _choose_validation(samples, validation_limit(len(samples), size), seed)
    return split.whole_images and split.num_separate > 0


@dataclass(frozen=True, slots=True)
class _Split:
    """Indices of the validation samples, and how they were chosen."""

    validation: set[int]
    num_separate: int
    """Number of samples that share no image with the others and fit the limit."""

    whole_images: bool = False


def _choose_validation(samples: Sequence[Sample], limit: int, seed: int) -> _Split:
    """Choose samples that share no image with the others, or whole images where that gives more than twice as many."""
    separate = _pick_groups(_connected_by_images(samples), limit, seed)
    if 2 * len(separate) < limit:
        by_image = _pick_groups(_group_by(samples, lambda path: path), limit, seed)
        if len(by_image) > 2 * len(separate):
            return _Split(by_image, len(separate), whole_images=True)
    return _Split(separate, len(separate))


def _log_split(training: Sequence[Sample], validation: Sequence[Sample], split: _Split) -> None:
    """Log what was split off, and by what rule."""
    if not validation:
        log.info(
            "nothing is held out for validation, so no validation loss is computed: at most a tenth of %d records may "
            "be, and %s",
            len(training),
            "records that share images stay together"
            if validation_limit(len(training), 1)
            else "that is less than one",
        )
        return
    images = {path for sample in validation for path in sample.images}
    held_out = (
        f"held out for validation: {len(validation)} of {len(training) + len(validation)} records, "
        f"{len(images)} images"
    )
    if not split.whole_images:
        log.info("%s, none of which is in a training record", held_out)
        return
    overlap = [sample for sample in training if not images.isdisjoint(sample.images)]
    shared = images.intersection(path for sample in overlap for path in sample.images)
    log.warning(
        "%s, by the first image of each record, as records with several images connect the others (%d share no image "
        "with the rest); %d of the images are also in %d training records",
        held_out,
        split.num_separate,
        len(shared),
        len(overlap),
    )


def _pick_groups(groups: list[list[int]], limit: int, seed: int) -> set[int]:
    """Return the members of random groups, at most `limit`."""
    random.Random(seed).shuffle(groups)
    picked: set[int] = set()
    for group in groups:
        if len(picked) + len(group) <= limit:
            picked.update(group)
    return picked


def _connected_by_images(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the indices of samples in groups that share no image with each other."""
    # A union-find forest: the images of a group form one tree.
    parent: dict[Path, Path] = {}

    def root(path: Path) -> Path:
        while parent.setdefault(path, path) != path:
            parent[path] = path = parent[parent[path]]
        return path

    for sample in samples:
        for path in sample.images[1:]:
            parent[root(path)] = root(sample.images[0])
    return _group_by(samples, root)


def _group_by(samples: Sequence[Sample], key: Callable[[Path], Path]) -> list[list[int]]:
    """Return the indices of samples in groups by the key of their first image; each without images is alone."""
    groups: dict[Path | int, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(key(sample.images[0]) if sample.images else index, []).append(index)
    return list(groups.values())
