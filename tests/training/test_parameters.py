"""Only the named parts are trainable, each at its learning rate, by the schedule."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments, get_cosine_schedule_with_warmup

from caldera.model.bundle import LlavaBundle
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
from tests.training.jobs import FP32
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
