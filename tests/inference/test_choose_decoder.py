"""The fast decoder gives the model's own logits for the architectures it supports, and is not used for others."""

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
    """Return a random model of an architecture."""
    torch.manual_seed(2)
    config.vocab_size = 61
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which start as ones and zeros
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().to(dtype)


@torch.inference_mode()
def logits_of(decoder: Decoder, model: PreTrainedModel) -> Tensor:
    """Return logits of three interleaved sequences, one from an exported prefix, (rows, vocabulary)."""
    table = model.get_input_embeddings()
    embedded = table(torch.arange(701) % 59)  # (tokens, width)
    logits = [decoder.prefill(2, embedded[:5]), decoder.prefill(0, embedded[:643])]
    logits += decoder.decode([0, 2], [7, 8])
    logits.append(decoder.prefill(2, embedded[9:22]))
    exported = decoder.export_cache(0)
    assert exported is not None
    decoder.import_cache(1, exported, 301)
    logits.append(decoder.prefill(1, embedded[600:603]))
    logits += decoder.decode([2, 0, 1], [3, 4, 5])
    logits += decoder.decode([1], [6])
    decoder.reset(0)
    logits.append(decoder.prefill(0, embedded[3:6]))
    logits += decoder.decode([0, 1], [2, 2])
    return torch.stack(logits)


@pytest.mark.parametrize("name", FAST)
def test_the_fast_decoder_gives_the_models_own_logits(name: str) -> None:
    """Up to fp32 rounding, with growing slots, exported prefixes and steps of any rows."""
    model = random_language(LANGUAGES[name])
    fast = choose_decoder(model, 3)
    assert isinstance(fast, LlamaDecoder)
    torch.testing.assert_close(
        logits_of(fast, model), logits_of(TransformersDecoder(model), model), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("quantization", ["as stored", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precisions_stay_close(dtype: torch.dtype, quantization: str) -> None:
    """Logits differ from those in fp32 by a few percent of their norm, and are not equal."""
    if dtype == torch.float32 and quantization == "as stored":
        pytest.skip("that is fp32 itself")
    model = random_language(LANGUAGES["llama"])
    exact = logits_of(TransformersDecoder(model), model)
    fast = choose_decoder(model.to(dtype), 3, quantization=quantization)  # type: ignore[arg-type]
    assert isinstance(fast, LlamaDecoder)
    near = logits_of(fast, model).float()
    distance = float((near - exact).norm() / exact.norm())
    assert 1e-4 < distance < 0.08


@pytest.mark.parametrize(
    ("device", "reason"),
    [("meta", "the model is on meta, and the fast decoder is for CPUs"), ("cpu", "no oneDNN")],
)
def test_int8_is_refused_where_it_is_not_computed(
    device: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another device, and in a build of torch without oneDNN, as those for Macs."""
    model = random_language(LANGUAGES["llama"])
    nn.Module.to(model, torch.device(device))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UsageError, match=f"int8 is not possible here: .*{reason}"):
        choose_decoder(model, 3, quantization="int8")


@pytest.mark.parametrize("name", sorted(LANGUAGES.keys() - set(FAST)))
def test_other_models_use_the_decoder_of_transformers(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged."""
    with caplog.at_level(logging.INFO, logger="caldera"):
        decoder = choose_decoder(random_language(LANGUAGES[name]), 3)
    assert isinstance(decoder, TransformersDecoder)
    assert "are not among llama, mistral" in caplog.text


def test_a_model_with_other_computations_is_detected(caplog: pytest.LogCaptureFixture) -> None:
    """A LLaMA whose layers compute something else gives other logits, so the fast decoder is not used."""
    model = random_language(LANGUAGES["llama"])
    inner: Any = model.base_model
    inner.layers[0].mlp.register_forward_hook(lambda *inputs: inputs[-1] * 1.5)
    with caplog.at_level(logging.INFO, logger="caldera"):
        assert isinstance(choose_decoder(model, 3), TransformersDecoder)
    assert "of their norm" in caplog.text
    with pytest.raises(UsageError, match="int8 is not possible here: models of type 'gemma'"):
        choose_decoder(random_language(LANGUAGES["gemma"]), 3, quantization="int8")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "RoPE scaling is 'dynamic'",
        ),
        ({"hidden_act": "gelu"}, "activation is 'gelu'"),
    ],
)
def test_unsupported_settings_of_llama_are_detected(change: dict[str, object], reason: str) -> None:
    """The reason names the setting."""
    config = type(LANGUAGES["llama"])(**{**WIDTHS, **change})
    assert reason in LlamaDecoder.unsupported_reason(random_language(config))


def test_a_sliding_window_is_unsupported() -> None:
    """As in some Mistral models."""
    config = MistralConfig(**WIDTHS, sliding_window=4)
    assert (
        LlamaDecoder.unsupported_reason(random_language(config))
        == "its attention has a sliding window"
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_packed_layers_are_concatenated(rows: int, bias: bool) -> None:
    """One product gives the outputs of the layers, in order."""
    torch.manual_seed(3)
    layers = [nn.Linear(13, width, bias=bias) for width in (7, 3)]
    inputs = torch.randn(rows, 13)
    with torch.inference_mode():
        torch.testing.assert_close(
            build_linear(layers)(inputs), torch.cat([layer(inputs) for layer in layers], dim=1)
        )
        near = build_linear(layers, "int8")(inputs)
        exact = torch.cat([layer(inputs) for layer in layers], dim=1)
        assert 0 < float((near - exact).norm() / exact.norm()) < 0.03


def test_int8_rounds_each_token_separately() -> None:
    """Another token a thousand times as large does not change a token's output."""
    torch.manual_seed(3)
    product = build_linear([nn.Linear(64, 32)], "int8")
    inputs = torch.randn(2, 64)
    batch = torch.stack([inputs[0], 1000 * inputs[1]])
    torch.testing.assert_close(product(inputs)[0], product(batch)[0])


@pytest.mark.parametrize("rows", [1, 16, 40])
def test_int8_keeps_the_values_of_tokens_with_an_outlier(rows: int) -> None:
    """With one value ten thousand times as large as the others, these still count."""
    torch.manual_seed(3)
    layer = nn.Linear(256, 32, bias=False)
    inputs = torch.randn(rows, 256)
    with torch.inference_mode():
        layer.weight[:, 5] = 0  # the massive value itself adds nothing
        inputs[0, 5] = 10_000
        exact, near = layer(inputs), build_linear([layer], "int8")(inputs)
        distance = (near - exact).norm(dim=1) / exact.norm(dim=1)
    assert float(distance.max()) < 0.15  # with one rounding all of it is lost: 1.0
    assert float(distance[1:].sum()) < 0.02 * rows


def test_packing_a_module_keeps_outputs_and_state() -> None:
    """Every linear layer is replaced, once."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(5, 6), nn.Sequential(nn.GELU(), nn.Linear(6, 7, bias=False)))
    inputs = torch.randn(2, 3, 5)
    with torch.inference_mode():
        before, state = module(inputs), {**module.state_dict()}
        for _ in range(2):
            pack_layers(module)
        torch.testing.assert_close(module(inputs), before)
    assert [*module.state_dict()] == [*state]
    assert sum(isinstance(child, PackedLinear) for child in module.modules()) == 2


def test_released_weights_are_read_again_when_used(tmp_path: Path) -> None:
    """Pages of a file are read from it again; other memory is not released."""
    values = torch.randn(700, 900)
    (tmp_path / "values").write_bytes(values.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "values"), shared=False, size=values.numel()).view_as(
        values
    )
    for tensor in (mapped, values, mapped[:0]):
        release_file_pages(tensor)
    assert torch.equal(mapped, values)
    assert values.abs().sum() > 1000
