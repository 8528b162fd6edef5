"""The loss is the cross entropy of the language model's own logits, whatever family it is of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from caldera.batches.packing import build_packs, collate
from caldera.batches.samples import Sample
from caldera.errors import ModelFormatError
from caldera.images.anyres import SINGLE_VIEW
from caldera.model.llava import LOGIT_TRANSFORMS, Llava, check_logits_match
from caldera.model.projector import build_projector
from caldera.model.vision_tower import VisionTower
from caldera.templates.encoding import IGNORE_INDEX
from tests.laying import padded

VOCABULARY, IMAGE = 37, 36
WIDTHS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "intermediate_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
HEADS: dict[str, Any] = {**WIDTHS, "head_dim": 6}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**WIDTHS),
    "qwen2": Qwen2Config(**WIDTHS),
    "phi3": Phi3Config(**WIDTHS),
    "gemma": GemmaConfig(**HEADS),
    "gemma2": Gemma2Config(**HEADS, final_logit_softcapping=2.0),
    "granite": GraniteConfig(**WIDTHS, logits_scaling=7.0),
    "cohere": CohereConfig(**WIDTHS, logit_scale=0.3),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    ),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=12,
        word_embed_proj_dim=12,
        ffn_dim=22,
        num_hidden_layers=2,
        num_attention_heads=2,
        init_std=0.5,
    ),
}


def language_model(family: str) -> PreTrainedModel:
    """Return a tiny random language model in evaluation mode."""
    torch.manual_seed(4)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(FAMILIES[family])
    return model.eval()


def joined(language: PreTrainedModel) -> Llava:
    """Return a model with a tower of 3 x 3 patches."""
    shape = CLIPVisionConfig(
        hidden_size=10,
        intermediate_size=14,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=6,
        patch_size=2,
    )
    tower = VisionTower(CLIPVisionModel(shape).eval(), side=6)
    return Llava(tower, build_projector("mlp2x_gelu", 10, 12), language, IMAGE).eval()


def samples() -> list[Sample]:
    """Return two samples of different lengths, the second with an image."""
    rng = torch.Generator().manual_seed(5)
    first, second = (
        torch.randint(3, IMAGE, (length,), generator=rng).tolist() for length in (9, 17)
    )
    second[2:11] = [IMAGE] * 9
    shown = ((Path("a.png"),), (SINGLE_VIEW,), (11,))
    return [
        Sample("a", tuple(first), (*[IGNORE_INDEX] * 5, *first[5:]), (), (), ()),
        Sample("b", tuple(second), (*[IGNORE_INDEX] * 12, *second[12:]), *shown),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_loss_is_that_of_the_models_own_logits(family: str) -> None:
    """Logits at labeled positions alone give the loss that transformers' logits at all positions give."""
    language: Any = language_model(family)
    model, rows = joined(language), padded(samples())
    pixels = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    batch = collate(build_packs(samples(), share=False), lambda paths: pixels)
    check_logits_match(language)
    logits = language(
        inputs_embeds=model.embed(rows.ids, pixels, batch.layouts),
        attention_mask=rows.mask,
    ).logits  # (rows, tokens, vocabulary)

    expected = cross_entropy(
        logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten(), reduction="sum"
    )

    loss = model(batch)
    assert loss.num_tokens == 9
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", LOGIT_TRANSFORMS)
def test_every_rule_is_met_by_a_family(setting: str) -> None:
    """Each setting of the table belongs to a model above, where it is not neutral."""
    values = [config.to_dict().get(setting) for config in FAMILIES.values()]
    assert [value for value in values if value not in (None, 1.0)]


def test_a_model_with_another_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model's logits are not the ones that the loss would be taken of, it is not joined."""
    language = language_model("granite")
    monkeypatch.delitem(LOGIT_TRANSFORMS, "logits_scaling")
    with pytest.raises(ModelFormatError, match="'granite' change their logits"):
        check_logits_match(language)
