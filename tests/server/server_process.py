"""`caldera serve` as a process of its own, and plain ways to ask it."""

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

NAME = "tiny"
ROOT = Path(__file__).parents[2]
FAULTY = Path(__file__).with_name("faulty_server.py")


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    """By names in small letters."""
    content: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - any JSON
        """The body, decoded."""
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        """The error it tells; it has the one shape that errors have, and an id."""
        assert set(self.json) == {"error"}
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert re.fullmatch(r"[0-9a-f]{32}", self.headers["x-request-id"])
        return error

    @property
    def code(self) -> str | None:
        """The code of the error it tells."""
        code: str | None = self.error["code"]
        return code

    @property
    def text(self) -> str:
        """The words of the first choice."""
        assert self.status == 200, self.content
        text: str = self.json["choices"][0]["message"]["content"]
        return text


class ServerProcess:
    """One server; it is ended with the block."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        faults: Sequence[str] = (),
        key: str | None = None,
        await_ready: bool = True,
        port: int = 0,
    ) -> None:
        """Start to serve a model folder.

        Args:
            folder: The model folder.
            options: Of the command.
            faults: What goes wrong on purpose, by the names that faulty_server.py knows.
            key: Put into the environment, and sent with each request.
            await_ready: Whether to return only when it takes requests, else when it listens.
            port: Where it listens; 0 for any that is free.
        """
        program = [str(FAULTY), *faults, "--"] if faults else ["-m", "caldera"]
        self.key = key
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("CALDERA_API_KEY", None)
        web = () if "--web" in options else ("--no-web",)
        if key is not None:
            environment["CALDERA_API_KEY"] = key
        self.process = subprocess.Popen(
            [
                sys.executable, *program, "serve", str(folder), "--name", NAME, "--port", str(port), *web, *options
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )  # fmt: skip
        self.lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.search(r"http://[^ ]*?:([0-9]+)/v1", said)
        if found is None:
            self._reader.join(10)
            raise AssertionError(f"it did not start: {said}{''.join(self.lines)}")
        self.port = int(found[1])
        if await_ready:
            assert self._ready.wait(120), self.lines

    def __enter__(self) -> Self:
        """Use it for a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(5)
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()

    @property
    def url(self) -> str:
        """Where OpenAI's clients find it."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of its log so far."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def send(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request on a connection of its own."""
        connection = self.connect()
        try:
            given = {**self._authorization(), **(headers or {})}
            connection.request(
                method,
                path,
                body,
                given,
                encode_chunked=body is not None and not isinstance(body, bytes),
            )
            return whole(connection)
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection, which opens at the first request."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def get(self, path: str) -> Answer:
        """Ask for a page."""
        return self.send("GET", path)

    def post(self, body: object, headers: Mapping[str, str] | None = None) -> Answer:
        """Ask for a completion by a body, given as bytes or as what is to be JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send(
            "POST",
            "/v1/chat/completions",
            content,
            {"Content-Type": "application/json", **(headers or {})},
        )

    def ask(self, *parts: str | bytes | dict[str, Any], **more: object) -> Answer:
        """Ask by words, images' files, and parts as they are."""
        return self.post(asking(*parts, **more))

    def open_stream(self, *parts: str | bytes | dict[str, Any], **more: object) -> "Stream":
        """Ask for a stream."""
        connection = self.connect()
        body = json.dumps(asking(*parts, stream=True, **more))
        headers = {"Content-Type": "application/json", **self._authorization()}
        connection.request("POST", "/v1/chat/completions", body, headers)
        return Stream(connection)

    def metric(self, name: str) -> float:
        """Return a number of /metrics, summed over its labels."""
        lines = self.get("/metrics").content.decode().splitlines()
        found = [line for line in lines if re.match(rf"{re.escape(name)}[ {{]", line)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def wait_until(self, holds: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "it never came to hold"
            time.sleep(0.02)

    def children(self) -> list[int]:
        """List the processes that it started and that still run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = path.read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == self.process.pid and state != "Z":
                found.append(int(path.parent.name))
        return found

    def memory(self, field: str = "VmRSS") -> int:
        """Return bytes of its memory: now, or at most so far (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def end(self, seconds: float = 120) -> int:
        """Wait for its end and return its exit code."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def _authorization(self) -> dict[str, str]:
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"event": "ready"' in line:
                self._ready.set()


class Stream:
    """A streamed answer, read event by event."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        """Read what a connection was asked for."""
        self.connection = connection
        self.response = connection.getresponse()

    def events(self) -> Iterator[Any]:
        """Yield each event decoded, `[DONE]` as it is; the connection is closed behind the last."""
        for line in self.response:
            if line.startswith(b"data: "):
                data = line[6:].strip()
                yield "[DONE]" if data == b"[DONE]" else json.loads(data)
        self.close()

    def text(self) -> str:
        """Read to the end, which must be a good one, and return the words of the first choice."""
        events = list(self.events())
        assert events[-1] == "[DONE]"
        assert not any("error" in event for event in events[:-1])
        return words(events)

    def close(self) -> None:
        """Go away."""
        self.response.close()
        self.connection.close()


def words(events: Sequence[Any]) -> str:
    """Return the words that events of a stream tell of the first choice."""
    return "".join(
        choice["delta"].get("content") or ""
        for event in events
        if event != "[DONE]" and "choices" in event
        for choice in event["choices"]
        if choice["index"] == 0
    )


def whole(connection: http.client.HTTPConnection) -> Answer:
    """Read a whole answer."""
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def asking(*parts: str | bytes | dict[str, Any], **more: object) -> dict[str, Any]:
    """Return the body of a request: one question of words, images' files, and parts as they are."""
    content = [_part(part) for part in parts]
    messages = [{"role": "user", "content": content}]
    return {"model": NAME, "temperature": 0, "max_tokens": 12, "messages": messages, **more}


def _part(part: str | bytes | dict[str, Any]) -> dict[str, Any]:
    match part:
        case str():
            return {"type": "text", "text": part}
        case bytes():
            return shown(f"data:image/png;base64,{base64.b64encode(part).decode()}")
        case _:
            return part


def shown(url: str) -> dict[str, Any]:
    """Return the part of a message that shows a URL's image."""
    return {"type": "image_url", "image_url": {"url": url}}


def image(
    seed: int = 0, size: tuple[int, int] = (9, 7), form: str = "PNG", **options: object
) -> bytes:
    """Return the file of an image of colors drawn from a seed."""
    import numpy as np

    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(Image.fromarray(values), form, **options)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
