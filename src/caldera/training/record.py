"""Numbers of a run in, `metrics.jsonl` and TensorBoard's event files out."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from caldera.storage import write_whole, writing


class Record:
    """Appends one line of numbers for each event of a run; a run that goes on drops what came after its checkpoint."""

    def __init__(self, folder: Path, *, after_step: int = -1) -> None:
        """Open the record in `folder`; lines of steps after `after_step` are dropped, as they will come again."""
        from torch.utils.tensorboard import SummaryWriter  # heavy, and only needed here

        self._file = folder / "metrics.jsonl"
        self._begun = time.monotonic()
        if self._file.is_file():
            kept = [
                line for line in self._file.read_text().splitlines() if _step(line) <= after_step
            ]
            write_whole(self._file, "".join(f"{line}\n" for line in kept))
        with writing(folder):
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after_step + 1)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Note `values` at `step`.

        Raises:
            OutputError: They cannot be written.
        """
        line = {"step": step, "seconds": round(time.monotonic() - self._begun, 3), **values}
        with writing(self._file), self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush and close."""
        self._board.close()


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
