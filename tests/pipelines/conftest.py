"""Fixtures of the pipeline tests, and commands that are killed."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest


@pytest.fixture
def long_language(language_folder: Path, tmp_path: Path) -> Path:
    """The random language model with room for long dialogues."""
    folder = tmp_path / "language"
    folder.mkdir()
    for file in language_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1200}))
    return folder


def run_and_kill(command: Sequence[str], folder: Path, patiences: Iterable[float]) -> None:
    """Run a command to its end in `uninterrupted`, and in `killed` after a SIGKILL for each number of seconds."""
    subprocess.run(
        [*command, "--out", str(folder / "uninterrupted")], check=True, capture_output=True
    )
    killed = [*command, "--out", str(folder / "killed")]
    for patience in patiences:
        process = subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(patience)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(killed, check=True, capture_output=True)
