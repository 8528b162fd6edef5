"""Training with float16 products: the loss is scaled, overflowing steps are skipped and counted, resuming is exact."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caldera.batches.packing import Batch
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import TrainingError
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress, Progress
from caldera.training.checkpoint import latest_checkpoint
from caldera.training.hyperparameters import FINETUNE
from caldera.training.metrics_log import read_metrics
from caldera.training.parameters import build_optimizer, set_trainable
from caldera.training.step import training_step
from tests.laying import batch_of
from tests.training.jobs import FP32, STAGES, build_samples, dialogues, make_job, result_of

FP16 = DeviceConfig(torch.device("cpu"), torch.float16)
OVERFLOWING = 2.0**20
"""Scale of the loss at which gradients exceed fp16 in the first steps of the tests."""


def finetuned_batch(assistant: LlavaBundle, photos: Path) -> Batch:
    """Return a packed batch about photos, for an assistant that is prepared for stage 2."""
    set_trainable(assistant.model, FINETUNE.trainable)
    assistant.model.choose_batch_layout("sdpa")
    assistant.model.train()
    return batch_of(assistant, build_samples(assistant, dialogues(7), photos), share=True)


def gradients_of(assistant: LlavaBundle, batch: Batch, compute: DeviceConfig) -> dict[str, Tensor]:
    """Return the gradient of each trained weight, as a step of plain SGD with rate 1 subtracts it."""
    model = assistant.model
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=256, enabled=compute == FP16)
    report = training_step(
        model, [batch], optimizer, max_grad_norm=None, compute=compute, scaler=scaler
    )
    assert not report.skipped
    with torch.no_grad():
        gradients = {name: before[name] - weight for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.copy_(before[name])
    return gradients


def test_gradients_are_those_of_fp32_up_to_rounding(assistant: LlavaBundle, photos: Path) -> None:
    """Every weight's gradient is near, and all of them together within half a percent; they are not equal."""
    batch = finetuned_batch(assistant, photos)
    exact, near = (gradients_of(assistant, batch, compute) for compute in (FP32, FP16))
    expected = torch.cat([gradient.flatten() for gradient in exact.values()])
    actual = torch.cat([gradient.flatten() for gradient in near.values()])
    distance = float((actual - expected).norm() / expected.norm())
    assert 1e-6 < distance < 5e-3
    compared = 0
    for name, gradient in exact.items():
        assert (near[name] - gradient).norm() <= 0.03 * gradient.norm() + 1e-4 * expected.norm()
        compared += 1
    assert compared > 20


def test_an_overflowing_step_changes_nothing_and_halves_the_scale(
    assistant: LlavaBundle, photos: Path
) -> None:
    """Steps are skipped until the scaled gradients fit; the first that is taken is that of a small scale."""
    batch = finetuned_batch(assistant, photos)
    optimizer = build_optimizer(assistant.model, FINETUNE)
    before = {name: weight.clone() for name, weight in assistant.model.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=OVERFLOWING)
    scales = []
    for _ in range(40):
        report = training_step(
            assistant.model, [batch], optimizer, max_grad_norm=1.0, compute=FP16, scaler=scaler
        )
        scales.append(report.loss_scale)
        if not report.skipped:
            break
        for name, weight in assistant.model.state_dict().items():
            assert torch.equal(weight, before[name]), name
        assert not optimizer.state
    assert len(scales) > 2
    assert scales == [OVERFLOWING / 2**number for number in range(len(scales))]
    assert report.grad_norm == pytest.approx(
        float(torch.cat([g.flatten() for g in _fp32_gradients(assistant, batch, before)]).norm()),
        rel=1e-2,
    )


def _fp32_gradients(
    assistant: LlavaBundle, batch: Batch, weights: dict[str, Tensor]
) -> list[Tensor]:
    """Return the gradients at some weights in fp32."""
    assistant.model.load_state_dict(weights, strict=False)
    return [*gradients_of(assistant, batch, FP32).values()]


def test_gradients_that_fit_no_scale_end_the_run(assistant: LlavaBundle, photos: Path) -> None:
    """A scale of 1 changes nothing, so the records or the learning rate are at fault."""
    batch = finetuned_batch(assistant, photos)
    optimizer = build_optimizer(assistant.model, FINETUNE)
    weight = assistant.model.projector.layers[0].weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    first = training_step(
        assistant.model, [batch], optimizer, max_grad_norm=1.0, compute=FP16, scaler=scaler
    )
    assert first.skipped
    with pytest.raises(
        TrainingError, match=r"gradient norm (nan|inf).*'r0'.*float16 ends at 65504"
    ):
        training_step(
            assistant.model, [batch], optimizer, max_grad_norm=1.0, compute=FP16, scaler=scaler
        )


def test_a_run_resumes_bit_for_bit_with_its_scale(
    start: Callable[[], LlavaBundle],
    stops_at: Callable[[int], Progress],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is interrupted while steps are skipped; the skipped ones are in the metrics, in the log and counted once."""
    monkeypatch.setattr(
        DeviceConfig,
        "grad_scaler",
        lambda self: torch.amp.GradScaler(self.device.type, init_scale=OVERFLOWING),
    )
    stage = replace(STAGES["finetune"], save_every=2)
    uninterrupted, out = tmp_path / "uninterrupted", tmp_path / "run"
    with caplog.at_level(logging.INFO):
        make_job(start(), photos, uninterrupted, stage, runtime=Runtime(FP16, NoProgress())).run()
    metrics = read_metrics(uninterrupted / "metrics.jsonl")
    skipped = [line for line in metrics if "loss_scale" in line and "grad_norm" not in line]
    assert len(skipped) > 2
    assert f"{len(skipped)} of 9 steps changed no weight" in caplog.text

    with pytest.raises(KeyboardInterrupt):
        make_job(start(), photos, out, stage, runtime=Runtime(FP16, stops_at(4))).run()
    checkpoint = latest_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.extra["grad_scaler"]["scale"] < OVERFLOWING
    caplog.clear()
    with caplog.at_level(logging.INFO):
        resumed = make_job(
            start(), photos, out, stage, runtime=Runtime(FP16, NoProgress()), resume=True
        )
        resumed.run()
    assert result_of(out) == result_of(uninterrupted)
    assert f"{len(skipped)} of 9 steps changed no weight" in caplog.text


def test_features_beyond_fp16_are_not_cached(
    start: Callable[[], LlavaBundle], photos: Path, tmp_path: Path
) -> None:
    """The run ends before the first step, with the precision that helps."""
    assistant = start()
    with torch.no_grad():
        assistant.model.vision.tower.get_parameter("pre_layrnorm.weight").fill_(1e6)
    job = make_job(
        assistant,
        photos,
        tmp_path / "run",
        STAGES["pretrain"],
        runtime=Runtime(FP16, NoProgress()),
    )
    with pytest.raises(TrainingError, match="not finite in float16; use --dtype float32"):
        job.run()
