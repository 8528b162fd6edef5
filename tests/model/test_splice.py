"""Image tokens land where their slots are, in order, and in exact number."""

import pytest
import torch

from caldera.model.llava import insert_image_tokens


def test_rows_land_in_order() -> None:
    """The first image fills the first marks, the next image the next; words stay."""
    words = torch.zeros(2, 7, 3)
    image = torch.arange(2 * 2 * 3, dtype=torch.float32).reshape(2, 2, 3) + 1
    marks = torch.tensor([[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1, 0]], dtype=torch.bool)

    joined = insert_image_tokens(words, image.flatten(0, 1), marks)

    assert torch.equal(joined[0, 1:3], image[0])
    assert torch.equal(joined[1, [3, 5]], image[1])
    assert joined[~marks].abs().sum() == 0


@pytest.mark.parametrize("images", [0, 2, 3])
def test_a_wrong_number_is_an_error(images: int) -> None:
    """Counts that disagree stop the step, with both numbers in the message."""
    marks = torch.tensor([[True] * 5])
    with pytest.raises(ValueError, match=rf"5 tokens .* {images * 4} image tokens"):
        insert_image_tokens(torch.zeros(1, 5, 3), torch.zeros(images * 4, 3), marks)


def test_without_images_the_projector_stays_in_the_graph() -> None:
    """Text alone can be trained on where only the projector learns; its gradient is zero."""
    projector = torch.nn.Linear(2, 3)
    joined = insert_image_tokens(
        torch.ones(1, 4, 3), projector(torch.zeros(0, 2)), torch.zeros(1, 4) > 0
    )
    joined.sum().backward()
    assert torch.equal(joined, torch.ones(1, 4, 3))
    assert projector.weight.grad is not None
    assert projector.weight.grad.abs().sum() == 0
