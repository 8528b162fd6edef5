"""Numbers of a run in, `metrics.jsonl` and TensorBoard's event files out."""

import json
import os
import time
from pathlib import Path
from typing import Any

from caldera.files.atomic import translate_os_errors, write_atomic


class MetricsLog:
    """Appends one line of numbers for each event of a run; a run that goes on drops what came after its checkpoint."""

    def __init__(self, folder: Path, *, after_step: int = -1) -> None:
        """Open the record in `folder`; lines of steps after `after_step` are dropped, as they will come again.

        Raises:
            OutputError: It cannot be written.
        """
        self._file = folder / "metrics.jsonl"
        self._begun = time.monotonic()
        if self._file.is_file():
            kept = [
                line for line in self._file.read_text().splitlines() if _step(line) <= after_step
            ]
            write_atomic(self._file, "".join(f"{line}\n" for line in kept))
        self._board = _TensorBoardWriter(folder / "tensorboard", purge_step=after_step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Note `values` at `step`.

        Raises:
            OutputError: They cannot be written.
        """
        line = {"step": step, "seconds": round(time.monotonic() - self._begun, 3), **values}
        with translate_os_errors(self._file), self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._board.add(step, values)


class _TensorBoardWriter:
    """TensorBoard's event file, written at once.

    TensorBoard's own writer has a thread, where a full disk ends in a traceback and is noticed steps later.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """Begin a file in `folder`; TensorBoard then hides what earlier files hold from `from_step` on."""
        from tensorboard.compat.proto.event_pb2 import (  # heavy, and only needed here
            Event,
            SessionLog,
        )

        begun = time.time()
        self._file = folder / f"events.out.tfevents.{begun:.6f}.{os.getpid()}"
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        start = SessionLog(status=SessionLog.START)
        self._append(
            Event(wall_time=begun, file_version="brain.Event:2"),
            Event(wall_time=begun, step=purge_step, session_log=start),
        )

    def add(self, step: int, values: dict[str, float]) -> None:
        """Note `values` at `step`.

        Raises:
            OutputError: They cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        told = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=told)))

    def _append(self, *events: Any) -> None:  # noqa: ANN401 - generated classes without types
        """Write events behind those of the file."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        with translate_os_errors(self._file), self._file.open("ab") as file:
            records = RecordWriter(file)
            for event in events:
                records.write(event.SerializeToString())


def _step(line: str) -> float:
    """Return the step of a line; a torn last line counts as one to drop."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Read a run's metrics, one dict for each event, without torn lines."""
    if not file.is_file():
        return []
    lines = file.read_text().splitlines()
    return [json.loads(line) for line in lines if _step(line) != float("inf")]
