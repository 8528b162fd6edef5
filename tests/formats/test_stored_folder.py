"""A model folder and an adapter folder that version 0.1 wrote load with the logits that they had there."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from caldera.formats.lora_adapter import merge_adapter
from caldera.formats.model_folder import load_model_folder
from caldera.images.anyres import choose_layout
from caldera.model.bundle import LlavaBundle

STORED = Path(__file__).parent / "stored_folder_0_1"
"""Model folder with tiles, adapter on its language model, and inputs with the logits of both."""


@torch.no_grad()
def logits(assistant: LlavaBundle, expected: dict[str, Tensor]) -> Tensor:
    """Return the logits for the stored inputs."""
    model = assistant.model
    layout = choose_layout((12, 6), assistant.card.pinpoints, assistant.processor.side)
    embedded = model.embed(expected["ids"], expected["pixels"], [layout])
    return model.language(inputs_embeds=embedded).logits[0]


def test_a_model_folder_of_version_0_1_is_loaded() -> None:
    """Former keys of caldera.json give the metadata, and the logits are the stored ones."""
    assistant = load_model_folder(STORED / "model")
    metadata, expected = assistant.card, load_file(STORED / "expected.safetensors")
    assert (metadata.vision_feature_layer, metadata.feature_select) == (-1, "patch")
    assert (metadata.image_aspect, metadata.pinpoints) == ("anyres", ((12, 6), (6, 12)))
    assert metadata.source_digests == {"vision": "1", "language": "2"}
    assert assistant.processor.pinpoints == metadata.pinpoints
    torch.testing.assert_close(logits(assistant, expected), expected["model"], atol=1e-5, rtol=0)


def test_an_adapter_of_version_0_1_is_merged() -> None:
    """Its digest, over former names of weights, fits its base, and the logits are the stored ones."""
    merged = merge_adapter(STORED / "adapter", load_model_folder(STORED / "model"))
    expected = load_file(STORED / "expected.safetensors")
    assert merged.card.stage == "finetune"
    assert not torch.allclose(expected["adapter"], expected["model"], atol=0.1)
    torch.testing.assert_close(logits(merged, expected), expected["adapter"], atol=1e-5, rtol=0)
