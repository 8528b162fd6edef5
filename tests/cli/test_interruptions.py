"""Signals reach a command wherever it is, and every command has a message for them."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from caldera.cli import app
from caldera.cli.interruptions import MESSAGES, NOTHING_WRITTEN, _run_stoppable
from caldera.errors import Interrupted
from caldera.evaluation.benchmarks.registry import BENCHMARKS
from caldera.interruption import deferred_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def leaf_commands(command: Any, names: tuple[str, ...] = ()) -> Iterator[str]:  # noqa: ANN401
    """Yield the words of every command below a group."""
    if not isinstance(command, TyperGroup):
        yield " ".join(names)
        return
    context = command.context_class(command, info_name=names[-1] if names else "")
    for name in command.list_commands(context):
        yield from leaf_commands(command.get_command(context, name), (*names, name))


def test_every_command_has_a_message() -> None:
    """Only benchmarks share the message of their group."""
    commands = set(leaf_commands(typer.main.get_command(app)))
    assert len(commands) > 30
    others = commands - MESSAGES.keys()
    assert others == {f"evaluate {name}" for name in (*BENCHMARKS, "coco")}
    assert MESSAGES.keys() - commands == {"evaluate"}


def finalizer(number: int) -> None:
    """Send a signal where Python ignores exceptions."""

    class Object:
        def __del__(self) -> None:
            signal.raise_signal(number)

    Object()
    time.sleep(5)


def broken_finalizer(number: int) -> None:
    """Fail in the finalizer of an object that the signal left unfinished."""

    class Object:
        def __del__(self) -> None:
            raise AttributeError("unfinished")

    half_built = Object()
    signal.raise_signal(number)
    del half_built


def broken_import(number: int) -> None:
    """Fail as libraries do whose import is interrupted."""
    with suppress(KeyboardInterrupt):
        signal.raise_signal(number)
    raise ImportError("numpy.core.multiarray failed to import")


def deferred(number: int) -> None:
    """Finish after a signal and tell what was kept."""
    with deferred_signals() as request:
        signal.raise_signal(number)
        request.raise_if_requested("stopped; the first half is kept")


def twice(work: Callable[[int], None]) -> Callable[[int], None]:
    """Return work whose signal is the second one, within a piece that should have been finished first."""

    def deferred_work(number: int) -> None:
        with deferred_signals():
            signal.raise_signal(signal.SIGHUP)
            work(number)

    return deferred_work


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("work", "message"),
    [
        (signal.raise_signal, NOTHING_WRITTEN),
        (twice(signal.raise_signal), NOTHING_WRITTEN),
        (twice(finalizer), NOTHING_WRITTEN),
        (twice(broken_finalizer), NOTHING_WRITTEN),
        (twice(broken_import), NOTHING_WRITTEN),
        (finalizer, NOTHING_WRITTEN),
        (broken_finalizer, NOTHING_WRITTEN),
        (broken_import, NOTHING_WRITTEN),
        (deferred, "stopped; the first half is kept"),
    ],
)
def test_a_signal_ends_a_command_wherever_it_arrives(
    tmp_path: Path, work: Callable[[int], None], message: str, number: int
) -> None:
    """In ordinary work, in a finalizer, in an import and in deferred work; the handlers are restored."""
    before = {other: signal.getsignal(other) for other in signal.valid_signals()}
    (tmp_path / "data.json").write_text("of an earlier command")
    with pytest.raises(Interrupted, match=f"^{message}$") as ended:
        _run_stoppable("data mix", lambda out_file: work(number), out_file=tmp_path / "data.json")
    assert ended.value.exit_code == 128 + number
    del before[signal.SIGALRM]
    assert {other: signal.getsignal(other) for other in before} == before


def test_files_that_were_written_are_named(tmp_path: Path) -> None:
    """With those that were not; a file that only begins with the same word does not count."""
    out = tmp_path / "data.json"

    def write(out_file: Path) -> None:
        out_file.with_name("data.skipped.jsonl").write_text("{}")
        out_file.with_name("database.json").write_text("{}")
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as ended:
        _run_stoppable("data mix", write, out_file=out)
    skipped = tmp_path / "data.skipped.jsonl"
    assert str(ended.value) == (
        f"stopped; written: {skipped}; not written: {out}; repeat the command"
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_first_imports_is_one_line(tmp_path: Path, number: int) -> None:
    """As soon as the program has begun to import its command line; of output only if the command has any."""
    words = ["serve", "x"] if number == signal.SIGTERM else ["data", "check", "x.json"]
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "caldera", *words],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stderr
    with process:
        for line in process.stderr:
            if line.endswith(" typer._click\n"):
                process.send_signal(number)
                break
        lines = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.returncode == 128 + number
    assert lines == ["stopped\n" if words[0] == "serve" else "stopped; nothing was written\n"]
