"""Metrics are on disk when `log` returns, or it raises."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from caldera.training.metrics_log import MetricsLog, read_metrics

LOG_UNTIL_FULL = """
import resource, sys
from pathlib import Path
from caldera.errors import OutputError
from caldera.training.metrics_log import MetricsLog
metrics = MetricsLog(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))
try:
    for step in range(1000):
        metrics.log(step, {"a": 0})
except OutputError as error:
    print(step, error)
"""


def read_tensorboard(folder: Path) -> list[object]:
    """Return the metrics that TensorBoard reads, one dict for each step."""
    events = EventAccumulator(str(folder)).Reload()
    steps: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for scalar in events.Scalars(name):
            step = steps.setdefault(scalar.step, {"step": scalar.step})
            assert name not in step, "a step is logged twice"
            step[name] = scalar.value
    return [steps[step] for step in sorted(steps)]


def test_a_full_disk_is_an_error_at_once_for_tensorboard_too(tmp_path: Path) -> None:
    """The step that finds no space for the event file raises one line; no thread prints anything later."""
    process = subprocess.run(
        [sys.executable, "-c", LOG_UNTIL_FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )

    step, _, message = process.stdout.partition(" ")
    assert message.startswith(f"cannot write {tmp_path / 'tensorboard' / 'events.out.tfevents.'}")
    assert message.endswith(": File too large; free space or choose another path, then run again\n")
    assert process.stderr == ""
    steps = [event["step"] for event in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [*range(int(step) + 1)]


def test_metrics_are_in_order_after_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run replaces the steps that it repeats, for TensorBoard too, whatever the time says (F11)."""
    for now, steps in ((5_000.5, range(5)), (3_000.5, range(3, 6)), (3_000.7, range(4, 7))):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        metrics = MetricsLog(tmp_path, keep_until_step=steps[0] - 1)
        for step in steps:
            metrics.log(step, {"loss": now})
    monkeypatch.undo()

    expected = [
        (0, 5_000.5),
        (1, 5_000.5),
        (2, 5_000.5),
        (3, 3_000.5),
        (4, 3_000.7),
        (5, 3_000.7),
        (6, 3_000.7),
    ]
    assert [
        (event["step"], event["loss"]) for event in read_metrics(tmp_path / "metrics.jsonl")
    ] == expected
    assert read_tensorboard(tmp_path / "tensorboard") == [
        {"step": step, "loss": pytest.approx(loss)} for step, loss in expected
    ]
