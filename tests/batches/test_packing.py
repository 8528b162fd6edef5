"""Packs share exactly what conversations have in common; batches keep tokens, positions, targets and images."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caldera.batches.image_sources import ImageSource
from caldera.batches.packing import (
    Pack,
    PackedRow,
    build_packs,
    collate,
    group_by_images,
    pack_micro_batches,
)
from caldera.batches.samples import Sample
from caldera.images.anyres import SINGLE_VIEW
from caldera.templates.encoding import IGNORE_INDEX

IMAGE = 99


def letters(name: str, *, before: str = "", image: str = "", text: str, answer: str) -> Sample:
    """Return a sample of letters: text before an image of three tokens, text after it, and a supervised answer."""
    ids = [ord(letter) for letter in before] + [IMAGE] * 3 * bool(image)
    end = len(ids)
    ids += [ord(letter) for letter in text]
    labels = [IGNORE_INDEX] * len(ids) + [ord(letter) for letter in answer]
    ids += [ord(letter) for letter in answer]
    images = ((Path(image),), (SINGLE_VIEW,), (end,)) if image else ((), (), ())
    return Sample(name, tuple(ids), tuple(labels), *images)


def numbers(name: str, length: int, images: int = 0) -> Sample:
    """Return a sample whose last two tokens are supervised."""
    ids = tuple(range(10, 10 + length))
    labels = (*(IGNORE_INDEX,) * (length - 2), *ids[-2:])
    paths = tuple(Path(f"{index}.png") for index in range(images))
    return Sample(name, ids, labels, paths, (SINGLE_VIEW,) * images, tuple(range(1, 1 + images)))


def load(views: int) -> ImageSource:
    """Return a source that loads a number of views."""
    return lambda paths, layouts=None: torch.zeros(views, 2)


def test_a_prefix_ends_where_samples_differ() -> None:
    """System text, image and the same first words are stored once."""
    first = letters("a", before="sys", image="p", text="what is", answer="x")
    second = letters("b", before="sys", image="p", text="where", answer="y")
    [pack] = build_packs([first, second], share=True)
    assert pack == Pack((first, second), len("sys") + 3 + len("wh"))
    assert pack.new_images() == [(Path("p"), SINGLE_VIEW)]
    assert pack.length == first.length + second.length - pack.prefix_length


def test_a_supervised_token_is_never_shared() -> None:
    """Captions with the same beginning share the image alone, as each has its own loss."""
    first = letters("a", image="p", text="", answer="a dog")
    second = letters("b", image="p", text="", answer="a cat")
    [pack] = build_packs([first, second], share=True)
    assert pack.prefix_length == 3


def test_equal_samples_keep_a_token_each() -> None:
    """The same sample twice is one prefix and two branches."""
    sample = letters("a", image="p", text="q", answer="")
    [pack] = build_packs([sample, sample], share=True)
    assert pack.prefix_length == sample.length - 1


@pytest.mark.parametrize("share", [True, False])
def test_other_samples_are_packs_of_their_own(share: bool) -> None:
    """Samples of other images, of none, or with the image after other words; all of them where none may share."""
    samples = [
        letters("a", before="sys", image="p", text="what", answer="x"),
        letters("b", before="sys", image="q", text="what", answer="x"),
        letters("c", text="sys what", answer="x"),
        letters("d", text="sys what", answer="x"),
        letters("e", before="other", image="p", text="what", answer="x"),
    ]
    assert build_packs(samples, share=share) == [Pack((sample,), 0) for sample in samples]
    assert build_packs([samples[0]] * 2, share=False) == [Pack((samples[0],), 0)] * 2


def test_a_sample_with_another_beginning_does_not_affect_the_others() -> None:
    """Two of three samples about an image share it."""
    first = letters("a", before="sys", image="p", text="what", answer="x")
    odd = letters("b", before="other", image="p", text="what", answer="x")
    second = letters("c", before="sys", image="p", text="where", answer="x")
    expected = [Pack((first, second), 8), Pack((odd,), 0)]
    assert build_packs([first, odd, second], share=True) == expected


def test_groups_are_by_images_in_order() -> None:
    """The same images in another order, or with another layout, are another group."""
    one_image = letters("a", image="p", text="x", answer="y")
    layouts = (SINGLE_VIEW, SINGLE_VIEW)
    two_images = Sample("b", (1,), (1,), (Path("p"), Path("q")), layouts, (0, 1))
    swapped = Sample("c", (1,), (1,), (Path("q"), Path("p")), layouts, (0, 1))
    samples = [one_image, two_images, swapped, one_image, two_images]
    assert group_by_images(samples) == [[0, 3], [1, 4], [2]]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    max_tokens=st.integers(20, 100),
    max_samples=st.none() | st.integers(1, 5),
)
def test_micro_batches_hold_all_packs_within_their_limits(
    lengths: list[int], max_tokens: int, max_samples: int | None
) -> None:
    """Every pack once; a micro-batch is over a limit only if it is one pack; no two could be one."""
    packs = [Pack((letters(str(i), text="x" * n, answer=""),), 0) for i, n in enumerate(lengths)]
    micro_batches = pack_micro_batches(packs, max_tokens=max_tokens, max_samples=max_samples)
    packed = [pack for micro_batch in micro_batches for pack in micro_batch]
    assert sorted(map(id, packed)) == sorted(map(id, packs))
    totals = [sum(pack.length for pack in micro_batch) for micro_batch in micro_batches]
    for micro_batch, total in zip(micro_batches, totals, strict=True):
        within = max_samples is None or len(micro_batch) <= max_samples
        assert len(micro_batch) == 1 or (total <= max_tokens and within)
    if max_samples is None and len(totals) > 1:
        first, second = sorted(totals)[:2]
        assert first + second > max_tokens


def test_best_fit_is_tighter_than_first_fit() -> None:
    """Long packs are completed by short ones."""
    lengths = (30, 60, 70, 40, 50, 50)
    packs = [Pack((letters("x", text="x" * n, answer=""),), 0) for n in lengths]
    micro_batches = pack_micro_batches(packs, max_tokens=100)
    packed = [[pack.length for pack in micro_batch] for micro_batch in micro_batches]
    assert packed == [[70, 30], [60, 40], [50, 50]]


def test_unshared_samples_are_concatenated() -> None:
    """No token is padding; each supervised token is predicted from the one before it."""
    batch = collate([Pack((numbers("a", 3),), 0), Pack((numbers("b", 5),), 0)], load(0))

    assert batch.input_ids.tolist() == [10, 11, 12, 10, 11, 12, 13, 14]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert batch.rows == (PackedRow(0, 0, (3,)), PackedRow(3, 0, (5,)))
    assert batch.target_positions.tolist() == [0, 1, 5, 6]
    assert batch.target_ids.tolist() == [11, 12, 13, 14]
    assert batch.num_supervised_tokens == 4


def test_a_shared_prefix_is_stored_once() -> None:
    """Positions continue it in each branch; its last token predicts the first supervised one of each branch."""
    packs = [Pack((numbers("x", 3),), 0), Pack((numbers("a", 4), numbers("b", 5)), 2)]
    batch = collate(packs, load(0))

    assert batch.input_ids.tolist() == [10, 11, 12, 10, 11, 12, 13, 12, 13, 14]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 2, 3, 4]
    assert batch.rows == (PackedRow(0, 0, (3,)), PackedRow(3, 2, (2, 3)))
    assert batch.target_positions.tolist() == [0, 1, 4, 5, 7, 8]
    assert batch.target_ids.tolist() == [11, 12, 12, 13, 13, 14]


def test_a_first_token_is_never_predicted() -> None:
    """There is no token before it."""
    batch = collate([Pack((Sample("a", (5, 6), (5, 6), (), (), ()),), 0)], load(0))
    assert batch.target_ids.tolist() == [6]


def test_shared_images_are_loaded_once() -> None:
    """An image after the shared tokens is loaded for each sample."""
    packs = [Pack((numbers("a", 6, images=2), numbers("b", 7, images=2)), 1)]
    batch = collate(packs, load(3))
    assert batch.image_paths == (Path("0.png"), Path("1.png"), Path("1.png"))
    assert len(batch.layouts) == 3


def test_images_and_samples_must_agree() -> None:
    """A view too many or too few is an error with both numbers."""
    with pytest.raises(ValueError, match="have 2 views of images but 1 were loaded"):
        collate([Pack((numbers("a", 3, images=2),), 0)], load(1))
