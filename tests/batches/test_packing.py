"""Packs share what conversations have in common, and nothing else; passes hold what fits."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from caldera.batches.packing import Pack, build_packs, group_by_images, pack_micro_batches
from caldera.batches.samples import Sample
from caldera.images.anyres import SINGLE_VIEW
from caldera.templates.encoding import IGNORE_INDEX

IMAGE = 99


def sample(name: str, *, before: str = "", image: str = "", text: str, answer: str) -> Sample:
    """Return a sample of letters: text before an image of three tokens, text behind it, and a learned answer."""
    ids = [ord(letter) for letter in before] + [IMAGE] * 3 * bool(image)
    end = len(ids)
    ids += [ord(letter) for letter in text]
    labels = [IGNORE_INDEX] * len(ids) + [ord(letter) for letter in answer]
    ids += [ord(letter) for letter in answer]
    shown = ((Path(image),), (SINGLE_VIEW,), (end,)) if image else ((), (), ())
    return Sample(name, tuple(ids), tuple(labels), *shown)


def test_what_is_shared_ends_where_samples_differ() -> None:
    """System text, image and the same first words come once."""
    one = sample("a", before="sys", image="p", text="what is", answer="x")
    other = sample("b", before="sys", image="p", text="where", answer="y")
    [made] = build_packs([one, other], share=True)
    assert made == Pack((one, other), len("sys") + 3 + len("wh"))
    assert made.new_images() == [(Path("p"), SINGLE_VIEW)]
    assert made.length == one.length + other.length - made.prefix_length


def test_what_is_learned_is_never_shared() -> None:
    """Captions that begin alike share the image alone, as each learns its own."""
    one = sample("a", image="p", text="", answer="a dog")
    other = sample("b", image="p", text="", answer="a cat")
    [made] = build_packs([one, other], share=True)
    assert made.prefix_length == 3


def test_equal_samples_keep_a_token_each() -> None:
    """The same sample twice is one prefix and two branches."""
    one = sample("a", image="p", text="q", answer="")
    [made] = build_packs([one, one], share=True)
    assert made.prefix_length == one.length - 1


@pytest.mark.parametrize("share", [True, False])
def test_others_stand_alone(share: bool) -> None:
    """Samples of other images, of none, or with the image behind other words; all of them where none may share."""
    samples = [
        sample("a", before="sys", image="p", text="what", answer="x"),
        sample("b", before="sys", image="q", text="what", answer="x"),
        sample("c", text="sys what", answer="x"),
        sample("d", text="sys what", answer="x"),
        sample("e", before="other", image="p", text="what", answer="x"),
    ]
    assert build_packs(samples, share=share) == [Pack((each,), 0) for each in samples]
    assert build_packs([samples[0]] * 2, share=False) == [Pack((samples[0],), 0)] * 2


def test_one_that_begins_otherwise_does_not_hinder_the_others() -> None:
    """Two of three about an image share it."""
    one = sample("a", before="sys", image="p", text="what", answer="x")
    odd = sample("b", before="other", image="p", text="what", answer="x")
    other = sample("c", before="sys", image="p", text="where", answer="x")
    assert build_packs([one, odd, other], share=True) == [Pack((one, other), 8), Pack((odd,), 0)]


def test_groups_are_by_images_in_order() -> None:
    """The same images in another order, or shown otherwise, are another group."""
    one = sample("a", image="p", text="x", answer="y")
    two = Sample("b", (1,), (1,), (Path("p"), Path("q")), (SINGLE_VIEW, SINGLE_VIEW), (0, 1))
    swapped = Sample("c", (1,), (1,), (Path("q"), Path("p")), (SINGLE_VIEW, SINGLE_VIEW), (0, 1))
    assert group_by_images([one, two, swapped, one, two]) == [[0, 3], [1, 4], [2]]


@given(
    lengths=some.lists(some.integers(1, 60), min_size=1, max_size=30),
    tokens=some.integers(20, 100),
    most=some.none() | some.integers(1, 5),
)
def test_passes_hold_all_packs_within_their_limits(
    lengths: list[int], tokens: int, most: int | None
) -> None:
    """Every pack once; a pass is over a limit only if it is one pack; no two passes fit into one."""
    packs = [Pack((sample(str(at), text="x" * n, answer=""),), 0) for at, n in enumerate(lengths)]
    passes = pack_micro_batches(packs, max_tokens=tokens, max_samples=most)
    assert sorted(id(one) for each in passes for one in each) == sorted(id(one) for one in packs)
    sums = [sum(one.length for one in each) for each in passes]
    for each, total in zip(passes, sums, strict=True):
        assert len(each) == 1 or (total <= tokens and (most is None or len(each) <= most))
    if most is None and len(sums) > 1:
        first, second = sorted(sums)[:2]
        assert first + second > tokens


def test_best_fit_is_tighter_than_first_come() -> None:
    """Long packs are filled up by short ones."""
    packs = [Pack((sample("x", text="x" * n, answer=""),), 0) for n in (30, 60, 70, 40, 50, 50)]
    assert [[one.length for one in each] for each in pack_micro_batches(packs, max_tokens=100)] == [
        [70, 30], [60, 40], [50, 50]
    ]  # fmt: skip
