"""Facts about an installation: what the Hub answers, what memory is left, what is never shown."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread

import pytest

from caldera import installation
from caldera.cli.interruptions import MESSAGES
from caldera.errors import UsageError
from caldera.extras import EXTRAS, describe_missing, require_extra
from caldera.installation import SECTIONS, Fact

TOKEN = "hf_secretsecret"


@contextmanager
def hub(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[str]]]:
    """Serve on loopback, and return the URL and the head of each request."""
    heads: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            heads.append(f"{self.requestline}\n{self.headers}")
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heads
    finally:
        server.shutdown()
        server.server_close()


def status(code: int) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return an answer with a status and no body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.end_headers()

    return answer


def hub_facts(home: Path, **environ: str) -> tuple[dict[str, Fact], str]:
    """Return the facts about the Hub in a process of its own, which reads these variables, and its output."""
    code = (
        "import json, os; from dataclasses import asdict; from caldera.installation import SECTIONS\n"
        "print(json.dumps([asdict(fact) for fact in SECTIONS['Hugging Face Hub'](os.environ)]))"
    )
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "HF_HOME": str(home), "HF_HUB_ETAG_TIMEOUT": "1", **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    facts = [
        Fact(**{**fact, "blocks": tuple(fact["blocks"])}) for fact in json.loads(result.stdout)
    ]
    return {fact.name: fact for fact in facts}, result.stdout + result.stderr


@pytest.mark.parametrize("code", [200, 401, 404])
def test_a_hub_that_answers_is_reachable_and_gets_no_token(
    code: int, tmp_path: Path, loopback: None
) -> None:
    """One request without a token; the token is known to be set, and never shown."""
    with hub(status(code)) as (url, heads):
        facts, output = hub_facts(tmp_path, HF_ENDPOINT=url, HF_TOKEN=TOKEN)
    assert facts["Hub"].value.startswith(f"{url} answers")
    assert not facts["Hub"].advice
    assert facts["token"].value == "set"
    [head] = heads
    assert "authorization" not in head.lower()
    assert TOKEN not in head + output


def test_a_hub_that_fails_is_not_reachable(tmp_path: Path, loopback: None) -> None:
    """Uploads are blocked, by that and for lack of a token."""
    with hub(status(503)) as (url, _):
        facts, _ = hub_facts(tmp_path, HF_ENDPOINT=url)
    assert facts["Hub"].advice == (
        f"{url}: it answers 503; check the network, proxies and HF_ENDPOINT"
    )
    assert facts["Hub"].blocks == facts["token"].blocks == ("push",)
    assert facts["token"].value == "not set"


def test_a_hub_that_hangs_is_given_up(tmp_path: Path, loopback: None) -> None:
    """After the time that huggingface_hub itself would wait, here a second."""
    with hub(lambda _: time.sleep(20)) as (url, _):
        start = time.monotonic()
        facts, _ = hub_facts(tmp_path, HF_ENDPOINT=url)
    assert time.monotonic() - start < 15
    assert "no answer in 1 s" in facts["Hub"].advice or "timed out" in facts["Hub"].advice


def test_a_refused_connection_and_a_wrong_endpoint_are_named(
    tmp_path: Path, loopback: None
) -> None:
    """With the reason of the system; credentials in the URL are neither shown nor sent."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    facts, output = hub_facts(tmp_path, HF_ENDPOINT=f"http://bob:password@{address}")
    assert f"http://{address}: " in facts["Hub"].advice
    assert "refused" in facts["Hub"].advice
    assert "password" not in output
    facts, _ = hub_facts(tmp_path, HF_ENDPOINT="file:///etc")
    assert "it is not an HTTP URL" in facts["Hub"].advice


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_nobody(name: str, tmp_path: Path, loopback: None) -> None:
    """The variable that forbids it is named."""
    with hub(status(200)) as (url, heads):
        facts, _ = hub_facts(tmp_path, HF_ENDPOINT=url, **{name: "1"})
    assert facts["Hub"].value == f"offline, as {name}=1 asks"
    assert not heads


def test_secrets_of_the_environment_are_hidden() -> None:
    """Names are shown, and values except keys, tokens and credentials of proxies."""
    environ = {
        "HF_TOKEN": TOKEN,
        "OPENAI_API_KEY": "/sk-secret",
        "CALDERA_API_KEY": "secret",
        "HF_TOKEN_PATH": "/home/me/token",
        "https_proxy": "http://bob:secret@proxy:3128",
        "http_proxy": "bob:secret@proxy:3128",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "1",
        "HOME": "/home/me",
    }
    facts = {fact.name: fact.value for fact in SECTIONS["environment"](environ)}
    assert facts == {
        "CALDERA_API_KEY": "set (hidden)",
        "CUDA_VISIBLE_DEVICES": "1",
        "HF_TOKEN": "set (hidden)",
        "HF_TOKEN_PATH": "/home/me/token",
        "OPENAI_API_KEY": "set (hidden)",
        "TOKENIZERS_PARALLELISM": "false",
        "http_proxy": "...@proxy:3128",
        "https_proxy": "http://...@proxy:3128",
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
def test_limits_of_the_control_group_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest limit of the group and of those above it counts."""
    own = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[2]
    group = tmp_path / "root" / own.lstrip("/")
    group.mkdir(parents=True)
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "root" / "memory.max").write_text("3000000000\n")
    (group / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(installation, "_CGROUPS", tmp_path / "root")
    facts = {fact.name: fact.value for fact in SECTIONS["machine"]({})}
    assert facts["memory"].endswith("limited to 3.0 GB by the control group")
    assert facts["CPU"].endswith("limited to 1.5 by the control group")


def test_the_table_of_extras_is_that_of_the_package() -> None:
    """Every extra is declared with the packages of its modules, and serves commands that exist."""
    declared = metadata.metadata("caldera").get_all("Provides-Extra") or []
    for name, extra in EXTRAS.items():
        assert name in declared
        packages = {requirement.name for requirement in installation._requirements(name)}
        modules = {
            installation._MODULES.get(package, package.replace("-", "_")) for package in packages
        }
        assert set(extra.modules) <= modules, name
        assert set(extra.commands) <= MESSAGES.keys()
    only_for_developers = {"bench", "dev", "docs", "small-teacher"}
    assert set(declared) - only_for_developers == EXTRAS.keys()


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what needs it, the modules that are missing, and the command."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setitem(sys.modules, "h11", None)
    assert describe_missing("serve", "serving", "fastapi") == ""
    with pytest.raises(
        UsageError, match=r"serving needs h11 and uvicorn: pip install 'caldera\[serve\]'$"
    ):
        require_extra("serve", "serving")
