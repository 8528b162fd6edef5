"""`caldera doctor`, also where packages are missing, broken or of another version."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.cli.options import silence_libraries
from tests.cli.conftest import CommandResult

HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
"""
"""Start-up module of Python that makes the imports of some packages fail."""


@pytest.fixture
def run_without(tmp_path: Path) -> Callable[..., CommandResult]:
    """A function that runs a command in a Python that lacks packages, or has them in other versions."""

    def run(names: set[str], *words: str, versions: dict[str, str] | None = None) -> CommandResult:
        (tmp_path / "sitecustomize.py").write_text(HIDE.format(names=names))
        for name, version in (versions or {}).items():
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (folder / "METADATA").write_text(text)
        result = subprocess.run(
            [sys.executable, "-m", "caldera", *words],
            env={
                **os.environ,
                "PYTHONPATH": str(tmp_path),
                "HF_HUB_OFFLINE": "1",
                "COLUMNS": "200",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return CommandResult(result.returncode, result.stdout, result.stderr)

    return run


HEAVY = {"torch", "transformers", "matplotlib", "tensorboard"}


def test_a_broken_installation_is_described_without_a_traceback(
    run_without: Callable[..., CommandResult],
) -> None:
    """What is missing or of another version is named with the line that mends it; the exit code is 0."""
    versions = {"tokenizers": "0.1.0"}
    result = run_without({*HEAVY, "gradio"}, "doctor", versions=versions)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    assert "torch is missing: pip install 'torch<2.14,>=2.13'" in result.stdout
    assert (
        "0.1.0 is not supported; tokenizers>=0.22: pip install 'tokenizers>=0.22'" in result.stdout
    )
    assert "cannot be imported, so nothing is known of devices" in result.stdout
    assert "needs gradio: pip install 'caldera[web]'" in result.stdout
    assert "offline, as HF_HUB_OFFLINE=1 asks" in result.stdout


def test_a_blocked_command_names_what_mends_it(run_without: Callable[..., CommandResult]) -> None:
    """Packages that every command needs, and those of its own extra."""
    result = run_without({*HEAVY, "fastapi", "pyarrow"}, "doctor", "serve", "--json")
    assert result.returncode == 2
    report = json.loads(result.stdout)
    blocked_by = report["blocked_by"]
    assert any(line.startswith("torch is missing: pip install") for line in blocked_by)
    assert "the server needs fastapi: pip install 'caldera[serve]'" in blocked_by
    assert not any("pyarrow" in line for line in blocked_by)
    assert result.stderr.startswith("error: caldera serve cannot run: ")
    assert "pip install 'caldera[serve]'" in result.stderr


def test_without_the_packages_of_the_command_line_the_program_is_one_line(
    run_without: Callable[..., CommandResult],
) -> None:
    """Then not even `doctor` can start."""
    result = run_without({"typer"}, "doctor")
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: the package typer is missing: ")
    assert line.endswith(" -m pip install --upgrade caldera")


def test_a_whole_installation_blocks_nothing(
    call: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict is first; then facts of this machine, with the variables that the user set."""
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr("caldera.cli.options._silenced", {})
    silence_libraries()
    result = call("doctor", "data", "to-parquet")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("nothing blocks caldera data to-parquet\n")
    [environment] = re.findall(r"(?s)\nenvironment\n(.*)", result.stdout)
    assert "TRANSFORMERS_VERBOSITY" not in environment
    assert re.search(r"  TOKENIZERS_PARALLELISM +true\n", environment)
    assert "--device cpu --dtype" in result.stdout or "--device cuda" in result.stdout
    for command in (["train"], ["train", "pretrain"], ["evaluate", "pope"], ["demo"], ["doctor"]):
        assert call("doctor", *command).returncode == 0
    result = call("doctor", "push")
    assert result.returncode == 2
    assert "uploads need the Hub: unset HF_HUB_OFFLINE" in result.stderr


def test_an_unknown_command_has_a_suggestion(call: Callable[..., CommandResult]) -> None:
    """Nothing is examined for it."""
    result = call("doctor", "serv")
    assert result.returncode == 2
    assert "no command is called 'serv'; did you mean 'serve'?" in result.stderr
    assert not result.stdout
