"""A long job says how far it is: by a bar, by a line now and then, or not at all."""

import logging
import os
import subprocess
import sys

import pytest

from caldera.progress import BarProgress, LogProgress, NoProgress, Progress


def work(progress: Progress, total: int, steps: int = 1, done: int = 0) -> None:
    """Do a job of `total` steps, some at a time."""
    with progress.task("drawing", total, done) as tick:
        for at in range(done, total, steps):
            tick(min(steps, total - at), shown=f"loss {at}")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, down to what is worth a line."""
    caplog.set_level(logging.INFO, logger="caldera.progress")
    return caplog


@pytest.mark.parametrize(("total", "most"), [(1, 13), (7, 13), (10, 13), (1000, 13)])
def test_a_job_of_any_length_is_told_in_a_dozen_lines(
    lines: pytest.LogCaptureFixture, total: int, most: int
) -> None:
    """A first line, a line each tenth, a last one; and the last count is the total."""
    work(LogProgress(), total)
    assert lines.messages[0] == f"drawing: {total} to do"
    assert lines.messages[-1].startswith("drawing: done in")
    assert f"{total} of {total}, 0 s left  loss {total - 1}" in lines.messages[-2]
    assert min(total, 10) + 2 <= len(lines.messages) <= most


def test_a_job_taken_up_again_counts_what_was_done_before(
    lines: pytest.LogCaptureFixture,
) -> None:
    """Half was done: half is to do, and the count goes on from there."""
    work(LogProgress(), total=20, done=10)
    assert lines.messages[0] == "drawing: 10 to do"
    assert lines.messages[1].startswith("drawing: 11 of 20")


def test_great_steps_are_counted(lines: pytest.LogCaptureFixture) -> None:
    """Seven at a time, of twenty."""
    work(LogProgress(), total=20, steps=7)
    told = [message.split(",")[0] for message in lines.messages[1:-1]]
    assert told == ["drawing: 7 of 20", "drawing: 14 of 20", "drawing: 20 of 20"]


def test_a_job_of_nothing_is_begun_and_done(lines: pytest.LogCaptureFixture) -> None:
    """No division by its length."""
    work(LogProgress(), total=0)
    assert len(lines.messages) == 2


def test_a_job_that_fails_is_not_called_done(lines: pytest.LogCaptureFixture) -> None:
    """The error passes through, and the log does not claim an end."""
    with pytest.raises(ValueError, match="broken"), LogProgress().task("drawing", 3):
        raise ValueError("broken")
    assert lines.messages == ["drawing: 3 to do"]


def test_bars_are_drawn_on_the_error_stream(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output is for data alone; the bar ends at all of its steps and what is shown last."""
    work(BarProgress(), total=7)
    said = capfd.readouterr()
    assert said.out == ""
    assert "drawing" in said.err
    assert "7/7" in said.err
    assert "loss 6" in said.err


def test_silence_is_silent(
    capfd: pytest.CaptureFixture[str], lines: pytest.LogCaptureFixture
) -> None:
    """Nothing on either stream, and no log."""
    work(NoProgress(), total=7)
    assert capfd.readouterr() == ("", "")
    assert not lines.messages


@pytest.mark.parametrize(("on_terminal", "chosen"), [(True, "BarProgress"), (False, "LogProgress")])
def test_bars_are_for_people_and_lines_for_logs(on_terminal: bool, chosen: str) -> None:
    """A process whose error stream is a terminal draws bars, one that writes to a pipe does not."""
    program = "from caldera.progress import *; print(type(choose_progress()).__name__)"
    outer, inner = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=inner if on_terminal else subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        os.close(outer)
        os.close(inner)
    assert done.stdout == f"{chosen}\n"
