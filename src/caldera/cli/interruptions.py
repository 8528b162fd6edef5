"""Messages of stopped commands, and the handling of signals while a command runs.

Until a command begins, a signal ends the process in `caldera.__main__`. While it runs, the first signal raises
KeyboardInterrupt, unless the work defers it to a point where everything is saved (`deferred_signals`); the second kills
the process. Messages describe what is on disk once unfinished files are removed.
"""

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from glob import escape
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

from caldera.errors import Interrupted
from caldera.interruption import SIGNALS, signal_of, stop_at_once

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

NOTHING_WRITTEN = "stopped; nothing was written"

Arguments = Mapping[str, Any]
"""Arguments of a command by parameter name."""

Describe = Callable[[], str]
"""Returns the message of a command that was stopped."""


def _writes_nothing(_: Arguments) -> Describe:
    """Describe a command without output files."""
    return lambda: "stopped"


def _writes(*names: str) -> Callable[[Arguments], Describe]:
    """Describe a command that writes complete files, from the arguments that name them.

    A file or folder that differs from an output in its suffix only belongs to it: `data.skipped.jsonl` to `data.json`.
    """

    def begin(arguments: Arguments) -> Describe:
        outputs = [Path(arguments[name]) for name in names if arguments[name]]
        before = _snapshot(outputs)

        def describe() -> str:
            after = _snapshot(outputs)
            written = [path for path in sorted(after) if after[path] != before.get(path)]
            if not written:
                return NOTHING_WRITTEN
            missing = [str(path) for path in outputs if str(path) not in written]
            only = f"; not written: {', '.join(missing)}" if missing else ""
            return f"stopped; written: {', '.join(written)}{only}; repeat the command"

        return describe

    return begin


def _snapshot(outputs: list[Path]) -> dict[str, object]:
    """Return the state of every file and folder that belongs to an output, by path."""
    snapshot: dict[str, object] = {}
    for output in outputs:
        for path in {output, *output.parent.glob(f"{escape(output.stem)}.*")}:
            with suppress(OSError):
                # Temporary files, whose names begin with a dot, change the time of a folder.
                files = [*path.glob("[!.]*")] if path.is_dir() else [path]
                if files:
                    snapshot[str(path)] = {file: file.stat().st_mtime_ns for file in files}
    return snapshot


def _keeps(
    parts: Mapping[str, str],
    *,
    folder: str | Callable[[Arguments], Path] = "out_folder",
    resume: str = "repeat the command to resume",
) -> Callable[[Arguments], Describe]:
    """Describe a command that keeps finished parts of its work.

    Args:
        parts: Patterns of files and folders, by name; `{count}`, `{step}` and the names of _JOURNAL_KEYS are filled in.
        folder: Argument that names the folder of the patterns, or a function that returns it.
        resume: How to resume.
    """

    def begin(arguments: Arguments) -> Describe:
        root = Path(arguments[folder]) if isinstance(folder, str) else folder(arguments)

        def describe() -> str:
            if names := list(_parts_in(root, parts)):
                return f"stopped; kept in {root}: {', '.join(names)}; {resume}"
            return "stopped; there is nothing to keep yet, repeat the command"

        return describe

    return begin


_JOURNAL_KEYS = {"answers": b'"key": ', "verdicts": b'"decided": '}
"""Keys that a journal has once for each finished part; in a text of a journal their quotes are escaped."""


def _parts_in(root: Path, parts: Mapping[str, str]) -> Iterator[str]:
    """Yield the names of the parts that exist."""
    for name, pattern in parts.items():
        paths = sorted(path for path in root.glob(pattern) if path.stat().st_size)
        if "{step}" in name:
            # A finished stage needs no checkpoint.
            paths = [path for path in paths if not (path.parents[1] / "model").exists()]
        if paths:
            step = paths[-1].name.rpartition("-")[2].lstrip("0")
            counts = {
                count: sum(_complete_lines(path).count(key) for path in paths)
                for count, key in _JOURNAL_KEYS.items()
                if count in name
            }
            yield name.format(count=len(paths), step=step, **counts)


def _complete_lines(path: Path) -> bytes:
    """Return a journal without a line that was cut off."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _evaluation_folder(arguments: Arguments) -> Path:
    """Return the run folder of an evaluation."""
    from caldera.cli.evaluate_run import default_run_folder

    benchmark = arguments["command"].split()[-1]
    return arguments["out_folder"] or default_run_folder(benchmark, arguments["model"])


def _demo_folder(arguments: Arguments) -> Path:
    """Return the run folder of a demo."""
    return arguments["out_folder"] or Path("runs") / arguments["recipe"]


_FEATURES = {"features of images": "features/*.jsonl"}
_STAGES = {
    "stage 1": "pretrain/model",
    "stage 1 up to step {step}": "pretrain/checkpoints/step-*",
    "stage 2": "finetune/model",
    "stage 2 up to step {step}": "finetune/checkpoints/step-*",
}
_SCENES = {"scenes": "scenes/*", "data": "data/*.json", **_FEATURES}
_DEMO = {
    **_SCENES,
    **_STAGES,
    "stage 2 without stage 1": "without_pretraining/model",
    "stage 2 without stage 1 up to step {step}": "without_pretraining/checkpoints/step-*",
    "answers to {count} sets of questions": "answers/*.json",
    "the model": "model",
    "the report": "report.html",
}
_ABLATIONS = {
    **_SCENES,
    "stage 1 of {count} variants": "pretrain/*/*/model",
    "an unfinished stage 1 up to step {step}": "pretrain/*/*/checkpoints/step-*",
    "an unfinished stage 2 up to step {step}": "*/*/finetune/checkpoints/step-*",
    "scores of {count} variants": "*/seed-*/scores.json",
    "the table": "ablations.md",
}
_WITH_RESUME = "repeat the command with --resume to resume"
_stage = _keeps(
    {
        "the trained model": "model",
        "the checkpoint of step {step}": "checkpoints/step-*",
        **{name: f"../{pattern}" for name, pattern in _FEATURES.items()},
    },
    folder="out",
    resume=_WITH_RESUME,
)
_ANSWERS = {"{answers} answers": "journal.jsonl", "the results": "results.json"}
_VERDICTS = {"{verdicts} verdicts": "journal.jsonl", "the scores": "scores.json"}

MESSAGES: dict[str, Callable[[Arguments], Describe]] = {
    "demo": _keeps(_DEMO, folder=_demo_folder),
    "ablate": _keeps(_ABLATIONS),
    "recipes": _writes_nothing,
    "chat": _writes_nothing,
    "serve": _writes_nothing,
    "doctor": _writes_nothing,
    "import": _writes("out_folder"),
    "export": _writes("out_folder", "json_file"),
    "parity": _writes("json_file"),
    "push": lambda _: (
        lambda: "stopped; what the Hub has received is not sent again, repeat the command"
    ),
    "data generate": _writes("out_file"),
    "data check": _writes("file"),
    "data inspect": _writes_nothing,
    "data import": _writes("out_file"),
    "data mix": _writes("out_file"),
    "data balance": _writes("out_file"),
    "data stats": _writes("file", "page"),
    "data page": _writes("file", "page_file"),
    "data to-parquet": _writes("out_folder"),
    "train pretrain": _stage,
    "train finetune": _stage,
    "train recipe": _keeps({**_FEATURES, **_STAGES}, folder="out", resume=_WITH_RESUME),
    "train merge": _writes("out"),
    "evaluate": _keeps(_ANSWERS, folder=_evaluation_folder),
    "evaluate judge": _keeps(_VERDICTS),
    "evaluate ensemble": _writes("out_folder"),
    "evaluate score": _writes_nothing,
    "evaluate compare": _writes("out_file"),
    "evaluate benchmarks": _writes_nothing,
}
"""Message of each command; "evaluate" is that of every benchmark."""

_RUNS_OF_STAGES = ("demo", "ablate", "train recipe")
"""Commands that describe all of their stages when a stage ends at a safe point."""

_OWN_HANDLERS = ("chat", "serve")
"""Commands that handle signals themselves once they have loaded their model."""


class StoppableGroup(TyperGroup):
    """Group whose commands end with a message when a signal stops them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - signature of the base class
        """Return the command of the first argument."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not isinstance(command, TyperGroup):
            names = [name or ""]
            while ctx.parent is not None:
                names.insert(0, ctx.info_name)
                ctx = ctx.parent
            command.callback = partial(_run_stoppable, " ".join(names), command.callback)
        return name, command, rest


def message_of(command: str) -> Callable[[Arguments], Describe]:
    """Return the message of a command; a benchmark has that of its group."""
    return MESSAGES.get(command) or MESSAGES[command.split()[0]]


def _run_stoppable(command: str, callback: Any, /, **arguments: Any) -> Any:  # noqa: ANN401
    """Run a command; raise Interrupted with its message if a signal stops it."""
    if command in _OWN_HANDLERS:
        return callback(**arguments)
    # It logs the traceback of every request that a signal ends.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    describe = message_of(command)({**arguments, "command": command})
    with _signals_raise() as received:
        try:
            return callback(**arguments)
        except Interrupted as interrupted:
            if command not in _RUNS_OF_STAGES:
                raise
            message, number = describe(), interrupted.signal_number
        except KeyboardInterrupt as interrupt:
            message, number = describe(), signal_of(interrupt)
        except Exception:
            # Libraries turn a KeyboardInterrupt during their import into an ImportError.
            if not received:
                raise
            message, number = describe(), received[0]
        raise Interrupted(message, number)


@contextmanager
def _signals_raise() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt or Terminated at the first signal; yield the list of signals that arrived."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stop_at_once(number, frame)

    def report(unraisable: "UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            # The interruption met a finalizer, whose exceptions are ignored, so it is raised again.
            number = signal_of(unraisable.exc_value)
            received.append(number)
            signal.signal(signal.SIGALRM, lambda _, frame: stop_at_once(number, frame))
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        elif not received:
            former_hook(unraisable)

    # A background job ignores Ctrl-C, and nohup a closed terminal.
    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, handle) for number in handled}
    former_hook, sys.unraisablehook = sys.unraisablehook, report
    # A signal while Python exits has nothing to stop, unless it is the second one.
    after: signal.Handlers = signal.SIG_IGN
    try:
        yield received
    except Interrupted:
        after = signal.SIG_DFL
        raise
    finally:
        sys.unraisablehook = former_hook
        for number, handler in former.items():
            # The handler of `caldera.__main__` would print that nothing was written.
            is_default = handler in (signal.SIG_DFL, signal.default_int_handler)
            signal.signal(number, handler if is_default else after)
