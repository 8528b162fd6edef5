"""The fast decoder gives the model's own logits for all shapes it is for, and steps aside for all others."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MistralConfig, PretrainedConfig, PreTrainedModel

from caldera.devices import release_file_pages
from caldera.errors import UsageError
from caldera.inference.choose_decoder import choose_decoder
from caldera.inference.decoder import Decoder, TransformersDecoder
from caldera.inference.llama_decoder import LlamaDecoder
from caldera.inference.packed_linear import PackedLinear, build_linear, pack_layers
from tests.tiny_languages import LANGUAGES, WIDTHS

FAST = ("llama", "smollm", "mistral", "qwen2", "qwen3")


def random_language(
    config: PretrainedConfig, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Build a random model of a shape."""
    torch.manual_seed(2)
    config.vocab_size = 61
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim == 1:  # norms and biases, which start as ones and zeros
                each.add_(0.1 * torch.randn_like(each))
    return model.eval().to(dtype)


@torch.inference_mode()
def logits_of(decoder: Decoder, model: PreTrainedModel) -> Tensor:
    """Read three talks in parts, side by side, in and out of order, one from a saved start; (rows, vocabulary)."""
    table = model.get_input_embeddings()
    words = table(torch.arange(701) % 59)  # (tokens, width)
    heard = [decoder.prefill(2, words[:5]), decoder.prefill(0, words[:643])]
    heard += decoder.decode([0, 2], [7, 8])
    heard.append(decoder.prefill(2, words[9:22]))
    saved = decoder.export_cache(0)
    assert saved is not None
    decoder.import_cache(1, saved, 301)
    heard.append(decoder.prefill(1, words[600:603]))
    heard += decoder.decode([2, 0, 1], [3, 4, 5])
    heard += decoder.decode([1], [6])
    decoder.reset(0)
    heard.append(decoder.prefill(0, words[3:6]))
    heard += decoder.decode([0, 1], [2, 2])
    return torch.stack(heard)


@pytest.mark.parametrize("name", FAST)
def test_the_fast_decoder_gives_the_models_own_logits(name: str) -> None:
    """To fp32 rounding, through growing slots, saved starts and steps of any rows."""
    model = random_language(LANGUAGES[name])
    fast = choose_decoder(model, 3)
    assert isinstance(fast, LlamaDecoder)
    torch.testing.assert_close(
        logits_of(fast, model), logits_of(TransformersDecoder(model), model), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("quantization", ["as stored", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smaller_precisions_stay_near(dtype: torch.dtype, quantization: str) -> None:
    """The logits differ from those of fp32 by a few hundredths of their size, and not by nothing."""
    if dtype == torch.float32 and quantization == "as stored":
        pytest.skip("that is fp32 itself")
    model = random_language(LANGUAGES["llama"])
    exact = logits_of(TransformersDecoder(model), model)
    near = logits_of(choose_decoder(model.to(dtype), 3, quantization=quantization), model).float()  # type: ignore[arg-type]
    distance = float((near - exact).norm() / exact.norm())
    assert 1e-4 < distance < 0.08


@pytest.mark.parametrize("name", sorted(LANGUAGES.keys() - set(FAST)))
def test_other_models_answer_by_transformers(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is said why."""
    with caplog.at_level(logging.INFO, logger="caldera"):
        decoder = choose_decoder(random_language(LANGUAGES[name]), 3)
    assert isinstance(decoder, TransformersDecoder)
    assert "are not among llama, mistral" in caplog.text


def test_a_model_that_computes_otherwise_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    """A LLaMA whose layers do something more gives other logits, so the fast decoder is not taken."""
    model = random_language(LANGUAGES["llama"])
    inner: Any = model.base_model
    inner.layers[0].mlp.register_forward_hook(lambda *given: given[-1] * 1.5)
    with caplog.at_level(logging.INFO, logger="caldera"):
        assert isinstance(choose_decoder(model, 3), TransformersDecoder)
    assert "of their norm" in caplog.text
    with pytest.raises(UsageError, match="int8 is not possible here: models of type 'gemma'"):
        choose_decoder(random_language(LANGUAGES["gemma"]), 3, quantization="int8")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "RoPE scaling is 'dynamic'"),
        ({"hidden_act": "gelu"}, "activation is 'gelu'"),
    ],
)  # fmt: skip
def test_what_llama_itself_may_do_otherwise_is_seen(change: dict[str, object], reason: str) -> None:
    """Such settings are obstacles."""
    config = type(LANGUAGES["llama"])(**{**WIDTHS, **change})
    assert reason in LlamaDecoder.unsupported_reason(random_language(config))


def test_a_window_is_an_obstacle() -> None:
    """Mistral with one attends otherwise."""
    config = MistralConfig(**WIDTHS, sliding_window=4)
    assert (
        LlamaDecoder.unsupported_reason(random_language(config))
        == "its attention has a sliding window"
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_packed_layers_stand_side_by_side(rows: int, bias: bool) -> None:
    """One product gives what the layers give, in order."""
    torch.manual_seed(3)
    layers = [nn.Linear(13, width, bias=bias) for width in (7, 3)]
    given = torch.randn(rows, 13)
    with torch.inference_mode():
        torch.testing.assert_close(
            build_linear(layers)(given), torch.cat([layer(given) for layer in layers], dim=1)
        )
        near = build_linear(layers, "int8")(given)
        exact = torch.cat([layer(given) for layer in layers], dim=1)
        assert 0 < float((near - exact).norm() / exact.norm()) < 0.03


def test_int8_rounds_each_token_by_itself() -> None:
    """A token a thousand times as large beside it does not change what a token gives."""
    torch.manual_seed(3)
    product = build_linear([nn.Linear(64, 32)], "int8")
    given = torch.randn(2, 64)
    beside = torch.stack([given[0], 1000 * given[1]])
    torch.testing.assert_close(product(given)[0], product(beside)[0])


@pytest.mark.parametrize("rows", [1, 16, 40])
def test_int8_keeps_what_stands_beside_a_massive_value(rows: int) -> None:
    """A value ten thousand times as large as a token's others leaves them their due."""
    torch.manual_seed(3)
    layer = nn.Linear(256, 32, bias=False)
    given = torch.randn(rows, 256)
    with torch.inference_mode():
        layer.weight[:, 5] = 0  # the massive value itself adds nothing
        given[0, 5] = 10_000
        exact, near = layer(given), build_linear([layer], "int8")(given)
        distance = (near - exact).norm(dim=1) / exact.norm(dim=1)
    assert float(distance.max()) < 0.15  # with one rounding all of it is lost: 1.0
    assert float(distance[1:].sum()) < 0.02 * rows


def test_packing_a_module_changes_nothing_but_speed() -> None:
    """Outputs and state stay; every linear layer is replaced, once."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(5, 6), nn.Sequential(nn.GELU(), nn.Linear(6, 7, bias=False)))
    given = torch.randn(2, 3, 5)
    with torch.inference_mode():
        before, state = module(given), {**module.state_dict()}
        for _ in range(2):
            pack_layers(module)
        torch.testing.assert_close(module(given), before)
    assert [*module.state_dict()] == [*state]
    assert sum(isinstance(each, PackedLinear) for each in module.modules()) == 2


def test_weights_that_are_let_go_of_are_there_when_they_are_used_again(tmp_path: Path) -> None:
    """Those of a file are read from it again; those of no file were never gone."""
    values = torch.randn(700, 900)
    (tmp_path / "values").write_bytes(values.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "values"), shared=False, size=values.numel()).view_as(
        values
    )
    for each in (mapped, values, mapped[:0]):
        release_file_pages(each)
    assert torch.equal(mapped, values)
    assert values.abs().sum() > 1000
