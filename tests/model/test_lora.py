"""Fresh LoRA layers change nothing, and merged ones give the same logits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.errors import ModelFormatError, UnknownNameError, UsageError
from caldera.formats.assemble import assemble
from caldera.model.bundle import LlavaBundle
from caldera.model.lora import (
    add_lora,
    linear_layers,
    lora_layers,
    lora_parameters,
    merge_lora_layers,
    target_layers,
)
from caldera.model.lora_config import LoraConfig

LORA = LoraConfig(rank=3, alpha=7.0, dropout=0.4)
IDS = torch.tensor([[1, 5, 9, 2, 7]])


def logits(language: PreTrainedModel) -> Tensor:
    """Return a language model's logits for five tokens."""
    with torch.no_grad():
        return language(input_ids=IDS).logits


def perturb(language: PreTrainedModel, scale: float = 0.3) -> None:
    """Add noise to every LoRA weight."""
    torch.manual_seed(8)
    with torch.no_grad():
        for weight in lora_parameters(language):
            weight.add_(scale * torch.randn_like(weight))


def with_lora(assistant: LlavaBundle, lora: LoraConfig = LORA) -> PreTrainedModel:
    """Add LoRA to the language model and return it."""
    language = assistant.model.language
    add_lora(language, target_layers(language, lora.targets), lora, seed=5)
    return language


def test_layers_are_those_of_the_language_models_blocks(assistant: LlavaBundle) -> None:
    """Seven in each of two blocks, by full path; neither the head nor one of the tower's `q_proj`."""
    language = assistant.model.language
    layers = linear_layers(language)
    assert len(layers) == 14
    assert all(layer.startswith("model.layers.") for layer in layers)
    with_lora(assistant)
    assert len(lora_layers(assistant.model)) == 14
    assert not lora_layers(assistant.model.vision)
    assert not lora_layers(assistant.model.projector)
    assert type(language.get_output_embeddings()) is nn.Linear


def test_fresh_lora_changes_nothing(assistant: LlavaBundle) -> None:
    """`up` starts at zero: not one bit of the logits differs, and the layers have different `down` weights."""
    before = logits(assistant.model.language)
    language = with_lora(assistant)
    assert torch.equal(logits(language), before)
    downs = [layer.down.weight for layer in lora_layers(language).values()]
    assert all(bool(down.any()) for down in downs)
    assert not torch.equal(downs[0], downs[1])


def test_merging_gives_the_same_logits_with_plain_layers(assistant: LlavaBundle) -> None:
    """A model far from its base gives the same logits after merging."""
    before = logits(assistant.model.language)
    names = list(assistant.model.state_dict())
    language = with_lora(assistant)
    perturb(language)
    perturbed = logits(language)
    assert not torch.allclose(perturbed, before, atol=0.1)

    merge_lora_layers(language)

    torch.testing.assert_close(logits(language), perturbed, rtol=1e-4, atol=1e-4)
    assert not lora_layers(language)
    assert list(assistant.model.state_dict()) == names


def test_weights_too_coarse_for_the_update_are_rejected(assistant: LlavaBundle) -> None:
    """In bf16 a small update is lost in rounding; the merged model is not accepted as equal."""
    assistant.model.to(torch.bfloat16)
    language = with_lora(assistant)
    perturb(language, scale=0.1)
    with pytest.raises(ModelFormatError, match=r"logits by up to .*; merge into fp32"):
        merge_lora_layers(language)


def test_weights_that_are_not_finite_are_rejected(assistant: LlavaBundle) -> None:
    """A NaN does not pass the comparison."""
    language = with_lora(assistant)
    perturb(language)
    with torch.no_grad():
        lora_parameters(language)[0][0, 0] = torch.nan
    with pytest.raises(ModelFormatError, match="by up to nan"):
        merge_lora_layers(language)


def test_dropout_is_active_in_training_only(assistant: LlavaBundle) -> None:
    """Two passes differ in training and agree bit for bit in evaluation."""
    language = with_lora(assistant)
    perturb(language)
    assert torch.equal(logits(language), logits(language))
    language.train()
    assert not torch.equal(logits(language), logits(language))


def test_layers_can_be_selected_by_name(
    vision_folder: Path, gpt2_folder: Path, assistant: LlavaBundle
) -> None:
    """Two names select two layers per block; a wrong name gets a suggestion, a model without linear layers a reason."""
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
    """Three invalid numbers, three errors."""
    with pytest.raises(UsageError, match=r"rank is 0.*alpha is -1.*dropout is 1"):
        LoraConfig(rank=0, alpha=-1.0, dropout=1.0)
