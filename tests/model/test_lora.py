"""Low-rank factors: fresh ones change nothing, only they would move, and folded in they say the same."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.errors import ModelFormatError, UnknownNameError, UsageError
from caldera.formats.assemble import assemble
from caldera.model.assistant import LlavaBundle
from caldera.model.lora import (
    LoraConfig,
    add_lora,
    linear_layers,
    lora_layers,
    lora_parameters,
    merge_lora_layers,
    target_layers,
)

LORA = LoraConfig(rank=3, alpha=7.0, dropout=0.4)
IDS = torch.tensor([[1, 5, 9, 2, 7]])


def logits(language: PreTrainedModel) -> Tensor:
    """Return what a language model says after five tokens."""
    with torch.no_grad():
        return language(input_ids=IDS).logits


def steer(language: PreTrainedModel, by: float = 0.3) -> None:
    """Move every factor off where it began."""
    torch.manual_seed(8)
    with torch.no_grad():
        for factor in lora_parameters(language):
            factor.add_(by * torch.randn_like(factor))


def with_factors(assistant: LlavaBundle, lora: LoraConfig = LORA) -> PreTrainedModel:
    """Put factors into an assistant's language model."""
    language = assistant.model.language
    add_lora(language, target_layers(language, lora.targets), lora, seed=5)
    return language


def test_layers_are_those_of_the_language_models_blocks(assistant: LlavaBundle) -> None:
    """Seven in each of two blocks, by full path; neither the head nor one of the tower's `q_proj`."""
    language = assistant.model.language
    layers = linear_layers(language)
    assert len(layers) == 14
    assert all(layer.startswith("model.layers.") for layer in layers)
    with_factors(assistant)
    assert len(lora_layers(assistant.model)) == 14
    assert not lora_layers(assistant.model.vision)
    assert not lora_layers(assistant.model.projector)
    assert type(language.get_output_embeddings()) is nn.Linear


def test_fresh_factors_change_nothing(assistant: LlavaBundle) -> None:
    """`up` begins at zero: not one bit of the logits differs, and equal seeds draw equal factors."""
    before = logits(assistant.model.language)
    language = with_factors(assistant)
    assert torch.equal(logits(language), before)
    downs = [layer.down.weight for layer in lora_layers(language).values()]
    assert all(bool(down.any()) for down in downs)
    assert not torch.equal(downs[0], downs[1])


def test_folding_keeps_what_is_said_and_leaves_plain_layers(assistant: LlavaBundle) -> None:
    """Steered far from its base, a model says the same once its factors are folded in."""
    before = logits(assistant.model.language)
    names = list(assistant.model.state_dict())
    language = with_factors(assistant)
    steer(language)
    steered = logits(language)
    assert not torch.allclose(steered, before, atol=0.1)

    merge_lora_layers(language)

    torch.testing.assert_close(logits(language), steered, rtol=1e-4, atol=1e-4)
    assert not lora_layers(language)
    assert list(assistant.model.state_dict()) == names


def test_weights_too_coarse_for_the_factors_are_refused(assistant: LlavaBundle) -> None:
    """In bf16 a small steering is lost in rounding; the merged model is not passed off as the same."""
    assistant.model.to(torch.bfloat16)
    language = with_factors(assistant)
    steer(language, by=0.1)
    with pytest.raises(ModelFormatError, match=r"logits by up to .*; merge into fp32"):
        merge_lora_layers(language)


def test_factors_that_are_not_finite_are_refused(assistant: LlavaBundle) -> None:
    """A NaN cannot slip through the comparison."""
    language = with_factors(assistant)
    steer(language)
    with torch.no_grad():
        lora_parameters(language)[0][0, 0] = torch.nan
    with pytest.raises(ModelFormatError, match="by up to nan"):
        merge_lora_layers(language)


def test_factors_drop_out_in_training_alone(assistant: LlavaBundle) -> None:
    """Two passes differ in training and agree bit for bit in evaluation."""
    language = with_factors(assistant)
    steer(language)
    assert torch.equal(logits(language), logits(language))
    language.train()
    assert not torch.equal(logits(language), logits(language))


def test_layers_can_be_chosen_by_their_last_name(
    vision_folder: Path, gpt2_folder: Path, assistant: LlavaBundle
) -> None:
    """Two names give factors to two layers a block; a wrong name is answered with the nearest, no layers with why."""
    language = assistant.model.language
    assert target_layers(language, ("q_proj", "up_proj")) == [
        f"model.layers.{block}.{name}"
        for block in range(2)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    ]
    with pytest.raises(UnknownNameError, match="did you mean 'q_proj'"):
        target_layers(language, ("q_prj",))
    other = assemble(vision_folder, gpt2_folder)
    with pytest.raises(UsageError, match="of type 'gpt2' have no linear layers"):
        target_layers(other.model.language, ())


def test_settings_out_of_range_are_all_named() -> None:
    """Three wrong numbers, three complaints."""
    with pytest.raises(UsageError, match=r"rank is 0.*alpha is -1.*dropout is 1"):
        LoraConfig(rank=0, alpha=-1.0, dropout=1.0)
