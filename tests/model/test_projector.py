"""Every projector of the table changes only the last axis, and can be fitted to the spread of words."""

import pytest
import torch

from caldera.errors import UnknownNameError
from caldera.model.projector import PROJECTORS, build_projector, match_embedding_scale


@pytest.mark.parametrize("name", PROJECTORS)
def test_only_the_last_axis_changes(name: str) -> None:
    """Images and patches pass through; vision width becomes language width."""
    assert build_projector(name, 5, 7)(torch.zeros(2, 3, 5)).shape == (2, 3, 7)


@pytest.mark.parametrize("name", PROJECTORS)
def test_everything_learns(name: str) -> None:
    """A loss on the image tokens reaches every weight of the projector, and the patches before it."""
    torch.manual_seed(0)
    patches = torch.randn(2, 3, 5, requires_grad=True)
    projector = build_projector(name, 5, 7)

    projector(patches).square().sum().backward()

    reached = {at: each.grad for at, each in projector.named_parameters()} | {"in": patches.grad}
    assert [at for at, grad in reached.items() if grad is None or not grad.abs().sum() > 0] == []
    assert {id(each) for layer in projector.layers for each in layer.parameters()} == {
        id(each) for each in projector.parameters()
    }


@pytest.mark.parametrize("name", PROJECTORS)
@pytest.mark.parametrize("spread", [0.05, 20.0])
def test_a_fitted_projector_puts_out_tokens_as_spread_as_words(name: str, spread: float) -> None:
    """Whatever the size of the tower's features, image tokens start out like word embeddings."""
    torch.manual_seed(0)
    patches, words = torch.randn(11, 13, 5) * spread, torch.randn(17, 7) * 0.3
    projector = build_projector(name, 5, 7)
    match_embedding_scale(projector, patches, words)
    assert projector(patches).std().item() == pytest.approx(words.std().item(), rel=0.01)


def test_projectors_are_found_by_exact_name() -> None:
    """A typo is answered with the nearest name."""
    with pytest.raises(UnknownNameError, match="did you mean 'mlp2x_gelu'"):
        build_projector("mlp2x-gelu", 5, 7)
