"""Norms are cast once, and nothing that is multiplied changes by it."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from caldera.model.precision import cast_norms_once
from tests.tiny_languages import LANGUAGES


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "phi3"])
@torch.no_grad()
def test_the_products_get_the_same_numbers(family: str) -> None:
    """Hidden states under autocast are bit for bit what they were, in fp32 too; casting twice is casting once."""
    shape = LANGUAGES[family]
    shape.update({"vocab_size": 50})
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(shape).eval()
    ids = torch.arange(20)[None]
    before = []
    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            before.append(model(ids).logits)
    cast_norms_once(model)
    cast_norms_once(model)
    hooked = [module for module in model.modules() if module._forward_hooks]
    assert {tuple(module.weight.shape) for module in hooked} == {(12,)}
    assert len(hooked) == 5
    assert all(len(module._forward_hooks) == 1 for module in hooked)
    for wanted, dtype in zip(before, (torch.bfloat16, torch.float32), strict=True):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            assert torch.equal(model(ids).logits, wanted)
