"""Every command that takes a model or a tower takes its name on the Hub."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

from tests.cli.conftest import CommandResult
from tests.formats.conftest import write_llava_hf
from tests.hub_server import TOKEN, Answer, HubServer, Request, hub_environment, sha256

Command = Callable[..., CommandResult]

MODEL = "llava-hf/llava-1.5-7b-hf"
TOWERS = "--vision openai/tiny-clip --language lmsys/tiny-vicuna"

COMMANDS = {
    "chat": "chat MODEL --prompt hi --max-new-tokens 2",
    "evaluate": "evaluate custom --model MODEL --questions questions.jsonl --out out",
    "inspect": "data inspect data.json --model MODEL",
    "export": "export MODEL --to original --out out",
    "import": "import MODEL --template vicuna_v1 --out out",
    "import towers": f"import {TOWERS} --out out",
    "finetune": "train finetune --model MODEL@main --data data.json --out out --set max_steps=1",
    "pretrain": f"train pretrain {TOWERS} --data data.json --out out --set max_steps=1",
    "recipe": f"train recipe llava_15_7b {TOWERS} --pretrain-data data.json --data data.json --out out "
    "--set pretrain.max_steps=1 --set finetune.max_steps=1",
}  # fmt: skip
"""A command line for each command and option that takes a model."""


@pytest.fixture
def files(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
    vision_folder: Path,
    language_folder: Path,
) -> HubServer:
    """A working folder with data, and a Hub with a model and two towers."""
    monkeypatch.chdir(tmp_path)
    hub.add(MODEL, write_llava_hf(tmp_path / "folder", tokenizer))
    hub.add("openai/tiny-clip", vision_folder)
    hub.add("lmsys/tiny-vicuna", language_folder)
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png")
    turns = [
        {"from": "human", "value": "<image>\nwhat?"},
        {"from": "gpt", "value": "a dog"},
    ]
    record = {"id": "0", "image": "a.png", "conversations": turns}
    (tmp_path / "data.json").write_text(json.dumps([record]))
    question = {"id": "1", "image": "a.png", "question": "what?", "answer": "a dog"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question))
    return hub


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_names(
    name: str, files: HubServer, tmp_path: Path, call: Command, caplog: pytest.LogCaptureFixture
) -> None:
    """It prints sizes before it downloads, succeeds, and records the commits of what it used."""
    caplog.set_level(logging.INFO, "caldera")
    result = call(*COMMANDS[name].replace("MODEL", MODEL).split())
    assert result.returncode == 0, result.stderr
    sizes = [message for message in caplog.messages if "files to download" in message]
    names = ["openai/tiny-clip", "lmsys/tiny-vicuna"] if "--vision" in COMMANDS[name] else [MODEL]
    pinned = [f"{repo}@{files.repos['model', repo].refs['main']}" for repo in names]
    assert [line.split(":")[0] for line in sizes] == pinned
    cards = [*tmp_path.glob("out/caldera.json"), *tmp_path.glob("out/**/model/caldera.json")]
    for card in cards:
        sources = json.loads(card.read_bytes())["sources"]
        assert sorted(sources.values()) == sorted(pinned)
    if name == "evaluate":
        results = json.loads((tmp_path / "out" / "results.json").read_bytes())
        assert results["provenance"]["model"]["hub"] == pinned[0]
    elif name not in ("chat", "inspect", "export"):
        assert cards


def test_nothing_is_downloaded_for_a_wrong_option(files: HubServer, call: Command) -> None:
    """Options are checked before a download that may take hours."""
    for line in (
        f"chat {MODEL} --prompt hi --dtype float8",
        f"serve {MODEL} --set limits.imagse=2",
        f"import {MODEL} --template vicuna_v9 --out out",
        f"import {MODEL} --template vicuna_v1 --out .",
        f"export {MODEL} --to ggfu --out out",
        f"parity {MODEL} --against gguf --original a",
        f"evaluate custom --model {MODEL} --questions questions.jsonl --set temprature=1",
        f"train finetune --model {MODEL} --data data.json --out out --set epoch=1",
        f"train pretrain {TOWERS} --data data.json --out out --aspect round",
    ):
        result = call(*line.split())
        assert result.returncode == 2, result.stderr
    assert files.requests == []


def run(line: str, hub: HubServer, folder: Path, token: str = "") -> CommandResult:
    """Run a command in a process of its own, against a Hub."""
    environment = hub_environment(hub.url, folder / "hub", token)
    command = [sys.executable, "-m", "caldera", *line.split()]
    ended = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    return CommandResult(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.slow
def test_a_second_time_offline(files: HubServer, tmp_path: Path) -> None:
    """With --offline no request is made, and what is not in the cache is one line and exit code 3."""
    files.repos["model", MODEL].private = True
    line = f"chat {MODEL} --prompt hi --max-new-tokens 2"
    failed = run(line, files, tmp_path)
    assert failed.returncode == 3
    assert "or it is private, and no token is set" in failed.stderr
    online = run(line, files, tmp_path, TOKEN)
    assert online.returncode == 0, online.stderr
    assert TOKEN not in online.stderr
    files.requests.clear()
    offline = run(f"{line} --offline", files, tmp_path)
    assert (offline.returncode, offline.stdout) == (0, online.stdout)
    missing = run("chat org/absent --prompt hi --offline", files, tmp_path)
    assert missing.returncode == 3
    assert missing.stderr.startswith("error: org/absent is not in the cache")
    assert len(missing.stderr.splitlines()) == 1
    assert files.requests == []


@pytest.mark.slow
def test_a_server_has_the_name_of_its_model(files: HubServer, tmp_path: Path) -> None:
    """Clients see the name on the Hub."""
    command = [sys.executable, "-m", "caldera", "serve", MODEL, "--port", "0", "--no-web"]
    environment = hub_environment(files.url, tmp_path / "hub")
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            assert process.stdout is not None
            title, _, url = process.stdout.readline().strip().partition(" at ")
            assert title == MODEL
            with urlopen(f"{url}/models") as response:
                assert json.load(response)["data"][0]["id"] == MODEL
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


DOWNLOAD = """
from caldera.files.hub import download, find_snapshot
from caldera.files.hub_cache import HubName
from caldera.progress import NoProgress
snapshot = find_snapshot(HubName("org/large"), lambda listing, read: listing.files)
download([snapshot], NoProgress())
print(snapshot.folder)
"""


def test_a_killed_download_transfers_only_the_rest(hub: HubServer, tmp_path: Path) -> None:
    """SIGKILL in the middle of a file: the next run continues at the byte where the first one ended."""
    content = os.urandom(1_500_000)
    hub.add("org/large", {"config.json": b"{}", "model.safetensors": content})
    path = f"/cdn/{sha256(content)}"

    def slow(request: Request) -> Answer | None:
        return Answer(content, seconds_per_chunk=0.05) if request.path == path else None

    hub.faults.append(slow)
    environment = hub_environment(hub.url, tmp_path / "hub")
    command = [sys.executable, "-c", DOWNLOAD]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while hub.sent.get(path, 0) < 500_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    [partial] = (tmp_path / "hub").rglob("*.incomplete")
    present = partial.stat().st_size
    assert 300_000 < present < len(content)
    hub.faults.clear()
    hub.requests.clear()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (Path(ended.stdout.strip()) / "model.safetensors").read_bytes() == content
    ranges = [request.headers.get("range") for request in hub.requests if request.host == "cdn"]
    assert ranges == [f"bytes={present}-"]
    assert not [*(tmp_path / "hub").rglob("*.incomplete")]
