"""A Hugging Face Hub on this machine: real HTTP servers that speak its protocol to the real `huggingface_hub`.

One server has the API and small files; large files are redirected to a second one, the CDN, on another port.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

TOKEN = "hf_loopbackSecret0123456789"
"""The token that opens private and gated repositories."""

_API = re.compile(
    r"/api/(?P<type>model|dataset)s/(?P<id>[^/]+/[^/]+)(?:/(?P<verb>revision|tree)/(?P<revision>[^/]+))?(?P<rest>/.*)?"
)
_FILE = re.compile(
    r"/(?P<type>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


@dataclass
class Repo:
    """A repository: the files of each commit, and the commits of branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit with exactly these files, and return its hash."""
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """Return the commit of a branch, tag or (shortened) hash."""
        if revision in self.refs:
            return self.refs[revision]
        return next((sha for sha in self.commits if sha.startswith(revision)), None)


@dataclass
class Request:
    """A request that a server received."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""

    body: bytes = b""
    host: str = "hub"
    """hub or cdn."""


@dataclass
class Answer:
    """A response."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes of the body after which the connection is closed."""

    seconds_per_chunk: float = 0.0
    """Pause after each 64 KB."""

    delay: float = 0.0
    """Seconds before the response."""


def error(status: int, code: str = "", message: str = "", **headers: str) -> Answer:
    """Return an error in the Hub's form; `_` in the names of headers stands for `-`."""
    renamed = {name.replace("_", "-"): value for name, value in headers.items()}
    renamed |= {"X-Error-Code": code} if code else {}
    renamed |= {"X-Error-Message": message} if message else {}
    return Answer(json.dumps({"error": message or code}).encode(), status, renamed)


def git_digest(content: bytes) -> str:
    """Return the digest of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    """Return the digest of a file in git-lfs."""
    return hashlib.sha256(content).hexdigest()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path, token: str = "") -> None:
    """Let `huggingface_hub` of this process use a server, a cache and a token, which it read when it was imported.

    A command in another process takes them from the environment: `hub_environment`.
    """
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache.parent / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", token)


def hub_environment(url: str, cache: Path, token: str = "") -> dict[str, str]:
    """Return the environment of a command that uses a server, a cache and a token."""
    home = {"HF_ENDPOINT": url, "HF_HOME": str(cache.parent), "HF_HUB_CACHE": str(cache)}
    unset = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CALDERA_DEBUG")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return {**inherited, **home, **({"HF_TOKEN": token} if token else {})}


Fault = Callable[[Request], Answer | None]
"""Answers a request in place of the server; None leaves it to the server."""


class HubServer:
    """The Hub and its CDN, each on a port of its own. Close it after use, or use it in a `with` statement."""

    def __init__(self) -> None:
        """Start both."""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.content: dict[str, bytes] = {}
        """Content of the CDN by SHA-256."""

        self.sent: dict[str, int] = {}
        """Bytes of the bodies sent, by path of the request."""

        self._lock = threading.Lock()
        self._servers = [self._start("hub"), self._start("cdn")]
        self.url, self.cdn_url = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.close()

    def close(self) -> None:
        """Stop both servers."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(
        self, repo_id: str, files: dict[str, bytes] | Path, *, repo_type: str = "model"
    ) -> Repo:
        """Add a repository with one commit of files, or of the files of a folder, and return it."""
        if isinstance(files, Path):
            folder = files
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
        new = Repo()
        new.commit(files)
        self.repos[repo_type, repo_id] = new
        return new

    def is_lfs(self, path: str, content: bytes) -> bool:
        """Return whether a file is stored in git-lfs."""
        suffixes = (".safetensors", ".bin", ".model", ".zip", ".gguf", ".parquet")
        return path.endswith(suffixes) or len(content) > 1_000_000

    def answer(self, request: Request) -> Answer:
        """Return the response to a request; a subclass may answer more."""
        for fault in self.faults:
            if (answer := fault(request)) is not None:
                return answer
        path = unquote(urlsplit(request.path).path)
        if request.host == "cdn":
            return self._ranged(request, self.content[path.rpartition("/")[2]])
        # A revision with a slash is sent as %2F.
        raw = urlsplit(request.path).path
        if match := _API.fullmatch(raw):
            return self._api(request, match)
        if match := _FILE.fullmatch(raw):
            return self._file(request, match)
        return error(404, message=f"Sorry, we can't find {path}")

    def find(self, request: Request, match: "re.Match[str]") -> tuple[Repo, str] | Answer:
        """Return the repository of a request and its commit, or the error."""
        kind = "dataset" if (match["type"] or "").startswith("dataset") else "model"
        repo, authorization = (
            self.repos.get((kind, match["id"])),
            request.headers.get("authorization"),
        )
        if authorization not in (None, f"Bearer {TOKEN}"):
            return error(401, message="Invalid credentials in Authorization header")
        if repo is None or (repo.private and authorization is None):
            # As the Hub: whether it exists is not told.
            return error(404 if authorization else 401, "RepoNotFound", "Repository not found")
        revision = unquote(match["revision"] or "main")
        commit = repo.resolve(revision)
        if commit is None:
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit

    def _api(self, request: Request, match: "re.Match[str]") -> Answer:
        """Answer about a repository, or list its files."""
        target = self.find(request, match)
        if isinstance(target, Answer):
            return target
        repo, commit = target
        files = repo.commits[commit]
        if match["verb"] == "tree":
            entries = [self._tree_entry(path, content) for path, content in sorted(files.items())]
            return Answer(json.dumps(entries).encode())
        if match["rest"]:
            return error(404, message="Not found")
        info = {
            "id": match["id"],
            "modelId": match["id"],
            "sha": commit,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "tags": [],
            "siblings": [self._sibling(path, content) for path, content in sorted(files.items())],
        }
        return Answer(json.dumps(info).encode())

    def _sibling(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "rfilename": path,
            "size": len(content),
            "blobId": git_digest(content),
        }
        if self.is_lfs(path, content):
            entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
        return entry

    def _tree_entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "type": "file",
            "path": path,
            "size": len(content),
            "oid": git_digest(content),
        }
        if self.is_lfs(path, content):
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        return entry

    def _file(self, request: Request, match: "re.Match[str]") -> Answer:
        """Answer with a file, or redirect to the CDN."""
        target = self.find(request, match)
        if isinstance(target, Answer):
            return target
        (repo, commit), path = target, unquote(match["path"])
        if repo.gated and "authorization" not in request.headers:
            return error(401, "GatedRepo", "Access to this model is restricted")
        content = repo.commits[commit].get(path)
        if content is None:
            return error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_digest(content)}"'}
        if not self.is_lfs(path, content):
            return self._ranged(request, content, headers)
        digest = sha256(content)
        self.content.setdefault(digest, content)
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        return Answer(status=302, headers={**headers, "Location": f"{self.cdn_url}/cdn/{digest}"})

    def _ranged(
        self, request: Request, content: bytes, headers: dict[str, str] | None = None
    ) -> Answer:
        """Return the requested range of a content."""
        headers = {**(headers or {}), "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if match is None:
            return Answer(content, headers=headers)
        start, end = int(match[1]), int(match[2] or len(content) - 1)
        if start >= len(content):
            return Answer(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return Answer(content[start : end + 1], 206, headers)

    def _start(self, host: str) -> ThreadingHTTPServer:
        """Start one of the two servers."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, self.rfile.read(length), host)
                with hub._lock:
                    hub.requests.append(request)
                answer = hub.answer(request)
                time.sleep(answer.delay)
                self.send_response(answer.status)
                for name, value in {
                    "Content-Length": str(len(answer.body)),
                    **answer.headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.send_body(answer)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond  # noqa: N815 - http.server's names

            def send_body(self, answer: Answer) -> None:
                body = answer.body if answer.cut is None else answer.body[: answer.cut]
                for start in range(0, len(body), 1 << 16):
                    chunk = body[start : start + (1 << 16)]
                    try:
                        self.wfile.write(chunk)
                    except OSError:
                        self.close_connection = True
                        return
                    with hub._lock:
                        hub.sent[self.path] = hub.sent.get(self.path, 0) + len(chunk)
                    time.sleep(answer.seconds_per_chunk)
                if answer.cut is not None:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server
