"""What a long job says while it runs: a bar on a terminal, a line now and then elsewhere, nothing in tests."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

log = logging.getLogger(__name__)


class Advance(Protocol):
    """Called as a job goes on."""

    def __call__(self, steps: int = 1, *, shown: str = "") -> None:
        """Advance by `steps`; `shown` stands behind the bar, such as a loss."""
        ...


class Progress(Protocol):
    """Follows jobs."""

    def task(self, name: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Follow one job of `total` steps, of which `done` were done before."""
        ...


class NoProgress:
    """Says nothing."""

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Follow one job without a word."""

        def tick(steps: int = 1, *, shown: str = "") -> None:
            """Do nothing."""

        yield tick


class LogProgress:
    """Logs a line every tenth of a job, for logs and pipes."""

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Follow one job by lines."""
        begun, first, now = time.monotonic(), done, done
        told = -1
        log.info("%s: %d to do", name, total - done)

        def tick(steps: int = 1, *, shown: str = "") -> None:
            nonlocal now, told
            now += steps
            tenth = now * 10 // max(1, total)
            if tenth > told:
                told = tenth
                left = (time.monotonic() - begun) / max(1, now - first) * (total - now)
                log.info("%s: %d of %d, %.0f s left  %s", name, now, total, left, shown)

        yield tick
        log.info("%s: done in %.0f s", name, time.monotonic() - begun)


class BarProgress:
    """Draws a bar for each job on the terminal's error stream."""

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Follow one job by a bar that says how far it is and how long it will take."""
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
            TextColumn("{task.fields[shown]}", markup=False),
        )
        with RichProgress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(name, total=total, completed=done, shown="")

            def tick(steps: int = 1, *, shown: str = "") -> None:
                bars.update(task, advance=steps, shown=shown)

            yield tick


def default_progress() -> Progress:
    """Return bars where a person looks at the error stream, lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else LogProgress()
