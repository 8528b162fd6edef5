"""Low-rank factors: fresh ones change nothing, only they would move, and folded in they say the same."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.errors import ModelFolderError, UnknownNameError, UsageError
from caldera.model.assemble import assemble
from caldera.model.folder import Assistant
from caldera.model.low_rank import (
    Lora,
    add_factors,
    chosen_layers,
    factors_of,
    fold,
    layers_with_factors,
    linear_layers,
)

LORA = Lora(rank=3, alpha=7.0, dropout=0.4)
IDS = torch.tensor([[1, 5, 9, 2, 7]])


def logits(language: PreTrainedModel) -> Tensor:
    """Return what a language model says after five tokens."""
    with torch.no_grad():
        return language(input_ids=IDS).logits


def steer(language: PreTrainedModel, by: float = 0.3) -> None:
    """Move every factor off where it began."""
    torch.manual_seed(8)
    with torch.no_grad():
        for factor in factors_of(language):
            factor.add_(by * torch.randn_like(factor))


def with_factors(assistant: Assistant, lora: Lora = LORA) -> PreTrainedModel:
    """Put factors into an assistant's language model."""
    language = assistant.model.language
    add_factors(language, chosen_layers(language, lora.targets), lora, seed=5)
    return language


def test_layers_are_those_of_the_language_models_blocks(assistant: Assistant) -> None:
    """Seven in each of two blocks, by full path; neither the head nor one of the tower's `q_proj`."""
    language = assistant.model.language
    layers = linear_layers(language)
    assert len(layers) == 14
    assert all(layer.startswith("model.layers.") for layer in layers)
    with_factors(assistant)
    assert len(layers_with_factors(assistant.model)) == 14
    assert not layers_with_factors(assistant.model.vision)
    assert not layers_with_factors(assistant.model.projector)
    assert type(language.get_output_embeddings()) is nn.Linear


def test_fresh_factors_change_nothing(assistant: Assistant) -> None:
    """`up` begins at zero: not one bit of the logits differs, and equal seeds draw equal factors."""
    before = logits(assistant.model.language)
    language = with_factors(assistant)
    assert torch.equal(logits(language), before)
    downs = [layer.down.weight for layer in layers_with_factors(language).values()]
    assert all(bool(down.any()) for down in downs)
    assert not torch.equal(downs[0], downs[1])


def test_folding_keeps_what_is_said_and_leaves_plain_layers(assistant: Assistant) -> None:
    """Steered far from its base, a model says the same once its factors are folded in."""
    before = logits(assistant.model.language)
    names = list(assistant.model.state_dict())
    language = with_factors(assistant)
    steer(language)
    steered = logits(language)
    assert not torch.allclose(steered, before, atol=0.1)

    fold(language)

    torch.testing.assert_close(logits(language), steered, rtol=1e-4, atol=1e-4)
    assert not layers_with_factors(language)
    assert list(assistant.model.state_dict()) == names


def test_weights_too_coarse_for_the_factors_are_refused(assistant: Assistant) -> None:
    """In bf16 a small steering is lost in rounding; the merged model is not passed off as the same."""
    assistant.model.to(torch.bfloat16)
    language = with_factors(assistant)
    steer(language, by=0.1)
    with pytest.raises(ModelFolderError, match=r"logits that differ by up to .*; fold into fp32"):
        fold(language)


def test_factors_that_are_not_finite_are_refused(assistant: Assistant) -> None:
    """A NaN cannot slip through the comparison."""
    language = with_factors(assistant)
    steer(language)
    with torch.no_grad():
        factors_of(language)[0][0, 0] = torch.nan
    with pytest.raises(ModelFolderError, match="differ by up to nan"):
        fold(language)


def test_factors_drop_out_in_training_alone(assistant: Assistant) -> None:
    """Two passes differ in training and agree bit for bit in evaluation."""
    language = with_factors(assistant)
    steer(language)
    assert torch.equal(logits(language), logits(language))
    language.train()
    assert not torch.equal(logits(language), logits(language))


def test_layers_can_be_chosen_by_their_last_name(
    vision_folder: Path, gpt2_folder: Path, assistant: Assistant
) -> None:
    """Two names give factors to two layers a block; a wrong name is answered with the nearest, no layers with why."""
    language = assistant.model.language
    assert chosen_layers(language, ("q_proj", "up_proj")) == [
        f"model.layers.{block}.{name}"
        for block in range(2)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    ]
    with pytest.raises(UnknownNameError, match="did you mean 'q_proj'"):
        chosen_layers(language, ("q_prj",))
    other = assemble(vision_folder, gpt2_folder)
    with pytest.raises(UsageError, match="of type 'gpt2' have no linear layers"):
        chosen_layers(other.model.language, ())


def test_settings_out_of_range_are_all_named() -> None:
    """Three wrong numbers, three complaints."""
    with pytest.raises(UsageError, match=r"rank is 0.*alpha is -1.*dropout is 1"):
        Lora(rank=0, alpha=-1.0, dropout=1.0)
