"""Tests of progress reporting: bars, log lines, or nothing."""

import logging
import os
import subprocess
import sys

import pytest

from caldera.progress import BarProgress, LogProgress, NoProgress, Progress


def run_task(progress: Progress, total: int, steps: int = 1, initial: int = 0) -> None:
    """Run a job of `total` steps, some at a time."""
    with progress.task("drawing", total, initial) as advance:
        for start in range(initial, total, steps):
            advance(min(steps, total - start), detail=f"loss {start}")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Capture the progress lines of the log."""
    caplog.set_level(logging.INFO, logger="caldera.progress")
    return caplog


@pytest.mark.parametrize("total", [1, 7, 10, 1000])
def test_a_job_of_any_length_logs_at_most_13_lines(
    lines: pytest.LogCaptureFixture, total: int
) -> None:
    """A first line, a line for each tenth, and a last one; the last count is the total."""
    run_task(LogProgress(), total)
    assert lines.messages[0] == f"drawing: {total} to do"
    assert lines.messages[-1].startswith("drawing: done in")
    assert f"{total} of {total}, 0 s left  loss {total - 1}" in lines.messages[-2]
    assert min(total, 10) + 2 <= len(lines.messages) <= 13


def test_a_resumed_job_counts_the_earlier_steps(lines: pytest.LogCaptureFixture) -> None:
    """With half of the steps finished, half are to do, and the count continues from there."""
    run_task(LogProgress(), total=20, initial=10)
    assert lines.messages[0] == "drawing: 10 to do"
    assert lines.messages[1].startswith("drawing: 11 of 20")


def test_several_steps_at_a_time_are_counted(lines: pytest.LogCaptureFixture) -> None:
    """Seven at a time, of twenty."""
    run_task(LogProgress(), total=20, steps=7)
    counts = [message.split(",")[0] for message in lines.messages[1:-1]]
    assert counts == ["drawing: 7 of 20", "drawing: 14 of 20", "drawing: 20 of 20"]


def test_a_job_without_steps_logs_its_start_and_end(lines: pytest.LogCaptureFixture) -> None:
    """Nothing is divided by its length."""
    run_task(LogProgress(), total=0)
    assert len(lines.messages) == 2


def test_a_failed_job_is_not_logged_as_done(lines: pytest.LogCaptureFixture) -> None:
    """The error passes through without a last line."""
    with pytest.raises(ValueError, match="broken"), LogProgress().task("drawing", 3):
        raise ValueError("broken")
    assert lines.messages == ["drawing: 3 to do"]


def test_bars_are_drawn_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """Stdout is for data alone; the bar ends with all steps and the last detail."""
    run_task(BarProgress(), total=7)
    output = capfd.readouterr()
    assert output.out == ""
    assert "drawing" in output.err
    assert "7/7" in output.err
    assert "loss 6" in output.err


def test_no_progress_prints_and_logs_nothing(
    capfd: pytest.CaptureFixture[str], lines: pytest.LogCaptureFixture
) -> None:
    """Nothing on either stream, and no log."""
    run_task(NoProgress(), total=7)
    assert capfd.readouterr() == ("", "")
    assert not lines.messages


@pytest.mark.parametrize(
    ("on_terminal", "expected"), [(True, "BarProgress"), (False, "LogProgress")]
)
def test_a_terminal_gets_bars_and_a_pipe_gets_lines(on_terminal: bool, expected: str) -> None:
    """The choice depends on the stderr of the process."""
    program = "from caldera.progress import *; print(type(default_progress()).__name__)"
    outer, inner = os.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=inner if on_terminal else subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        os.close(outer)
        os.close(inner)
    assert result.stdout == f"{expected}\n"
