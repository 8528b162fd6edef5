"""Chunks of an answer in, server-sent events out, to a client that may stop reading or go away at any time."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from caldera.chat.api.answers import CompletionStreams, Events, LatencyTracker
from caldera.chat.api.bodies import ResponseBuilder
from caldera.chat.api.errors import ApiError, internal_error
from caldera.chat.api.front import RequestContext, log_exception
from caldera.chat.api.service import ClientDisconnected, Service

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": still there\n\n"

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def sse_event(body: Mapping[str, Any]) -> bytes:
    """Return one event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer while it is written; its first words are there already, or it has been silent for long."""

    def __init__(
        self,
        service: Service,
        visit: RequestContext,
        head: ResponseBuilder,
        answers: CompletionStreams,
        said: AsyncIterator[Events],
        begun: Events,
    ) -> None:
        """Stream `begun`, then what `said` yields."""
        self.status_code, self.background = 200, None
        self.init_headers(_HEADERS)  # its base would count the bytes of a body
        self._service, self._visit = service, visit
        self._head, self._answers, self._said, self._begun = head, answers, said, begun
        self._timing = LatencyTracker(service.metrics, visit.started)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until it ends or the client goes away or does not read."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._service.run_cancellable(
                    self._send_all(send), lambda: wait_for_disconnect(receive)
                )
            except (ClientDisconnected, TimeoutError, OSError):
                raise
            except ApiError as error:
                self._visit.fail(error)
                await self._send_chunk(send, sse_event(error.body) + DONE)
            except Exception as error:  # noqa: BLE001 - a stream never ends without a word
                log_exception(self._visit, error)
                await self._send_chunk(send, sse_event(internal_error().body) + DONE)
            await self._send_chunk(send, b"", more=False)
        except (ClientDisconnected, TimeoutError, OSError):
            self._visit.disconnected = True
        finally:
            self._answers.cancel()
            self._visit.log_fields.update(_counts(self._answers))

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
                    await self._send_chunk(send, sse_event(self._head.role_chunk(index)))
                roles = True
            await self._send_chunk(send, self._events(awaited) if awaited else KEEP_ALIVE)
            try:
                awaited = await anext(self._said)
            except StopAsyncIteration:
                break
        if self._head.usage:
            await self._send_chunk(send, sse_event(self._head.usage_chunk(self._answers.usage)))
        await self._send_chunk(send, DONE)

    def _events(self, said: Events) -> bytes:
        """Return what was said as events."""
        self._timing.record(said)
        chunks = (
            self._head.finish_chunk(index, self._answers.choices[index].finish_reason)
            if piece is None
            else self._head.text_chunk(index, piece)
            for index, piece in said
        )
        return b"".join(map(sse_event, chunks))

    async def _send_chunk(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Send some bytes; what the client does not read is held up to the system's own buffers, then waited for.

        Raises:
            TimeoutError: The client does not read.
        """
        async with asyncio.timeout(self._service.settings.limits.send_timeout):
            await send({"type": "http.response.body", "body": body, "more_body": more})


def _counts(answers: CompletionStreams) -> dict[str, object]:
    """Return what the log says of an answer."""
    usage = answers.usage
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
