"""Lean norms change nothing that is multiplied, and no gradient but by rounding."""

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
def test_logits_and_gradients_are_what_they_were(family: str) -> None:
    """Under autocast and in fp32; asking twice changes nothing more."""
    model = built(family)
    ids = torch.arange(20)[None]
    found = []
    for lean in (False, True, True):
        if lean:
            replace_norms(model)
        for dtype in PRECISIONS:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits = model(ids).logits
            gradients = torch.autograd.grad(logits.float().square().sum(), [*model.parameters()])
            found.append((logits, *gradients))
    assert all(len(module._forward_hooks) <= 1 for module in model.modules())
    for again in (found[2:4], found[4:]):
        for dtype, wanted, given in zip(PRECISIONS, found[:2], again, strict=True):
            torch.testing.assert_close(given[0], wanted[0], rtol=1e-6, atol=1e-6)
            for one, other in zip(given[1:], wanted[1:], strict=True):
                bound = 2e-2 if dtype == torch.bfloat16 else 1e-5
                assert (one - other).norm() <= bound * other.norm() + 1e-6


def test_norms_that_are_not_plain_keep_what_they_do() -> None:
    """Gemma adds one to its weights, GPT-2 takes the mean off; heads' norms are left alone."""
    for family, lean, cast in (("llama", 5, 5), ("qwen3", 5, 5), ("gemma", 0, 5), ("gpt2", 0, 5)):
        model = built(family)
        replace_norms(model)
        modules = [*model.modules()]
        assert sum("forward" in vars(module) for module in modules) == lean
        assert sum(bool(module._forward_hooks) for module in modules) == cast
