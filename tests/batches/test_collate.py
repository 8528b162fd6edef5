"""Packs laid behind one another keep their tokens, positions, what is learned, and their images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caldera.batches.packing import Pack, PackedRow, collate
from caldera.batches.samples import Sample
from caldera.images.anyres import SINGLE_VIEW
from caldera.templates.encoding import IGNORE_INDEX


def images(views: int) -> Callable[[Sequence[Path]], Tensor]:
    """Return a source that loads a number of views."""
    return lambda paths: torch.zeros(views, 2)


def sample(name: str, length: int, images: int = 0) -> Sample:
    """Return a sample whose last two tokens are learned."""
    ids = tuple(range(10, 10 + length))
    labels = (*(IGNORE_INDEX,) * (length - 2), *ids[-2:])
    paths = tuple(Path(f"{at}.png") for at in range(images))
    return Sample(name, ids, labels, paths, (SINGLE_VIEW,) * images, tuple(range(1, 1 + images)))


def test_samples_alone_lie_behind_one_another() -> None:
    """No token is padding; each learned token is predicted from the one before it."""
    batch = collate([Pack((sample("a", 3),), 0), Pack((sample("b", 5),), 0)], images(0))

    assert batch.input_ids.tolist() == [10, 11, 12, 10, 11, 12, 13, 14]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert batch.rows == (PackedRow(0, 0, (3,)), PackedRow(3, 0, (5,)))
    assert batch.target_positions.tolist() == [0, 1, 5, 6]
    assert batch.target_ids.tolist() == [11, 12, 13, 14]
    assert batch.num_supervised_tokens == 4


def test_a_shared_prefix_comes_once() -> None:
    """Positions restart behind it; its last token predicts the first of every branch that is learned at once."""
    one, other = sample("a", 4), sample("b", 5)
    batch = collate([Pack((sample("x", 3),), 0), Pack((one, other), 2)], images(0))

    assert batch.input_ids.tolist() == [10, 11, 12, 10, 11, 12, 13, 12, 13, 14]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 2, 3, 4]
    assert batch.rows == (PackedRow(0, 0, (3,)), PackedRow(3, 2, (2, 3)))
    assert batch.target_positions.tolist() == [0, 1, 4, 5, 7, 8]
    assert batch.target_ids.tolist() == [11, 12, 12, 13, 13, 14]


def test_a_first_token_is_never_predicted() -> None:
    """Nothing stands before it."""
    batch = collate([Pack((Sample("a", (5, 6), (5, 6), (), (), ()),), 0)], images(0))
    assert batch.target_ids.tolist() == [6]


def test_shared_images_come_with_the_first_sample() -> None:
    """One behind the shared tokens comes with each sample."""
    one, other = sample("a", 6, images=2), sample("b", 7, images=2)
    packs = [Pack((one, other), 1)]
    batch = collate(packs, images(3))
    assert batch.image_paths == (Path("0.png"), Path("1.png"), Path("1.png"))
    assert len(batch.layouts) == 3


def test_images_and_samples_must_agree() -> None:
    """An image too many or too few stops the batch, with both numbers."""
    with pytest.raises(ValueError, match="have 2 views of images but 1 were loaded"):
        collate([Pack((sample("a", 3, images=2),), 0)], images(1))
