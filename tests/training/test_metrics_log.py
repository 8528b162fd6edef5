"""What a run records is in its files when `add` returns, or the caller is told."""

import subprocess
import sys
from pathlib import Path

from caldera.training.metrics_log import read_metrics

RECORDING_WITHOUT_ROOM = """
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


def test_a_full_disk_is_told_at_once_for_tensorboard_too(tmp_path: Path) -> None:
    """The step that finds no room in the event file raises one line, nothing is said later by a thread."""
    done = subprocess.run(
        [sys.executable, "-c", RECORDING_WITHOUT_ROOM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )

    step, _, message = done.stdout.partition(" ")
    assert message.startswith(f"cannot write {tmp_path / 'tensorboard' / 'events.out.tfevents.'}")
    assert message.endswith(": File too large; free space or choose another path, then run again\n")
    assert done.stderr == ""
    assert [event["step"] for event in read_metrics(tmp_path / "metrics.jsonl")] == [
        *range(int(step) + 1)
    ]
