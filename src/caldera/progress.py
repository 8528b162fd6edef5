"""Progress of long jobs: bars on a terminal, log lines elsewhere, nothing in tests."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

log = logging.getLogger(__name__)


class Advance(Protocol):
    """Callback of a job for its finished steps."""

    def __call__(self, steps: int = 1, *, detail: str = "") -> None:
        """Advance by `steps`; `detail` is printed after the count, such as a loss."""
        ...


class Progress(Protocol):
    """Reports the progress of jobs."""

    def task(self, name: str, total: int, initial: int = 0) -> AbstractContextManager[Advance]:
        """Report one job of `total` steps, `initial` of which were finished by an earlier run."""
        ...


class NoProgress:
    """Reports nothing."""

    @contextmanager
    def task(self, name: str, total: int, initial: int = 0) -> Iterator[Advance]:
        """Accept the steps of a job silently."""

        def advance(steps: int = 1, *, detail: str = "") -> None:
            """Do nothing."""

        yield advance


class LogProgress:
    """Logs a line for every tenth of a job, for log files and pipes."""

    @contextmanager
    def task(self, name: str, total: int, initial: int = 0) -> Iterator[Advance]:
        """Log the steps of a job and the estimated time left."""
        start_time, num_done = time.monotonic(), initial
        logged_tenth = -1
        log.info("%s: %d to do", name, total - initial)

        def advance(steps: int = 1, *, detail: str = "") -> None:
            nonlocal num_done, logged_tenth
            num_done += steps
            tenth = num_done * 10 // max(1, total)
            if tenth > logged_tenth:
                logged_tenth = tenth
                seconds_per_step = (time.monotonic() - start_time) / max(1, num_done - initial)
                seconds = seconds_per_step * (total - num_done)
                log.info("%s: %d of %d, %.0f s left  %s", name, num_done, total, seconds, detail)

        yield advance
        log.info("%s: done in %.0f s", name, time.monotonic() - start_time)


class BarProgress:
    """Draws a bar for each job on stderr."""

    @contextmanager
    def task(self, name: str, total: int, initial: int = 0) -> Iterator[Advance]:
        """Draw a bar with the number of steps, the elapsed time and the estimated time left."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description:<30}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
        )
        with RichProgress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(name, total=total, completed=initial, detail="")

            def advance(steps: int = 1, *, detail: str = "") -> None:
                bars.update(task, advance=steps, detail=detail)

            yield advance


def default_progress() -> Progress:
    """Return bars if stderr is a terminal, else log lines."""
    return BarProgress() if sys.stderr.isatty() else LogProgress()


@contextmanager
def shown_progress(*, silent: bool) -> Iterator[Progress]:
    """Yield progress reporting whose log lines are seen in a Python program, too, which may have set up no log.

    Where no log takes lines of INFO, those of the block are printed on stderr, as the command line does.

    Args:
        silent: Report nothing where no log takes the lines.
    """
    package = logging.getLogger("caldera")
    if package.isEnabledFor(logging.INFO) and package.hasHandlers():
        yield default_progress()
    elif silent:
        yield NoProgress()
    else:
        handler, level, propagates = _PrintedInfo(), package.level, package.propagate
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        package.propagate = False
        try:
            yield default_progress()
        finally:
            package.removeHandler(handler)
            package.setLevel(level)
            package.propagate = propagates


class _PrintedInfo(logging.Handler):
    """Prints lines of INFO to stderr; warnings go where they went before."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        if record.levelno < logging.WARNING:
            sys.stderr.write(f"{self.format(record)}\n")
        else:
            logging.getLogger().handle(record)
