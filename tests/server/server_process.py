"""`caldera serve` as a subprocess, and an HTTP client for it."""

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

NAME = "tiny"
ROOT = Path(__file__).parents[2]
FAULTY = Path(__file__).with_name("faulty_server.py")


@dataclass(frozen=True)
class Response:
    """Response of a server."""

    status: int
    headers: Mapping[str, str]
    """By lower-case names."""
    content: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - any JSON
        """The body, decoded."""
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        """The error in the body, which must have the one shape of errors, with a request id in the headers."""
        assert set(self.json) == {"error"}
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert re.fullmatch(r"[0-9a-f]{32}", self.headers["x-request-id"])
        return error

    @property
    def code(self) -> str | None:
        """The code of the error."""
        code: str | None = self.error["code"]
        return code

    @property
    def text(self) -> str:
        """The text of the first choice."""
        assert self.status == 200, self.content
        text: str = self.json["choices"][0]["message"]["content"]
        return text


class ServerProcess(AbstractContextManager["ServerProcess"]):
    """One server; it is stopped at the end of the block."""

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
            options: Options of the command.
            faults: Injected faults, by the names that faulty_server.py defines.
            key: API key: set in the environment, and sent with each request.
            await_ready: Whether to return when it accepts requests, else when it listens.
            port: Port to listen on; 0 for any free port.
        """
        program = [str(FAULTY), *faults, "--"] if faults else ["-m", "caldera"]
        self.key = key
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("CALDERA_API_KEY", None)
        if key is not None:
            environment["CALDERA_API_KEY"] = key
        web = () if "--web" in options else ("--no-web",)
        command = ["serve", str(folder), "--name", NAME, "--port", str(port), *web, *options]
        self.process = subprocess.Popen(
            [sys.executable, *program, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        first_line = self.process.stdout.readline()
        match = re.search(r"http://[^ ]*?:([0-9]+)/v1", first_line)
        if match is None:
            self.process.kill()
            self.process.wait()
            self._close_pipes()
            raise AssertionError(f"it did not start: {first_line}{''.join(self.lines)}")
        self.port = int(match[1])
        if await_ready:
            assert self._ready.wait(120), self.lines

    def __exit__(self, *exception: object) -> None:
        """Stop it at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._close_pipes()

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
    ) -> Response:
        """Send one request on a new connection."""
        connection = self.connect()
        try:
            connection.request(
                method,
                path,
                body,
                {**self._authorization(), **(headers or {})},
                encode_chunked=body is not None and not isinstance(body, bytes),
            )
            return read_response(connection)
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection, which opens at the first request."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def get(self, path: str) -> Response:
        """Send a GET request."""
        return self.send("GET", path)

    def post(self, body: object, headers: Mapping[str, str] | None = None) -> Response:
        """Request a completion with a body of bytes, or of an object that is encoded as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        return self.send("POST", "/v1/chat/completions", content, headers)

    def ask(self, *parts: str | bytes | dict[str, Any], **fields: object) -> Response:
        """Request a completion for one question of texts, image files and raw parts."""
        return self.post(chat_body(*parts, **fields))

    def open_stream(self, *parts: str | bytes | dict[str, Any], **fields: object) -> "Stream":
        """Request a stream."""
        connection = self.connect()
        body = json.dumps(chat_body(*parts, stream=True, **fields))
        headers = {"Content-Type": "application/json", **self._authorization()}
        connection.request("POST", "/v1/chat/completions", body, headers)
        return Stream(connection)

    def metric(self, name: str) -> float:
        """Return the value of a metric, summed over its labels."""
        lines = self.get("/metrics").content.decode().splitlines()
        matches = [line for line in lines if re.match(rf"{re.escape(name)}[ {{]", line)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in matches)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until a condition is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition never became true"
            time.sleep(0.02)

    def children(self) -> list[int]:
        """Return the ids of its running child processes."""
        children = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = path.read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == self.process.pid and state != "Z":
                children.append(int(path.parent.name))
        return children

    def memory(self, field: str = "VmRSS") -> int:
        """Return its memory in bytes: now, or at most so far (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(rf"{field}:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * 1024

    def end(self, seconds: float = 120) -> int:
        """Wait for its end and return its exit code."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def _close_pipes(self) -> None:
        self._reader.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

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
        """Read the response of a connection."""
        self.connection = connection
        self.response = connection.getresponse()

    def events(self) -> Iterator[Any]:
        """Yield each event decoded, and `[DONE]` as it is; the connection is closed after the last."""
        for line in self.response:
            if line.startswith(b"data: "):
                data = line[6:].strip()
                yield "[DONE]" if data == b"[DONE]" else json.loads(data)
        self.close()

    def text(self) -> str:
        """Read to the end, which must not be an error, and return the text of the first choice."""
        events = list(self.events())
        assert events[-1] == "[DONE]"
        assert not any("error" in event for event in events[:-1])
        return text_of(events)

    def close(self) -> None:
        """Disconnect."""
        self.response.close()
        self.connection.close()


def text_of(events: Sequence[Any]) -> str:
    """Return the text of the first choice in the events of a stream."""
    return "".join(
        choice["delta"].get("content") or ""
        for event in events
        if event != "[DONE]" and "choices" in event
        for choice in event["choices"]
        if choice["index"] == 0
    )


def read_response(connection: http.client.HTTPConnection) -> Response:
    """Read a complete response."""
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Response(response.status, headers, response.read())


def chat_body(*parts: str | bytes | dict[str, Any], **fields: object) -> dict[str, Any]:
    """Return the body of a request with one question of texts, image files and raw parts."""
    messages = [{"role": "user", "content": [_part(part) for part in parts]}]
    return {"model": NAME, "temperature": 0, "max_tokens": 12, "messages": messages, **fields}


def _part(part: str | bytes | dict[str, Any]) -> dict[str, Any]:
    match part:
        case str():
            return {"type": "text", "text": part}
        case bytes():
            return image_part(f"data:image/png;base64,{base64.b64encode(part).decode()}")
        case _:
            return part


def image_part(url: str) -> dict[str, Any]:
    """Return the part of a message for the image of a URL."""
    return {"type": "image_url", "image_url": {"url": url}}


def make_image(
    seed: int = 0, size: tuple[int, int] = (9, 7), image_format: str = "PNG", **options: object
) -> bytes:
    """Return the file of an image with random colors."""
    import numpy as np

    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encode_image(Image.fromarray(values), image_format, **options)


def encode_image(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def unreading_client(server: ServerProcess) -> socket.socket:
    """Request a stream of many megabytes, and read none of it."""
    body = json.dumps(
        chat_body("What?", stream=True, n=4, max_tokens=1200, logprobs=True, top_logprobs=20)
    ).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    header = (
        "POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json",
        f"Content-Length: {len(body)}", "", "",
    )  # fmt: skip
    client.sendall("\r\n".join(header).encode() + body)
    return client


def stream_or_leave(
    server: ServerProcess,
    question: str,
    leave_after: int | None,
    expected: Mapping[str, str],
    wrong: list[str],
) -> bool:
    """Request a stream, and disconnect after some events or compare its text with the expected one.

    Returns:
        False if the queue was full.
    """
    stream = server.open_stream(question, make_image(), max_tokens=40)
    if stream.response.status == 503:
        stream.close()
        return False
    if leave_after is None:
        text = stream.text()
        if text != expected[question]:
            wrong.append(text)
        return True
    for number, _ in enumerate(stream.events()):
        if number == leave_after:
            break
    stream.close()
    return True
