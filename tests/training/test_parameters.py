"""Only the named parts are trainable, each at its learning rate, by the schedule."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caldera.model.bundle import LlavaBundle
from caldera.training.hyperparameters import FINETUNE, Part
from caldera.training.parameters import build_optimizer, lr_factor, set_lr, set_trainable
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


def test_the_learning_rate_rises_and_falls() -> None:
    """It rises linearly over three percent of the steps, then falls along half a cosine to zero."""
    factors = [lr_factor(step, 200, 0.03) for step in range(200)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[103] == pytest.approx(0.5, abs=0.01)
    assert factors[-1] < 0.001


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
