"""Sample lengths and groups in, the order of steps out: the same for the same seed and epoch, wherever it is computed.

A step has as many samples as the recipe says, or as many tokens, however they are packed. Samples that share images
come in the same step, so that their tokens are paid once; where nothing is shared, samples of like length do, so that
little is padded.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_POOL_STEPS = 32
"""Steps whose samples are sorted together by length; more waste less padding, fewer mix the lengths better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimit:
    """When a step is full."""

    samples: int
    """Most samples of a step."""

    tokens: int | None = None
    """Most tokens of a step, counted before packing; then `samples` does not count. A longer sample is a step alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSampler:
    """The order in which samples are learned from."""

    lengths: Sequence[int]
    """Tokens of each sample."""

    groups: Sequence[Sequence[int]] | None
    """Indices of samples that come together where a step has room; None puts like lengths together."""

    size: BatchLimit
    epochs: int
    seed: int
    max_steps: int | None = None

    @property
    def total(self) -> int:
        """Steps in all."""
        if self.size.tokens is None:
            steps = -(-len(self.lengths) // self.size.samples) * self.epochs
            return steps if self.max_steps is None else min(steps, self.max_steps)
        return sum(1 for _ in self._all())

    def steps(self, from_step: int = 0) -> Iterator[list[int]]:
        """Yield the indices of each step's samples, from a step on; the same whether or not it began before that."""
        for number, indices in enumerate(self._all()):
            if number >= from_step:
                yield indices

    def _all(self) -> Iterator[list[int]]:
        """Yield all steps, up to the last one that is wanted."""
        count = 0
        for epoch in range(self.epochs):
            for indices in self.epoch(epoch):
                if count == self.max_steps:
                    return
                count += 1
                yield indices

    def epoch(self, epoch: int) -> list[list[int]]:
        """Deal all samples into the steps of an epoch, counted from 0; each epoch has its own order."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.groups is None:
            return self._length_grouped(rng)
        order = rng.permutation(len(self.groups))
        mixed = (rng.permutation(self.groups[at]).tolist() for at in order)
        return list(self._cut_into_steps(index for group in mixed for index in group))

    def _length_grouped(self, rng: np.random.Generator) -> list[list[int]]:
        """Cut shuffled samples into pools of many steps, sort each pool by length, cut it, and shuffle all steps."""
        order = rng.permutation(len(self.lengths))
        steps: list[list[int]] = []
        pool = self.size.samples * _POOL_STEPS
        for start in range(0, len(order), pool):
            some = sorted(order[start : start + pool].tolist(), key=self.lengths.__getitem__)
            steps += self._cut_into_steps(some)
        return [steps[at] for at in rng.permutation(len(steps))]

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

    def _is_full(self, samples: int, tokens_with_next: int) -> bool:
        """Tell whether a step of so many samples has no room for a next one."""
        if self.size.tokens is None:
            return samples == self.size.samples
        return tokens_with_next > self.size.tokens
