"""Every sample is in one step of each epoch, in an order that depends on the seed; validation has its own images."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from caldera.batches.sampler import BatchLimit, StepSampler, split_validation, splits_whole_images
from caldera.batches.samples import Sample
from caldera.images.anyres import SINGLE_VIEW


def sampler(
    lengths: Sequence[int],
    size: int = 8,
    *,
    tokens: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    seed: int = 3,
    epochs: int = 1,
    max_steps: int | None = None,
) -> StepSampler:
    """Return a sampler."""
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
    return [list(range(start, min(start + 3, count))) for start in range(0, count, 3)]


@pytest.mark.parametrize(("count", "size"), [(1, 4), (97, 8), (1000, 7)])
@pytest.mark.parametrize("grouped", [True, False])
def test_every_sample_is_in_one_step(count: int, size: int, grouped: bool) -> None:
    """None is lost or repeated; every step is full except the last of an epoch, or of a pool of similar lengths."""
    groups = by_three(count) if grouped else None
    steps = sampler(list(range(count)), size, groups=groups).epoch(0)
    assert sorted(index for step in steps for index in step) == list(range(count))
    assert len(steps) == -(-count // size)
    assert sum(len(step) != size for step in steps) <= 1


def test_a_step_may_be_limited_in_tokens() -> None:
    """As many samples as fit, counted before packing; a sample that is longer than a step is a step of its own."""
    lengths = [30, 40, 30, 250, 10, 90, 20, 20, 20, 20]
    steps = sampler(lengths, tokens=100, groups=[[index] for index in range(10)])
    epoch = steps.epoch(0)
    assert sorted(index for step in epoch for index in step) == list(range(10))
    assert [3] in epoch
    full = [sum(lengths[index] for index in step) for step in epoch if step != [3]]
    assert max(full) <= 100
    for step, next_step in itertools.pairwise(epoch):
        assert sum(lengths[index] for index in step) + lengths[next_step[0]] > 100
    assert steps.num_steps == len(epoch)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    """The same seed and epoch give the same steps; another seed or epoch gives others."""
    lengths = [index % 13 for index in range(100)]
    for groups in (None, by_three(100)):
        first = sampler(lengths, groups=groups).epoch(0)
        assert first == sampler(lengths, groups=groups).epoch(0)
        assert first != sampler(lengths, groups=groups).epoch(1)
        assert first != sampler(lengths, groups=groups, seed=2).epoch(0)


def test_iteration_may_start_at_any_step() -> None:
    """The steps are those of the complete order; the limit of steps holds."""
    order = sampler(range(50), 8, groups=by_three(50), epochs=3, max_steps=17)
    steps = list(order.steps())
    assert len(steps) == order.num_steps == 17
    for start in (0, 1, 7, 16, 17):
        assert list(order.steps(start)) == steps[start:]


def test_groups_are_in_one_step() -> None:
    """Samples of a group are in one step, or in two where a step was full."""
    groups = by_three(60)
    steps = sampler([5] * 60, 8, groups=groups).epoch(0)
    step_of = {index: number for number, step in enumerate(steps) for index in step}
    num_split = 0
    for group in groups:
        first, *_, last = sorted(step_of[index] for index in group)
        assert last - first <= 1
        num_split += first != last
    assert num_split <= len(steps)


def test_similar_lengths_are_in_one_step() -> None:
    """Padding is a fraction of what random steps would need."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 500, size=2000).tolist()

    def padding(steps: list[list[int]]) -> int:
        return sum(
            max(lengths[index] for index in step) - lengths[index]
            for step in steps
            for index in step
        )

    grouped = padding(sampler(lengths, seed=0).epoch(0))
    random = padding([list(range(start, start + 8)) for start in range(0, 2000, 8)])
    assert grouped < random / 10


def about(number: int, *images: str) -> Sample:
    """Return a sample about images."""
    paths = tuple(Path(name) for name in images)
    layouts, ends = (SINGLE_VIEW,) * len(paths), (0,) * len(paths)
    return Sample(f"r{number}", (1, 2), (1, 2), paths, layouts, ends)


def test_validation_samples_share_no_image_with_training_samples() -> None:
    """Second images count too; every sample is in one split; the same seed gives the same split."""
    pairs = [about(i, f"{i}.png", f"{i - i % 3}.png") for i in range(30)]
    samples = [*pairs, *(about(30 + i, f"{i}.png") for i in range(30))]
    for seed in range(7):
        training, validation = split_validation(samples, 7, seed=seed)
        ids = sorted(sample.id for sample in (*training, *validation))
        assert ids == sorted(sample.id for sample in samples)
        assert 0 < len(validation) <= 6
        images = {path for sample in validation for path in sample.images}
        assert images
        assert not images & {path for sample in training for path in sample.images}
        assert split_validation(samples, 7, seed=seed) == (training, validation)


def test_where_images_connect_all_samples_only_first_images_are_separate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A chain of images connects all samples: there is a validation split all the same, with a warning."""
    chain = [about(i, f"{i // 2}.png", f"{i // 2 + 1}.png") for i in range(40)]
    training, validation = split_validation(chain, 4, seed=1)
    assert len(validation) == 4
    first_images = {sample.images[0] for sample in validation}
    assert not first_images & {sample.images[0] for sample in training}
    assert "held out for validation: 4 of 40 records" in caplog.text
    assert "(0 share no image with the rest)" in caplog.text


def test_where_chains_leave_few_separate_samples_whole_images_are_split_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A chain of 200 records and 3 others once left 3 to validate; now a tenth, and the overlap is counted."""
    chain = [about(i, f"{i // 4}.png", f"{i // 4 + 1}.png") for i in range(200)]
    others = [about(200 + i, "other.png") for i in range(3)]
    training, validation = split_validation([*chain, *others], 128, seed=1)
    assert 16 <= len(validation) <= 20
    assert not {item.images[0] for item in validation} & {item.images[0] for item in training}
    held_out = {path for item in validation for path in item.images}
    overlap = [item for item in training if held_out.intersection(item.images)]
    assert f"held out for validation: {len(validation)} of 203 records" in caplog.text
    assert f"in {len(overlap)} training records" in caplog.text
    assert splits_whole_images([*chain, *others], 128, seed=1)


@pytest.mark.parametrize(
    ("num_records", "reason"),
    [(9, "that is less than one"), (20, "records that share images stay together")],
)
def test_an_empty_split_is_logged_with_its_reason(
    caplog: pytest.LogCaptureFixture, num_records: int, reason: str
) -> None:
    """Few records, or all about one image."""
    samples = [about(i, "one.png") for i in range(num_records)]
    with caplog.at_level("INFO"):
        assert split_validation(samples, 4, seed=1) == (samples, [])
    [record] = caplog.records
    assert record.getMessage().startswith("nothing is held out for validation")
    assert record.getMessage().endswith(f"of {num_records} records may be, and {reason}")


def test_the_split_is_logged_with_its_rule(caplog: pytest.LogCaptureFixture) -> None:
    """Records and images are counted; separate images are said to be separate, without a warning."""
    samples = [about(i, f"{i // 2}.png") for i in range(40)]
    with caplog.at_level("INFO"):
        split_validation(samples, 4, seed=1)
    [record] = caplog.records
    assert record.levelname == "INFO"
    text = "4 of 40 records, 2 images, none of which is in a training record"
    assert record.getMessage() == f"held out for validation: {text}"
    assert not splits_whole_images(samples, 4, seed=1)
