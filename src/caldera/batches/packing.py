"""Samples in, packs out: conversations about the same images lie behind one prefix, and packs fill a budget.

Conversations about one image begin with the same tokens, those of the image among them. In a pack these come once.
Each conversation then sees the prefix and itself, at the positions it would have alone, so that its loss and gradients
are those of a row of its own.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from caldera.batches.labels import IGNORE_INDEX
from caldera.batches.samples import Sample


@dataclass(frozen=True, slots=True)
class Pack:
    """Conversations that begin alike."""

    samples: tuple[Sample, ...]

    prefix_length: int
    """Tokens at their beginning that are laid once; none of them is learned."""

    @property
    def length(self) -> int:
        """Tokens that it takes."""
        return self.prefix_length + sum(
            sample.length - self.prefix_length for sample in self.samples
        )

    @property
    def num_shared_images(self) -> int:
        """Images within the shared tokens, of which each conversation has as many."""
        return self.samples[0].num_images_before(self.prefix_length)


def group_by_images(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the indices of samples in groups of those that show the same images; one without stands alone."""
    groups: dict[Hashable, list[int]] = {}
    for at, sample in enumerate(samples):
        key = (sample.images, sample.layouts) if sample.images else at
        groups.setdefault(key, []).append(at)
    return list(groups.values())


def build_packs(samples: Sequence[Sample], *, share: bool) -> list[Pack]:
    """Put samples into packs: those that are alike up to the end of their first image into one, others alone.

    Args:
        samples: Of a step, or a part of one.
        share: Whether samples may share a prefix; each stands alone if not.
    """
    alike: dict[Hashable, list[Sample]] = {}
    for at, sample in enumerate(samples):
        begins: Hashable = at
        if share and sample.images:
            begins = (sample.images, sample.layouts, sample.ids[: sample.image_ends[0]])
        alike.setdefault(begins, []).append(sample)
    return [
        Pack(tuple(some), _common_prefix_length(some) if len(some) > 1 else 0)
        for some in alike.values()
    ]


def _common_prefix_length(samples: Sequence[Sample]) -> int:
    """Return how many tokens at the beginning all samples have in common, before any that is learned or is the last."""
    first, *others = samples
    most = min(sample.length for sample in samples) - 1
    for at in range(most):
        if any(sample.labels[at] != IGNORE_INDEX for sample in samples):
            return at
        if any(other.ids[at] != first.ids[at] for other in others):
            return at
    return most


def pack_micro_batches(
    packs: Sequence[Pack], *, tokens: int, samples: int | None = None
) -> list[list[Pack]]:
    """Put packs into as few passes as a greedy best fit finds: the longest first, each where least room is left.

    Args:
        packs: Of one step.
        tokens: Most tokens of a pass; a pack that is longer goes alone.
        samples: Most samples of a pass, if that counts too; a pack of more goes alone.

    Returns:
        The passes, in an order that the packs' order alone decides.
    """
    room: Callable[[list[Pack]], int] = lambda some: tokens - sum(one.length for one in some)  # noqa: E731
    micro_batches: list[list[Pack]] = []
    for one in sorted(packs, key=lambda each: -each.length):
        fitting = [
            some
            for some in micro_batches
            if one.length <= room(some)
            and (samples is None or sum(len(each.samples) for each in [*some, one]) <= samples)
        ]
        if fitting:
            min(fitting, key=room).append(one)
        else:
            micro_batches.append([one])
    return micro_batches
