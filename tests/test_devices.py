"""The device and the precision that are chosen, and what they mean for a computation."""

import logging

import pytest
import torch

from caldera.devices import DeviceConfig, choose_device, fastest_dtype, has_fast_bf16
from caldera.errors import UsageError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_cuda_then_mps_then_the_cpu(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is absent here is named in the error, so it was chosen."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if expected == "cpu":
        assert choose_device().device == CPU
        return
    if expected == "cuda" and torch.cuda.device_count():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match=f"device '{expected}' cannot be used"):
        choose_device()


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)],
)
def test_gpus_that_only_emulate_bf16_take_float16(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V100 and T4 have compute capability 7.0 and 7.5; on them torch's own check for bf16 is true."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    assert fastest_dtype(torch.device("cuda:1")) == expected


def test_auto_on_a_cpu_is_the_fastest_precision() -> None:
    """It is bf16 where the CPU multiplies it, else fp32."""
    expected = torch.bfloat16 if has_fast_bf16() else torch.float32
    assert choose_device("cpu", "auto") == DeviceConfig(CPU, expected)


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("mps", "a Mac with an Apple GPU"),
        ("meta", "caldera runs on auto, cpu, cuda, mps"),
        ("gpu", "caldera runs on auto, cpu, cuda, mps.*; did you mean 'cuda'"),
        ("cdua", "did you mean 'cuda'"),
        ("cuda:99", "" if torch.cuda.is_available() else "(pytorch.org|nvidia-smi).* device cpu"),
        ("cuda:x", ""),
    ],
)
def test_a_device_that_cannot_be_used_is_one_line(device: str, reason: str) -> None:
    """It is named, with the reason."""
    with pytest.raises(UsageError, match=f"device '{device}' cannot be used: .*{reason}") as caught:
        choose_device(device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_named_precision_is_taken_with_a_warning_where_it_is_slow(
    dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A CPU without hardware for it computes the same, many times slower."""
    fast = {
        "float32": True,
        "bfloat16": has_fast_bf16(),
        "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    with caplog.at_level(logging.WARNING):
        config = choose_device("cpu", dtype)  # type: ignore[arg-type] # one of its values
    assert config.dtype == getattr(torch, dtype)
    assert ("in software" in caplog.text) == (not fast[dtype])


def test_random_numbers_of_a_block_depend_on_its_seed_alone() -> None:
    """The numbers after the block are those without it."""
    config = DeviceConfig(CPU, torch.float32)
    torch.manual_seed(1)
    expected = torch.rand(3)
    blocks = []
    for state in (1, 2):
        torch.manual_seed(state)
        with config.fork_rng(5, 7):
            blocks.append(torch.rand(3))
    assert torch.equal(*blocks)
    torch.manual_seed(1)
    with config.fork_rng(5, 8):
        assert not torch.equal(torch.rand(3), blocks[0])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_have_the_precision_and_weights_keep_theirs(dtype: torch.dtype) -> None:
    """The loss is scaled in fp16 alone."""
    config = DeviceConfig(CPU, dtype)
    layer = torch.nn.Linear(3, 5)
    with config.autocast():
        assert layer(torch.ones(2, 3)).dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert config.grad_scaler().is_enabled() == (dtype == torch.float16)
