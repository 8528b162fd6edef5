"""Chunks of an answer in, server-sent events out, to a client that may stop reading or go away at any time."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from caldera.chat.api.answers import Answers, Said, Timing
from caldera.chat.api.bodies import Head
from caldera.chat.api.errors import ApiError, internal
from caldera.chat.api.front import Visit, log_fault
from caldera.chat.api.service import ClientGone, Service

DONE = b"data: [DONE]\n\n"
PING = b": still there\n\n"

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def event(body: Mapping[str, Any]) -> bytes:
    """Return one event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def disconnected(receive: Receive) -> None:
    """Wait until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer while it is written; its first words are there already, or it has been silent for long."""

    def __init__(
        self,
        service: Service,
        visit: Visit,
        head: Head,
        answers: Answers,
        said: AsyncIterator[Said],
        begun: Said,
    ) -> None:
        """Stream `begun`, then what `said` yields."""
        self.status_code, self.background = 200, None
        self.init_headers(_HEADERS)  # its base would count the bytes of a body
        self._service, self._visit = service, visit
        self._head, self._answers, self._said, self._begun = head, answers, said, begun
        self._timing = Timing(service.metrics, visit.begin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until it ends or the client goes away or does not read."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._service.unless_ended(
                    self._send_all(send), lambda: disconnected(receive)
                )
            except (ClientGone, TimeoutError, OSError):
                raise
            except ApiError as error:
                self._visit.fail(error)
                await self._put(send, event(error.body) + DONE)
            except Exception as error:  # noqa: BLE001 - a stream never ends without a word
                log_fault(self._visit, error)
                await self._put(send, event(internal().body) + DONE)
            await self._put(send, b"", more=False)
        except (ClientGone, TimeoutError, OSError):
            self._visit.gone = True
        finally:
            self._answers.cancel()
            self._visit.told.update(_counts(self._answers))

    async def _send_all(self, send: Send) -> None:
        """Send all chunks.

        Raises:
            ApiError: The answer failed.
        """
        awaited = self._begun
        roles = False
        while True:
            if awaited and not roles:
                for index in range(len(self._answers.choices)):
                    await self._put(send, event(self._head.role(index)))
                roles = True
            await self._put(send, self._events(awaited) if awaited else PING)
            try:
                awaited = await anext(self._said)
            except StopAsyncIteration:
                break
        if self._head.usage:
            await self._put(send, event(self._head.counted(self._answers.usage)))
        await self._put(send, DONE)

    def _events(self, said: Said) -> bytes:
        """Return what was said as events."""
        self._timing.note(said)
        chunks = (
            self._head.finish(index, self._answers.choices[index].finish_reason)
            if piece is None
            else self._head.piece(index, piece)
            for index, piece in said
        )
        return b"".join(map(event, chunks))

    async def _put(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Send some bytes; what the client does not read is held up to the system's own buffers, then waited for.

        Raises:
            TimeoutError: The client does not read.
        """
        async with asyncio.timeout(self._service.settings.limits.stall_seconds):
            await send({"type": "http.response.body", "body": body, "more_body": more})


def _counts(answers: Answers) -> dict[str, object]:
    """Return what the log says of an answer."""
    usage = answers.usage
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
