"""Only the named parts are trainable, each at its learning rate, by the schedule."""

import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments, get_cosine_schedule_with_warmup

from caldera.errors import Interrupted
from caldera.model.bundle import LlavaBundle
from caldera.training import loop
from caldera.training.checkpoint import latest_checkpoint, save_checkpoint
from caldera.training.hyperparameters import FINETUNE, Part
from caldera.training.parameters import (
    build_optimizer,
    lr_factor,
    num_warmup_steps,
    set_lr,
    set_trainable,
)
from caldera.training.step import training_step
from tests.laying import batch_of
from tests.training.jobs import FP32, make_job
from tests.training.test_loop import STAGE, calls_first, send
from tests.training.test_step import mixed_samples


@pytest.mark.parametrize(
    "parts",
    [("projector",), ("projector", "language"), ("vision",), ("vision", "projector", "language")],
)
def test_one_step_changes_only_the_named_parts(
    assistant: LlavaBundle, photos: Path, parts: tuple[Part, ...]
) -> None:
    """After a step the frozen weights are unchanged bit for bit, and each named part has changed."""
    model = assistant.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    reports = set_trainable(model, parts)
    stage = replace(FINETUNE, trainable=parts, learning_rate=0.01)
    optimizer = build_optimizer(model, stage)

    training_step(
        model,
        [batch_of(assistant, mixed_samples(assistant, photos))],
        optimizer,
        max_grad_norm=1.0,
        compute=FP32,
    )

    changed = {
        name.split(".")[0]
        for name, weight in model.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert changed == set(parts)
    assert {report.part for report in reports if report.trainable} == set(parts)


@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.03, 0.05, 0.1, 1 / 3, 0.5, 0.97, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 9, 33, 34, 100, 1000, 5197])
def test_the_learning_rates_are_those_of_transformers_trainer(
    steps: int, ratio: float, tmp_path: Path
) -> None:
    """Every step of a run has the rate, bit for bit, that transformers' scheduler gives its optimizer."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2e-3)
    expected = torch.optim.SGD([weight], lr=2e-3)
    optimizer.param_groups[0]["base_lr"] = 2e-3
    # Fractions below 1 are ratios.
    warmup = TrainingArguments(str(tmp_path), warmup_steps=ratio).get_warmup_steps(steps)
    scheduler = get_cosine_schedule_with_warmup(expected, warmup, steps)
    assert num_warmup_steps(steps, ratio) == warmup
    for step in range(steps):
        set_lr(optimizer, lr_factor(step, steps, ratio))
        assert optimizer.param_groups[0]["lr"] == expected.param_groups[0]["lr"]
        expected.step()
        scheduler.step()


def test_the_first_rate_is_zero_and_the_last_is_not() -> None:
    """Of 5,198 steps, as LLaVA-1.5's stage 2 has, 156 warm up; the peak is the step after them."""
    factors = [lr_factor(step, 5198, 0.03) for step in range(5198)]
    assert factors[:2] == [0.0, 1 / 156]
    assert factors.index(1.0) == 156
    assert factors[156:] == sorted(factors[156:], reverse=True)
    # The formula of transformers 4.37.2, which LLaVA-1.5 was trained with.
    last = 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * (5197 - 156) / (5198 - 156)))
    assert factors[-1] == last == pytest.approx(9.7e-8, rel=1e-2)


def test_parts_may_have_their_own_learning_rate(assistant: LlavaBundle) -> None:
    """The projector's rate applies to the projector alone, and both follow the schedule."""
    set_trainable(assistant.model, ("projector", "language"))
    stage = replace(FINETUNE, learning_rate=0.2, projector_learning_rate=0.8)
    optimizer = build_optimizer(assistant.model, stage)
    set_lr(optimizer, 0.5)
    rates = {
        id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]
    }
    assert {rates[id(weight)] for weight in assistant.model.projector.parameters()} == {0.4}
    assert {rates[id(weight)] for weight in assistant.model.language.parameters()} == {0.1}


@pytest.mark.parametrize(
    ("step", "is_former", "is_told"), [(3, True, True), (4, True, False), (3, False, False)]
)
def test_a_warm_up_that_an_earlier_version_began_is_told(
    start: Callable[[], LlavaBundle],
    photos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    step: int,
    is_former: bool,
    is_told: bool,
) -> None:
    """Its checkpoints, and later ones, name no version; after the warm-up of 4 steps the rates are as before."""
    run, stage = tmp_path / "run", replace(STAGE, warmup_ratio=0.4)
    with pytest.MonkeyPatch.context() as patch:
        stop = calls_first(training_step, send(signal.SIGTERM), call_number=step)
        patch.setattr(loop, "training_step", stop)
        with pytest.raises(Interrupted):
            make_job(start(), photos, run, stage).run()
    saved = latest_checkpoint(run / "checkpoints")
    assert saved is not None
    if is_former:
        shutil.rmtree(run / "checkpoints")
        del saved.extra["loop_version"]
        save_checkpoint(run / "checkpoints", saved)
    make_job(start(), photos, run, replace(stage, save_every=5), resume=True).run()
    later = latest_checkpoint(run / "checkpoints")
    assert later is not None
    assert later.step == 5
    assert later.extra["loop_version"] == saved.extra.get("loop_version")
    line = (
        "step 3 of a warm-up of 4 steps was saved by an earlier version, which began at 1/4 of the learning rate "
        "instead of 0; the remaining steps have the rates of this version, one step behind"
    )
    assert (line in caplog.text) == is_told == ("warm-up" in caplog.text)


def test_a_run_of_one_step_tells_that_it_changes_nothing(
    start: Callable[[], LlavaBundle], photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first rate of a warm-up is 0; added rows are the mean of the others, as they were, but for rounding."""
    stage = replace(STAGE, max_steps=1)
    trained, _ = make_job(start(), photos, tmp_path / "run", stage).run()
    for name, weight in start().model.state_dict().items():
        after = trained.model.state_dict()[name]
        torch.testing.assert_close(after, weight, rtol=0, atol=1e-7, msg=name)
    assert "whose learning rate is 0: no weight changes; raise epochs or max_steps" in caplog.text
    caplog.clear()
    make_job(start(), photos, tmp_path / "other", replace(stage, warmup_ratio=0.0)).run()
    assert "no weight changes" not in caplog.text
