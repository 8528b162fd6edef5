"""Every projector of the table changes only the last axis, and can be calibrated to word embeddings."""

import pytest
import torch

from caldera.errors import UnknownNameError
from caldera.model.projector import PROJECTORS, build_projector, match_embedding_scale


@pytest.mark.parametrize("name", PROJECTORS)
def test_only_the_last_axis_changes(name: str) -> None:
    """Vision width becomes language width; the other axes are unchanged."""
    assert build_projector(name, 5, 7)(torch.zeros(2, 3, 5)).shape == (2, 3, 7)


@pytest.mark.parametrize("name", PROJECTORS)
def test_every_weight_has_a_gradient(name: str) -> None:
    """A loss on the image tokens reaches every weight of the projector, and the patches before it."""
    torch.manual_seed(0)
    patches = torch.randn(2, 3, 5, requires_grad=True)
    projector = build_projector(name, 5, 7)

    projector(patches).square().sum().backward()

    gradients = {name: weight.grad for name, weight in projector.named_parameters()}
    gradients["patches"] = patches.grad
    zero = [name for name, grad in gradients.items() if grad is None or not grad.abs().sum() > 0]
    assert zero == []
    in_layers = {id(weight) for layer in projector.layers for weight in layer.parameters()}
    assert in_layers == {id(weight) for weight in projector.parameters()}


@pytest.mark.parametrize("name", PROJECTORS)
@pytest.mark.parametrize("spread", [0.05, 20.0])
def test_a_calibrated_projector_has_the_scale_of_word_embeddings(name: str, spread: float) -> None:
    """Whatever the scale of the tower's features, image tokens have the standard deviation of word embeddings."""
    torch.manual_seed(0)
    patches, words = torch.randn(11, 13, 5) * spread, torch.randn(17, 7) * 0.3
    projector = build_projector(name, 5, 7)
    match_embedding_scale(projector, patches, words)
    assert projector(patches).std().item() == pytest.approx(words.std().item(), rel=0.01)


def test_projectors_are_found_by_exact_name() -> None:
    """A wrong name gets a suggestion."""
    with pytest.raises(UnknownNameError, match="did you mean 'mlp2x_gelu'"):
        build_projector("mlp2x-gelu", 5, 7)
