"""Fast norms change no input of a matrix product, and no gradient except by rounding."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PretrainedConfig

from caldera.model.fast_norms import replace_norms
from tests.tiny_languages import LANGUAGES

GPT2 = GPT2Config(n_embd=12, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
SHAPES: dict[str, PretrainedConfig] = {
    **{name: LANGUAGES[name] for name in ("llama", "qwen3", "gemma", "phi3")},
    "gpt2": GPT2,
}
PRECISIONS = (torch.bfloat16, torch.float32)


def built(family: str) -> Any:  # noqa: ANN401 - transformers' factories share no type
    """Return a random language model whose norms are not all ones."""
    shape = SHAPES[family]
    shape.update({"vocab_size": 50})
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(shape).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn(weight.shape))
    return model


@pytest.mark.parametrize("family", SHAPES)
def test_logits_and_gradients_are_unchanged(family: str) -> None:
    """Under autocast and in fp32; replacing norms twice changes nothing more."""
    model = built(family)
    ids = torch.arange(20)[None]
    results = []
    for replaced in (False, True, True):
        if replaced:
            replace_norms(model)
        for dtype in PRECISIONS:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits = model(ids).logits
            gradients = torch.autograd.grad(logits.float().square().sum(), [*model.parameters()])
            results.append((logits, *gradients))
    assert all(len(module._forward_hooks) <= 1 for module in model.modules())
    for fast in (results[2:4], results[4:]):
        for dtype, expected, actual in zip(PRECISIONS, results[:2], fast, strict=True):
            torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=1e-6)
            for gradient, reference in zip(actual[1:], expected[1:], strict=True):
                bound = 2e-2 if dtype == torch.bfloat16 else 1e-5
                assert (gradient - reference).norm() <= bound * reference.norm() + 1e-6


def test_norms_that_are_not_plain_rms_norms_are_only_cast() -> None:
    """Gemma adds one to its weights, GPT-2 subtracts the mean; the norms of heads are unchanged."""
    for family, num_fast, num_cast in (
        ("llama", 5, 5),
        ("qwen3", 5, 5),
        ("gemma", 0, 5),
        ("gpt2", 0, 5),
    ):
        model = built(family)
        replace_norms(model)
        modules = [*model.modules()]
        assert sum("forward" in vars(module) for module in modules) == num_fast
        assert sum(bool(module._forward_hooks) for module in modules) == num_cast
