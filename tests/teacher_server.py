"""An LLM server on this machine: a real HTTP server whose answers are scripted by a test."""

import asyncio
import json
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from caldera.instructions.dialogues import Exchange

DETAIL = "A red thing stands in a kitchen, and nothing else can be made out around it."


@dataclass(frozen=True)
class Answer:
    """A response of the server."""

    body: bytes | dict[str, Any] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    """Bytes of the body after which the connection is closed."""

    @property
    def content(self) -> bytes:
        """The body as bytes."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def completion(text: str | None, finish: str = "stop", **more: Any) -> Answer:  # noqa: ANN401
    """Return a response of OpenAI's chat completions API."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    body = {
        "id": "c-1", "object": "chat.completion", "created": 1, "model": "little-teacher-0613",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage,
    }  # fmt: skip
    return Answer({**body, **more})


def format_exchanges(exchanges: Sequence[Exchange]) -> str:
    """Write exchanges in the format that `parse_reply` parses."""
    return "\n===\n".join(
        f"Question:\n{exchange.question}\n===\nAnswer:\n{exchange.answer}" for exchange in exchanges
    )


def good(request: dict[str, Any]) -> Answer:
    """Return a valid reply: its kind follows from the system message, its words from the image."""
    system, image = request["messages"][0]["content"], request["messages"][-1]["content"]
    noun = next((noun for noun in ("dog", "cat", "cup") if f"red {noun}" in image), "thing")
    if "Describe the scene" in system:
        return completion(f"A red {noun} stands in a kitchen. Number {hash_of(image)} is near it.")
    suffix = " in both" if "Picture B:" in image else ""
    question = f"What is near number {hash_of(image)}{suffix}?"
    return completion(format_exchanges([Exchange(question, f"A red {noun} is near it.")]))


def hash_of(text: str) -> int:
    """Return a number that differs for images that differ."""
    return zlib.crc32(text.encode())


Script = Callable[[dict[str, Any], int], Answer]
"""Maps a request, and the number of requests before it, to the response."""


class TeacherServer:
    """A server on loopback in its own thread, which records every request byte for byte."""

    def __init__(self, script: Script, *, keep: bool = True) -> None:
        """Start listening."""
        self.script, self._keep = script, keep
        self.requests: list[bytes] = []
        self.count = 0
        self.active = self.max_active = 0
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(5)

    @property
    def url(self) -> str:
        """Base URL of the API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def bodies(self) -> list[dict[str, Any]]:
        """Return the JSON bodies of the recorded requests."""
        return [json.loads(raw.partition(b"\r\n\r\n")[2]) for raw in self.requests]

    def close(self) -> None:
        """Stop listening."""
        self.loop.call_soon_threadsafe(self._over.set_result, None)
        self._thread.join(5)

    def _run(self) -> None:
        """Run the event loop until the server is closed."""
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._serve())
        self.loop.close()

    async def _serve(self) -> None:
        """Accept connections until the server is closed."""
        self._over = self.loop.create_future()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request, and return whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        ]
        # A GET request for the list of models has no body.
        length = lengths[0] if lengths else 0
        body = await reader.readexactly(length)
        if self._keep:
            self.requests.append(head + body)
        answer = self.script(json.loads(body or b"{}"), self.count)
        self.count += 1
        self.active += 1
        self.max_active = max(self.max_active, self.active)
        try:
            await asyncio.sleep(answer.delay)
        finally:
            self.active -= 1
        content = answer.content
        headers = {"content-type": "application/json", "content-length": str(len(content))}
        headers |= answer.headers
        lines = [
            f"HTTP/1.1 {answer.status} Scripted",
            *(f"{key}: {value}" for key, value in headers.items()),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content[: answer.cut])
        await writer.drain()
        return answer.cut is None


def write_coco(folder: Path, count: int) -> Path:
    """Write a COCO folder of `count` tiny images, each with two captions and a box, all different."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "small").mkdir()
    images, captions, boxes = [], [], []
    for number in range(count):
        name = f"{number:04}.png"
        Image.new("RGB", (40, 30), (number % 251, 99, 9)).save(folder / "small" / name)
        images.append({"id": number, "file_name": name, "width": 40, "height": 30})
        for index in range(2):
            noun = ("dog", "cat", "cup")[number % 3]
            text = f"A red {noun} in a kitchen, seen {number} times{index * '.'}"
            captions.append({"id": 2 * number + index, "image_id": number, "caption": text})
        box = [2, 2, 9 + number % 7, 8]
        boxes.append({"id": number, "image_id": number, "category_id": number % 3 + 1, "bbox": box})
    categories = [
        {"id": index, "name": name} for index, name in enumerate(("dog", "cat", "cup"), 1)
    ]
    for name, content in (
        ("captions", {"images": images, "annotations": captions}),
        ("instances", {"images": images, "annotations": boxes, "categories": categories}),
    ):
        (folder / "annotations" / f"{name}_small.json").write_text(json.dumps(content))
    return folder
