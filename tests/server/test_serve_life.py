"""Rows D6 and D9, and the command's part of I1 and I2: how a server starts and ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.server_process import ROOT, ServerProcess
from tests.server.test_serve_streams import deaf_client


def begun(server: ServerProcess) -> None:
    """Wait until it answers something."""
    server.wait_until(lambda: server.metric("caldera_running") > 0)


def draining(server: ServerProcess) -> None:
    """Wait until it takes nothing new."""
    server.wait_until(lambda: server.get("/ready").status == 503)


def rest(client: socket.socket) -> bytes:
    """Read all that a server still says, and return the last of it, without the lengths of its chunks."""
    text = b""
    while read := client.recv(1 << 20):
        text = (text + read)[-1000:]
    return re.sub(rb"\r\n[0-9a-f]*\r\n", b"", text)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_d6_answers_under_way_are_finished(
    model_folder: Path, loopback: None, number: signal.Signals
) -> None:
    """D6: told to end, it refuses what is new, finishes what runs, and ends well with no process left."""
    with ServerProcess(model_folder) as server:
        server.ask("What is it?", b"")
        client = deaf_client(server)  # its answer cannot end before it reads
        begun(server)
        children = server.children()
        server.process.send_signal(number)
        draining(server)
        answer = server.ask("What?")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (
            503,
            "shutting_down",
            "2",
        )
        assert server.get("/health").status == 200
        text = rest(client)
        assert b"data: [DONE]" in text
        assert b"error" not in text
        assert server.end() == 0
        assert not any(Path(f"/proc/{child}").exists() for child in children)
        client.close()


@pytest.mark.parametrize("again", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_d6_what_does_not_finish_is_told_so(
    model_folder: Path, loopback: None, again: bool
) -> None:
    """D6: at a second SIGTERM, or when the drain is over, streams end with an error and [DONE], and it ends well."""
    with ServerProcess(
        model_folder, "--set", f"limits.drain_timeout={300 if again else 0.3}"
    ) as server:
        clients = [deaf_client(server) for _ in range(2)]  # whose answers cannot end unread
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200", "it has begun"
        server.process.send_signal(signal.SIGTERM)
        draining(server)
        if again:
            server.process.send_signal(signal.SIGTERM)
        for client in clients:
            *_, error, done = rest(client).split(b"data: ")
            assert json.loads(error)["error"]["code"] == "shutting_down"
            assert done.startswith(b"[DONE]")
            client.close()
        assert server.end() == 0


ONE_AFTER_ANOTHER = """
import json, os, sys, tempfile
from caldera.cli import main

def read(file):
    file.seek(0)
    return file.read()

said = {}
kept = os.dup(1), os.dup(2)
for name, words in json.load(sys.stdin).items():
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        os.dup2(out.fileno(), 1), os.dup2(error.fileno(), 2)
        sys.argv, code = words, 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(kept[0], 1), os.dup2(kept[1], 2)
        said[name] = [read(file) for file in (out, error)] + [code]
print(json.dumps(said))
"""
"""Runs commands in one process, as to start one takes seconds."""


def failures(
    model_folder: Path, tmp_path: Path, port: int
) -> dict[str, tuple[list[str], int, str]]:
    """Return commands that must fail, their exit codes and what they say."""
    no_tokenizer, cut = tmp_path / "no_tokenizer", tmp_path / "cut"
    for folder in (no_tokenizer, cut):
        shutil.copytree(model_folder, folder)
    (no_tokenizer / "tokenizer.json").unlink()
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "empty.txt").write_text("# none yet\n")
    model = str(model_folder)
    return {
        "port in use": ([model, "--port", str(port)], 2, "is in use"),
        "no folder": ([str(tmp_path / "none")], 3, "none"),
        "no tokenizer": ([str(no_tokenizer)], 3, "tokenizer"),
        "cut weights": ([str(cut)], 3, "model.safetensors"),
        "open to all": ([model, "--host", "0.0.0.0"], 2, "--insecure"),
        "no key file": ([model, "--key-file", str(tmp_path / "none")], 3, "cannot be read"),
        "empty key file": ([model, "--key-file", str(tmp_path / "empty.txt")], 2, "holds no key"),
        "media folder": ([model, "--media-root", str(tmp_path / "none")], 2, "media folder"),
        "host": ([model, "--fetch-from", "http://a.example"], 2, "is not understood"),
        "I1 setting": ([model, "--set", "limits.imges=3"], 2, "did you mean 'images'"),
        "I1 option": ([model, "--hots", "x"], 2, "--host"),
        "I1 value": ([model, "--set", "limits.images=many"], 2, "does not fit"),
    }


def test_d9_i1_what_cannot_be_served_is_told_in_a_line(
    model_folder: Path, tmp_path: Path, server: ServerProcess
) -> None:
    """D9, I1: a taken port, folders that cannot be loaded, wrong options: a line, an exit code, and no traceback."""
    wanted = failures(model_folder, tmp_path, server.port)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", "NO_COLOR": "1"}
    environment.pop("CALDERA_API_KEY", None)
    commands = json.dumps(
        {name: ["caldera", "serve", *words] for name, (words, *_) in wanted.items()}
    )
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER], input=commands, stdout=subprocess.PIPE, text=True, env=environment
    )  # fmt: skip
    said = json.loads(done.stdout)
    for name, (_, code, told) in wanted.items():
        out, error, exited = said[name]
        assert exited == code, (name, error)
        assert told in error, (name, error)
        assert "Traceback" not in error
        assert out == "", "it never said where it listens"
        assert len(error.strip().splitlines()) == 1 or name == "I1 option", error


@pytest.mark.parametrize(
    "setting", [{"COLUMNS": "40"}, {"NO_COLOR": "1"}, {"LANG": "C", "LC_ALL": "C"}]
)
def test_i2_help_is_readable_anywhere(setting: dict[str, str]) -> None:
    """I2: a closed pipe, forty columns, no colors and a plain locale: no traceback."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **setting}
    command = f"{sys.executable} -m caldera serve --help | head -3"
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert "Usage" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_logs_say_nothing_of_what_was_said(
    server: ServerProcess, in_log: Callable[[str], bool]
) -> None:
    """Each request is a line of JSON with an id, a route, a status and counts, and no word of it."""
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
    """A way to look for words in all that a server wrote."""
    return lambda text: any(re.search(re.escape(text), line) for line in server.lines)
