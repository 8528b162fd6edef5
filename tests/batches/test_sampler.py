"""Every sample once an epoch, in steps of the size that was asked for, in the same order for the same seed."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from caldera.batches.sampler import BatchLimit, StepSampler


def plan(
    lengths: Sequence[int],
    size: int = 8,
    *,
    tokens: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    seed: int = 3,
    epochs: int = 1,
    max_steps: int | None = None,
) -> StepSampler:
    """Return a plan."""
    return StepSampler(
        lengths=lengths,
        groups=groups,
        limit=BatchLimit(samples=size, tokens=tokens),
        epochs=epochs,
        seed=seed,
        max_steps=max_steps,
    )


def by_three(count: int) -> list[list[int]]:
    """Return indices in groups of three."""
    return [list(range(at, min(at + 3, count))) for at in range(0, count, 3)]


@pytest.mark.parametrize(("count", "size"), [(1, 4), (97, 8), (1000, 7)])
@pytest.mark.parametrize("grouped", [True, False])
def test_every_sample_comes_once(count: int, size: int, grouped: bool) -> None:
    """Nothing is lost or repeated; every step is full but the last of an epoch, or of a pool of like lengths."""
    groups = by_three(count) if grouped else None
    steps = plan(list(range(count)), size, groups=groups).epoch(0)
    assert sorted(index for step in steps for index in step) == list(range(count))
    assert len(steps) == -(-count // size)
    assert sum(len(step) != size for step in steps) <= 1


def test_a_step_may_be_sized_in_tokens() -> None:
    """As many samples as fit, counted before packing; one that is longer than a step has a step to itself."""
    lengths = [30, 40, 30, 250, 10, 90, 20, 20, 20, 20]
    steps = plan(lengths, tokens=100, groups=[[at] for at in range(10)])
    dealt = steps.epoch(0)
    assert sorted(index for step in dealt for index in step) == list(range(10))
    assert [3] in dealt
    full = [sum(lengths[at] for at in step) for step in dealt if step != [3]]
    assert max(full) <= 100
    for one, following in itertools.pairwise(dealt):
        assert sum(lengths[at] for at in one) + lengths[following[0]] > 100
    assert steps.num_steps == len(dealt)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    """The same seed and epoch give the same steps; another of either gives others."""
    lengths = [index % 13 for index in range(100)]
    for groups in (None, by_three(100)):
        first = plan(lengths, groups=groups).epoch(0)
        assert first == plan(lengths, groups=groups).epoch(0)
        assert first != plan(lengths, groups=groups).epoch(1)
        assert first != plan(lengths, groups=groups, seed=2).epoch(0)


def test_a_plan_goes_on_where_it_was() -> None:
    """From any step on, the steps are those of the whole plan; the limit of steps is kept."""
    whole = plan(range(50), 8, groups=by_three(50), epochs=3, max_steps=17)
    steps = list(whole.steps())
    assert len(steps) == whole.num_steps == 17
    for start in (0, 1, 7, 16, 17):
        assert list(whole.steps(start)) == steps[start:]


def test_groups_stay_together() -> None:
    """Samples of a group are in one step, or in two where a step was full."""
    groups = by_three(60)
    steps = plan([5] * 60, 8, groups=groups).epoch(0)
    step_of = {index: number for number, step in enumerate(steps) for index in step}
    torn = 0
    for group in groups:
        at = sorted(step_of[index] for index in group)
        assert at[-1] - at[0] <= 1
        torn += at[0] != at[-1]
    assert torn <= len(steps)


def test_like_lengths_come_together() -> None:
    """Padding is a fraction of what random steps would need."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 500, size=2000).tolist()

    def padding(steps: list[list[int]]) -> int:
        return sum(
            max(lengths[index] for index in step) - lengths[index]
            for step in steps
            for index in step
        )

    grouped = padding(plan(lengths, seed=0).epoch(0))
    random = padding([list(range(at, at + 8)) for at in range(0, 2000, 8)])
    assert grouped < random / 10
