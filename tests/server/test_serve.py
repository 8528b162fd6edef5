"""Tests of the command: startup errors, help, and the log."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.server_process import (
    ROOT,
    ServerProcess,
)

RUN_COMMANDS = """
import json, os, sys, tempfile
from caldera.cli import main

def read(file):
    file.seek(0)
    return file.read()

outputs = {}
saved = os.dup(1), os.dup(2)
for name, argv in json.load(sys.stdin).items():
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        os.dup2(out.fileno(), 1), os.dup2(error.fileno(), 2)
        sys.argv, code = argv, 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(saved[0], 1), os.dup2(saved[1], 2)
        outputs[name] = [read(file) for file in (out, error)] + [code]
print(json.dumps(outputs))
"""
"""Program that runs all commands in one process, as each start takes seconds."""


def failing_commands(
    model_folder: Path, tmp_path: Path, port: int
) -> dict[str, tuple[list[str], int, str]]:
    """Return the arguments of commands that must fail, with their exit codes and a part of their messages."""
    no_tokenizer, truncated = tmp_path / "no_tokenizer", tmp_path / "truncated"
    for folder in (no_tokenizer, truncated):
        shutil.copytree(model_folder, folder)
    (no_tokenizer / "tokenizer.json").unlink()
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "empty.txt").write_text("# no keys\n")
    model = str(model_folder)
    return {
        "port in use": ([model, "--port", str(port)], 2, "is in use"),
        "no folder": ([str(tmp_path / "none")], 3, "none"),
        "no tokenizer": ([str(no_tokenizer)], 3, "tokenizer"),
        "truncated weights": ([str(truncated)], 3, "model.safetensors"),
        "no key": ([model, "--host", "0.0.0.0"], 2, "--no-auth"),
        "no key file": ([model, "--api-key-file", str(tmp_path / "none")], 3, "cannot be read"),
        "empty key file": (
            [model, "--api-key-file", str(tmp_path / "empty.txt")],
            2,
            "contains no key",
        ),
        "media folder": (
            [model, "--allowed-local-media-path", str(tmp_path / "none")],
            2,
            "media folder",
        ),
        "host": ([model, "--allowed-media-domains", "http://a.example"], 2, "is not valid"),
        "unknown setting": ([model, "--set", "limits.imges=3"], 2, "did you mean 'images'"),
        "option": ([model, "--hots", "x"], 2, "--host"),
        "value": ([model, "--set", "limits.images=many"], 2, "does not fit"),
    }


def test_startup_errors_are_one_line(
    model_folder: Path, tmp_path: Path, server: ServerProcess
) -> None:
    """A port in use, folders that cannot be loaded, wrong options: one line, an exit code, and no traceback."""
    expected = failing_commands(model_folder, tmp_path, server.port)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", "NO_COLOR": "1"}
    environment.pop("CALDERA_API_KEY", None)
    commands = json.dumps(
        {name: ["caldera", "serve", *words] for name, (words, *_) in expected.items()}
    )
    process = subprocess.run(
        [sys.executable, "-c", RUN_COMMANDS], input=commands, stdout=subprocess.PIPE, text=True, env=environment
    )  # fmt: skip
    outputs = json.loads(process.stdout)
    for name, (_, code, message) in expected.items():
        stdout, stderr, exit_code = outputs[name]
        assert exit_code == code, (name, stderr)
        assert message in stderr, (name, stderr)
        assert "Traceback" not in stderr
        assert stdout == "", "it must not print a URL"
        assert len(stderr.strip().splitlines()) == 1 or name == "option", stderr


@pytest.mark.parametrize(
    "setting", [{"COLUMNS": "40"}, {"NO_COLOR": "1"}, {"LANG": "C", "LC_ALL": "C"}]
)
def test_help_works_on_any_terminal(setting: dict[str, str]) -> None:
    """A closed pipe, forty columns, no colors and the C locale: no traceback."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **setting}
    command = f"{sys.executable} -m caldera serve --help | head -3"
    process = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert "Usage" in process.stdout
    assert "\x1b" not in process.stdout
    assert process.stderr == ""


def test_logs_contain_no_content(server: ServerProcess, in_log: Callable[[str], bool]) -> None:
    """Each request is a line of JSON with an id, a route, a status and counts, without any text of it."""
    answer = server.ask("a very secret question", user="someone")
    server.wait_until(lambda: in_log(answer.headers["x-request-id"]))
    [line] = [
        line for line in server.log if line.get("request_id") == answer.headers["x-request-id"]
    ]
    assert line["route"] == "/v1/chat/completions"
    assert (line["status"], line["images"], line["completion_tokens"]) == (200, 0, 12)
    assert not in_log("secret")
    assert not in_log("someone")
    assert not in_log(answer.text)


@pytest.fixture
def in_log(server: ServerProcess) -> Callable[[str], bool]:
    """A function that searches for a text in everything that a server wrote."""
    return lambda text: any(re.search(re.escape(text), line) for line in server.lines)
