"""Learning rates are those of the trainer that LLaVA-1.5 ran, transformers 4.37.2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caldera.training.parameters import lr_factor

pytestmark = pytest.mark.reference

SCRIPT = """
import torch
from transformers import TrainingArguments, get_cosine_schedule_with_warmup

def main(cases, folder):
    rates = []
    for steps, ratio in cases:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        arguments = TrainingArguments(folder, warmup_ratio=ratio, use_cpu=True)
        scheduler = get_cosine_schedule_with_warmup(optimizer, arguments.get_warmup_steps(steps), steps)
        rates.append([])
        for _ in range(steps):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates
"""


def test_every_learning_rate_is_the_trainers(run_437: Callable[..., Any], tmp_path: Path) -> None:
    """Bit for bit, over runs of 1 to 5,198 steps, LLaVA-1.5's stage 2."""
    cases = [
        (steps, ratio)
        for steps in (1, 2, 3, 10, 33, 34, 100, 999, 5198)
        for ratio in (0.0, 0.01, 0.03, 0.1, 0.5, 0.99)
    ]
    expected = run_437(SCRIPT, cases, str(tmp_path))
    for (steps, ratio), rates in zip(cases, expected, strict=True):
        assert [lr_factor(step, steps, ratio) for step in range(steps)] == rates
