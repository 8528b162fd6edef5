"""An adapter folder loads in peft, and merges exactly into its own base model and into no other."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from caldera.errors import ModelFormatError
from caldera.formats.assemble import add_special_tokens, assemble, with_image_aspect
from caldera.formats.lora_adapter import digest_base, merge_adapter, save_adapter
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.model.lora import (
    add_lora,
    lora_layers,
    lora_parameters,
    merge_lora_layers,
    target_layers,
)
from caldera.model.lora_config import LoraConfig
from caldera.templates.registry import find_template
from caldera.training.parameters import set_trainable

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft asks transformers by its old name
)

LORA = LoraConfig(rank=3, alpha=7.0, dropout=0.0, targets=("q_proj", "down_proj"))


def write_adapter(
    assistant: LlavaBundle, folder: Path, full_parts: tuple[str, ...] = ("projector",)
) -> None:
    """Add LoRA layers, change them and the full parts as training does, and write the adapter."""
    model = assistant.model
    base = digest_base(model, full_parts)
    add_lora(model.language, target_layers(model.language, LORA.targets), LORA, seed=5)
    set_trainable(model, [*full_parts, "language"])  # type: ignore[list-item] # parts
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    metadata = assistant.card.model_copy(update={"stage": "finetune"})
    save_adapter(folder, replace(assistant, card=metadata), LORA, base)


@pytest.mark.parametrize("full_parts", [("projector",), ("vision", "projector"), ()])
def test_merging_gives_the_trained_model_bit_for_bit(
    assistant: LlavaBundle, tmp_path: Path, full_parts: tuple[str, ...]
) -> None:
    """Base and adapter from disk give the weights of merging in memory, and the metadata of the training."""
    save_model_folder(tmp_path / "base", assistant)
    write_adapter(assistant, tmp_path / "adapter", full_parts)
    merge_lora_layers(assistant.model.language)

    merged = merge_adapter(tmp_path / "adapter", load_model_folder(tmp_path / "base"))

    assert merged.card.stage == "finetune"
    for name, weight in assistant.model.state_dict().items():
        assert torch.equal(merged.model.state_dict()[name], weight), name


def test_a_base_gets_the_special_tokens_of_the_training(
    assistant: LlavaBundle, tmp_path: Path
) -> None:
    """A run whose template needs tokens that the base lacks adds them before it starts; so does merging."""
    save_model_folder(tmp_path / "base", assistant)
    add_special_tokens(assistant.tokenizer, assistant.model.language, find_template("mpt"))
    metadata = assistant.card.model_copy(update={"template": "mpt"})
    write_adapter(replace(assistant, card=metadata), tmp_path / "adapter")
    merge_lora_layers(assistant.model.language)

    merged = merge_adapter(tmp_path / "adapter", load_model_folder(tmp_path / "base"))

    assert len(merged.tokenizer) == len(assistant.tokenizer)
    for name, weight in assistant.model.state_dict().items():
        assert torch.equal(merged.model.state_dict()[name], weight), name


@pytest.mark.parametrize("full_parts", [("projector",), ("vision", "projector")])
def test_peft_loads_it_onto_transformers_model(
    assistant: LlavaBundle, tmp_path: Path, full_parts: tuple[str, ...]
) -> None:
    """Loaded by peft, factors and projector give the logits of the merged model."""
    save_model_folder(tmp_path / "base", assistant)
    write_adapter(assistant, tmp_path / "adapter", full_parts)
    merge_lora_layers(assistant.model.language)
    save_model_folder(tmp_path / "merged", assistant)
    torch.manual_seed(7)
    ids = torch.tensor([[1, 5, *[assistant.model.image_token_id] * 9, 8, 4]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 6, 6)}

    def logits(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**inputs).logits

    base = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    merged = logits(LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged"))
    assert not torch.allclose(logits(base), merged, atol=0.1)
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), merged, rtol=1e-4, atol=1e-4
    )


def test_the_newline_embedding_is_in_the_adapter(
    vision_folder: Path, language_folder: Path, assistant: LlavaBundle, tmp_path: Path
) -> None:
    """A base without tiles gets the image aspect of the training; peft loads the newline embedding, too."""
    tiled = with_image_aspect(assistant, "anyres", ((12, 6), (6, 12)), seed=9)
    write_adapter(tiled, tmp_path / "adapter")
    merge_lora_layers(tiled.model.language)
    base = assemble(vision_folder, language_folder, seed=3)
    assert base.model.projector.image_newline is None

    merged = merge_adapter(tmp_path / "adapter", base)

    assert merged.processor == tiled.processor
    for name, weight in tiled.model.state_dict().items():
        assert torch.equal(merged.model.state_dict()[name], weight), name
    save_model_folder(
        tmp_path / "base",
        with_image_aspect(
            assemble(vision_folder, language_folder), "anyres", tiled.card.pinpoints, seed=1
        ),
    )
    other = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "base")
    peft_model = PeftModel.from_pretrained(other, tmp_path / "adapter")
    newline = dict(peft_model.named_parameters())["base_model.model.model.image_newline"]
    assert tiled.model.projector.image_newline is not None
    assert torch.equal(newline, tiled.model.projector.image_newline)


def test_gradients_are_pefts_own(
    vision_folder: Path, language_folder: Path, assistant: LlavaBundle
) -> None:
    """Equal factors in equal models get equal gradients in caldera and in peft."""
    language = assistant.model.language
    reference = assemble(vision_folder, language_folder, seed=3).model.language
    add_lora(language, target_layers(language, LORA.targets), LORA, seed=5)
    layers = lora_layers(language)
    config = PeftLoraConfig(
        r=LORA.rank, lora_alpha=7, lora_dropout=0.0, target_modules=list(LORA.targets)
    )
    wrapped = get_peft_model(reference, config)
    peft_factors = {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter
        for name, parameter in wrapped.named_parameters()
        if "lora_" in name
    }
    assert len(peft_factors) == 2 * len(layers) == 8
    torch.manual_seed(6)
    ids = torch.tensor([[1, 5, 9, 2, 7]])
    with torch.no_grad():
        for name, layer in layers.items():
            layer.up.weight.normal_()
            peft_factors[f"{name}.lora_A.weight"].copy_(layer.down.weight)
            peft_factors[f"{name}.lora_B.weight"].copy_(layer.up.weight)
    for model in (language, wrapped):
        model(input_ids=ids, labels=ids).loss.backward()

    for name, layer in layers.items():
        for factor, peft_name in ((layer.down, "lora_A"), (layer.up, "lora_B")):
            expected = peft_factors[f"{name}.{peft_name}.weight"].grad
            assert expected is not None
            assert bool(expected.any())
            torch.testing.assert_close(factor.weight.grad, expected, rtol=1e-5, atol=1e-6)


def test_the_folder_of_a_run_means_its_adapter(assistant: LlavaBundle, tmp_path: Path) -> None:
    """As the folder of a run means its model elsewhere."""
    save_model_folder(tmp_path / "base", assistant)
    write_adapter(assistant, tmp_path / "run" / "adapter")
    base = load_model_folder(tmp_path / "base")
    assert merge_adapter(tmp_path / "run", base).card.template == assistant.card.template


def test_another_base_is_rejected_with_both_digests(assistant: LlavaBundle, tmp_path: Path) -> None:
    """If one weight of the base differs, nothing is merged, and the message has both digests."""
    save_model_folder(tmp_path / "base", assistant)
    write_adapter(assistant, tmp_path / "adapter")
    other = load_model_folder(tmp_path / "base")
    expected = digest_base(other.model, ["projector"])
    with torch.no_grad():
        other.model.embedding_weight[0, 0] += 1e-3
    actual = digest_base(other.model, ["projector"])
    with pytest.raises(
        ModelFormatError, match=f"sha256 {expected}, this one has {actual}; give the"
    ):
        merge_adapter(tmp_path / "adapter", other)
    assert not lora_parameters(other.model)


def test_full_parts_of_the_base_may_differ(
    vision_folder: Path, language_folder: Path, assistant: LlavaBundle, tmp_path: Path
) -> None:
    """The adapter holds the projector, so a base with another projector is the same base."""
    write_adapter(assistant, tmp_path / "adapter")
    merge_lora_layers(assistant.model.language)
    fresh = assemble(vision_folder, language_folder, seed=4)
    merged = merge_adapter(tmp_path / "adapter", fresh)
    for name, weight in assistant.model.state_dict().items():
        assert torch.equal(merged.model.state_dict()[name], weight), name


def _config(**changes: object) -> Callable[[Path], object]:
    """Return a function that changes an adapter's settings."""

    def spoil(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return spoil


def _weights(change: Callable[[dict[str, torch.Tensor], str], object]) -> Callable[[Path], object]:
    """Return a function that changes an adapter's weights, given their dict and its first name."""

    def spoil(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        weights = load_file(file)
        change(weights, min(weights))
        save_file(weights, file)

    return spoil


def _cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "caldera_adapter.json").unlink(), "has no caldera_adapter.json"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{"),
            "has invalid adapter settings",
        ),
        (_config(r=10**12), r"it needs \(1000000000000, "),
        (_config(r=0), "rank is 0; it must be at least 1"),
        (_config(r=3.0), r"r is 3\.0"),
        (_config(use_rslora=True), "use_rslora True"),
        (_config(use_dora=True), "has use_dora True, which cannot be merged"),
        (_config(alpha_pattern={"q_proj": 9}), "has alpha_pattern .*, which cannot be merged"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("[" * 200_000),
            "is not readable JSON",
        ),
        (_config(target_modules=["model.vision_tower.q_proj"]), "the base does not have"),
        (_weights(lambda weights, name: weights.pop(name)), "missing .'base_model"),
        (_weights(lambda weights, name: weights.update(odd=torch.ones(1))), "unexpected .'odd'"),
        (_weights(lambda weights, name: weights.update({name: torch.ones(2, 5)})), "has shape"),
        (_cut, "broken or truncated"),
    ],
)
def test_a_broken_adapter_is_rejected(
    assistant: LlavaBundle, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    """The message names a missing, truncated or inconsistent file, before anything is merged."""
    save_model_folder(tmp_path / "base", assistant)
    write_adapter(assistant, tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(ModelFormatError, match=message):
        merge_adapter(tmp_path / "adapter", load_model_folder(tmp_path / "base"))
