"""Metrics of a run in `metrics.jsonl` and in TensorBoard's event files."""

import json
import os
import time
from pathlib import Path
from typing import Any

from caldera.files.atomic import translate_os_errors, write_atomic

_RENAMED = {"num_learned": "num_supervised_tokens", "wait_share": "data_wait_fraction"}
"""Former names of metrics, in files of earlier versions."""


class MetricsLog:
    """Log of metrics by step; a resumed run removes the steps after its checkpoint."""

    def __init__(self, folder: Path, *, keep_until_step: int = -1) -> None:
        """Open the log in `folder`; lines of later steps are removed, as the run repeats them."""
        self._file = folder / "metrics.jsonl"
        self._start = time.monotonic()
        if self._file.is_file():
            lines = self._file.read_text().splitlines()
            retained = [line for line in lines if _step(line) <= keep_until_step]
            write_atomic(self._file, "".join(f"{line}\n" for line in retained))
        self._tensorboard = _TensorBoardWriter(
            folder / "tensorboard", purge_step=keep_until_step + 1
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append `values` at `step`.

        Raises:
            OutputError: They cannot be written.
        """
        line = {"step": step, "seconds": round(time.monotonic() - self._start, 3), **values}
        with translate_os_errors(self._file), self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._tensorboard.log(step, values)


class _TensorBoardWriter:
    """TensorBoard event file, written synchronously.

    TensorBoard's own writer has a thread, in which a full disk ends in a traceback and is noticed steps later.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """Start a file in `folder`; TensorBoard then hides the steps of earlier files from `purge_step` on."""
        # Imported here because it is slow.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        # TensorBoard reads files by name, and the clock may have been set back since the run was interrupted.
        names = (path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*"))
        now = max([time.time(), *(int(name) + 1.0 for name in names if name.isdigit())])
        self._file = folder / f"events.out.tfevents.{now:.6f}.{os.getpid()}"
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        start = SessionLog(status=SessionLog.START)
        self._append(
            Event(wall_time=now, file_version="brain.Event:2"),
            Event(wall_time=now, step=purge_step, session_log=start),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append `values` at `step`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def _append(self, *events: Any) -> None:  # noqa: ANN401 - generated classes without types
        """Append events to the file."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        with translate_os_errors(self._file), self._file.open("ab") as file:
            records = RecordWriter(file)
            for event in events:
                records.write(event.SerializeToString())


def _step(line: str) -> float:
    """Return the step of a line; infinity for a partial last line, so that it is removed."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Read a run's metrics, one dict for each logged step, without partial lines."""
    if not file.is_file():
        return []
    lines = file.read_text().splitlines()
    events = [json.loads(line) for line in lines if _step(line) != float("inf")]
    return [{_RENAMED.get(name, name): value for name, value in event.items()} for event in events]
