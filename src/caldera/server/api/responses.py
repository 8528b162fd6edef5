"""Response bodies of chat completions: JSON objects and server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from caldera.inference.engine import TextDelta, TokenLogprob
from caldera.server.api.errors import ApiError, internal_error
from caldera.server.api.generation import AsyncAnswerStreams, Events, latency_recorder
from caldera.server.api.middleware import RequestContext, log_exception
from caldera.server.api.service import ClientDisconnected, Service


@dataclass(frozen=True, slots=True)
class ResponseBuilder:
    """Builder of the JSON objects of one completion, with their common fields."""

    id: str
    created: int
    """Unix time in seconds."""
    model: str
    logprobs: bool = False
    """Whether log probabilities of the tokens are included."""
    usage: bool = False
    """Whether a stream ends with its token counts."""

    def completion(
        self, streams: AsyncAnswerStreams, deltas: Sequence[Sequence[TextDelta]]
    ) -> dict[str, Any]:
        """Return the complete response, given the deltas of each choice."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": "".join(delta.text for delta in choice_deltas),
                    "refusal": None,
                },
                "logprobs": self._logprobs(choice_deltas),
                "finish_reason": streams.choices[index].finish_reason,
            }
            for index, choice_deltas in enumerate(deltas)
        ]
        return {**self._base("chat.completion"), "choices": choices, "usage": streams.usage}

    def role_chunk(self, index: int) -> dict[str, Any]:
        """Return the first chunk of a choice."""
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def text_chunk(self, index: int, delta: TextDelta) -> dict[str, Any]:
        """Return a chunk with new text of a choice."""
        return self._chunk(index, {"content": delta.text}, logprobs=self._logprobs([delta]))

    def finish_chunk(self, index: int, reason: str | None) -> dict[str, Any]:
        """Return the last chunk of a choice."""
        return self._chunk(index, {}, reason=reason)

    def usage_chunk(self, usage: dict[str, object]) -> dict[str, Any]:
        """Return the chunk with the token counts of a stream."""
        return {**self._base("chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._base("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self.usage else chunk

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, deltas: Sequence[TextDelta]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [_token_logprob(token) for delta in deltas for token in delta.logprobs]
        return {"content": content, "refusal": None}


def _token_logprob(token: TokenLogprob) -> dict[str, Any]:
    top = [_token(text, logprob) for _, text, logprob in token.top_logprobs]
    return {**_token(token.text, token.logprob), "top_logprobs": top}


def _token(text: str, logprob: float) -> dict[str, Any]:
    """Return the fields of one token; the bytes of an incomplete character are unknown."""
    is_complete = "\N{REPLACEMENT CHARACTER}" not in text
    return {
        "token": text,
        "logprob": max(logprob, -9999.0),
        "bytes": list(text.encode()) if is_complete else None,
    }


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def sse_event(body: Mapping[str, Any]) -> bytes:
    """Return a server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Streamed answer, sent while the engine writes it."""

    def __init__(
        self,
        service: Service,
        context: RequestContext,
        builder: ResponseBuilder,
        streams: AsyncAnswerStreams,
        first: Events,
        events: AsyncIterator[Events],
    ) -> None:
        """Stream the events that are already there, `first`, and then `events`."""
        self.status_code, self.background = 200, None
        # Instead of super().__init__(), which would count the bytes of a body.
        self.init_headers(_HEADERS)
        self._service, self._context = service, context
        self._builder, self._streams, self._first, self._stream = builder, streams, first, events
        self._record_latency = latency_recorder(service.metrics, context.started)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until it ends, or the client disconnects or stops reading."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._service.run_cancellable(
                    self._send_all(send), wait_for_disconnect(receive)
                )
            except (ClientDisconnected, TimeoutError, OSError):
                raise
            except ApiError as error:
                self._context.fail(error)
                await self._send_chunk(send, sse_event(error.body) + DONE)
            except Exception as error:  # noqa: BLE001 - a stream never ends without an error event
                log_exception(self._context, error)
                await self._send_chunk(send, sse_event(internal_error().body) + DONE)
            await self._send_chunk(send, b"", more=False)
        except (ClientDisconnected, TimeoutError, OSError):
            self._context.disconnected = True
        finally:
            self._streams.cancel()
            self._context.log_fields.update(self._streams.token_counts)

    async def _send_all(self, send: Send) -> None:
        """Send all chunks; raise ApiError if the answer fails."""
        events = self._first
        has_roles = False
        while True:
            if events and not has_roles:
                for index in range(len(self._streams.choices)):
                    await self._send_chunk(send, sse_event(self._builder.role_chunk(index)))
                has_roles = True
            await self._send_chunk(send, self._encode(events) if events else KEEP_ALIVE)
            try:
                events = await anext(self._stream)
            except StopAsyncIteration:
                break
        if self._builder.usage:
            await self._send_chunk(send, sse_event(self._builder.usage_chunk(self._streams.usage)))
        await self._send_chunk(send, DONE)

    def _encode(self, events: Events) -> bytes:
        """Return engine events as server-sent events."""
        self._record_latency(events)
        chunks = (
            self._builder.finish_chunk(index, self._streams.choices[index].finish_reason)
            if delta is None
            else self._builder.text_chunk(index, delta)
            for index, delta in events
        )
        return b"".join(map(sse_event, chunks))

    async def _send_chunk(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Send bytes; raise TimeoutError if the client does not read and the system's buffers stay full."""
        async with asyncio.timeout(self._service.config.limits.send_timeout):
            await send({"type": "http.response.body", "body": body, "more_body": more})
