"""`caldera push` in a process of its own, against a Hub on this machine."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from tests.cli.conftest import CommandResult
from tests.hub_server import TOKEN, Answer, Request, hub_environment, use_hub
from tests.hub_upload_server import UploadServer
from tests.published_run import save_sharded

NAME = "workshop/assistant"


@pytest.fixture
def hub(loopback: None) -> Iterator[UploadServer]:
    """A Hub."""
    with UploadServer() as server:
        yield server


@pytest.fixture
def environment(hub: UploadServer, tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose token may write; git-lfs is used, as the server does not speak Xet's protocol."""
    own = hub_environment(hub.url, tmp_path / "hub" / "cache", TOKEN)
    return {**own, "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def model(assistant: LlavaBundle, tmp_path: Path) -> Path:
    """A model folder with weights in three files."""
    return save_sharded(tmp_path / "model", assistant)


def caldera(
    *words: str | Path, environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "caldera", *map(str, words)],
        cwd=folder, env=environment, text=True, capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub
def test_a_push_shows_everything_and_the_token_nowhere(
    hub: UploadServer,
    model: Path,
    tmp_path: Path,
    call: Callable[..., CommandResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a terminal it shows and refuses; with --yes it uploads; no output and no file has the token."""
    use_hub(monkeypatch, hub.url, tmp_path / "cache", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.chdir(tmp_path)
    (model / ".env").write_text("SECRET=1")

    printed = call("push", "model", NAME, "--dry-run")
    refused = call("push", "model", NAME)
    assert hub.requests == []
    pushed = call("push", "model", NAME, "--yes", "--private")
    assert printed.returncode == 0, printed.stderr
    assert "nothing was sent (--dry-run)" in printed.stderr
    assert refused.returncode == 2
    assert "there is no terminal to confirm on; check the above and add --yes" in refused.stderr
    assert pushed.returncode == 0, pushed.stderr
    repo = hub.repos["model", NAME]
    assert pushed.stdout == f"{printed.stdout}{hub.url}/{NAME}/commit/{repo.refs['main']}\n"
    assert refused.stdout == printed.stdout
    for result in (printed, refused, pushed):
        assert "not uploaded: .env (hidden)" in result.stderr
        assert all(path.name in result.stderr for path in model.iterdir())
        assert TOKEN not in result.stdout + result.stderr
    assert f"{NAME} is new, and private" in pushed.stderr
    assert repo.private
    files = repo.commits[repo.refs["main"]]
    assert files["README.md"].decode() + "\n" == printed.stdout
    assert not any(TOKEN.encode() in content for content in files.values())
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)
    assert not (model / "README.md").exists()


@pytest.mark.slow
def test_a_push_asks_on_a_terminal(
    hub: UploadServer, environment: dict[str, str], model: Path, tmp_path: Path
) -> None:
    """It names the repository and what changes there; `n` sends nothing, `y` uploads."""
    hub.add(NAME, {"model-00009-of-00009.safetensors": b"x", "README.md": b"old"})
    for answer, commits in ((b"n\n", 1), (b"y\n", 2)):
        main, terminal = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "caldera", "push", "model", NAME],
            cwd=tmp_path, env=environment, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            os.write(main, answer)
            _, errors = process.communicate()
        os.close(main)
        os.close(terminal)
        assert process.returncode == 0, errors.decode()
        assert f"{NAME} exists (public: anybody sees it); a commit is added to" in errors.decode()
        assert "replaced if they differ: README.md" in errors.decode()
        assert "removed, as the new model does not have them: model-00009" in errors.decode()
        assert f"Upload to {NAME}? [y/N]" in errors.decode()
        assert ("nothing was sent" in errors.decode()) == (answer == b"n\n")
        assert len(hub.repos["model", NAME].commits) == commits


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_push_is_repeated_without_sending_files_again(
    hub: UploadServer,
    environment: dict[str, str],
    model: Path,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """Killed at the second of three files: nothing is committed, and the first is not sent again."""

    def hold(request: Request) -> Answer | None:
        return Answer(delay=20) if request.method == "PUT" and hub.stored else None

    hub.faults.append(hold)
    command = [sys.executable, "-m", "caldera", "push", "model", NAME, "--yes"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE
    ) as process:
        while sum(request.method == "PUT" for request in hub.requests) < 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 143)
    if number == signal.SIGTERM:
        assert b"stopped; what the Hub has received is not sent again, repeat" in errors
    assert len(hub.repos["model", NAME].commits) == 1
    assert len(hub.stored) == 1
    hub.faults.clear()
    hub.requests.clear()
    repeated = caldera("push", "model", NAME, "--yes", environment=environment, folder=tmp_path)
    assert repeated.returncode == 0, repeated.stderr
    assert "exists (public" in repeated.stderr
    assert sum(request.method == "PUT" for request in hub.requests) == 2
    repo = hub.repos["model", NAME]
    files = repo.commits[repo.refs["main"]]
    assert all(files[path.name] == path.read_bytes() for path in model.iterdir())


@pytest.mark.slow
def test_a_pushed_model_answers_by_its_name(
    hub: UploadServer,
    environment: dict[str, str],
    assistant: LlavaBundle,
    photos: Path,
    tmp_path: Path,
) -> None:
    """Downloaded by another user's chat, it gives the answer of the folder that was pushed."""
    save_model_folder(tmp_path / "model", assistant)
    pushed = caldera("push", "model", NAME, "--yes", environment=environment, folder=tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    question = ("--image", photos / "1.png", "--prompt", "what is this?", "--max-new-tokens", "9")
    other = hub_environment(hub.url, tmp_path / "other" / "cache")
    here = caldera("chat", "model", *question, environment=other, folder=tmp_path)
    there = caldera("chat", NAME, *question, environment=other, folder=tmp_path)
    assert there.returncode == 0, there.stderr
    assert there.stdout == here.stdout
    [folder] = (tmp_path / "other" / "cache").glob("models--*/snapshots/*")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "model" / path.name).read_bytes()
