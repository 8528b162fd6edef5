"""JSON bodies and SSE."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from caldera.inference.engine import TextDelta, TokenLogprob
from caldera.server.api.errors import ApiError, internal_error
from caldera.server.api.generation import CompletionStreams, Events, LatencyTracker
from caldera.server.api.middleware import RequestContext, log_exception
from caldera.server.api.service import ClientDisconnected, Service


@dataclass(frozen=True, slots=True)
class ResponseBuilder:
    """What stands at the head of everything that is said of one answer."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    logprobs: bool = False
    """Whether each token's logarithm is told."""
    usage: bool = False
    """Whether a stream ends with its tokens counted."""

    def completion(
        self, answers: CompletionStreams, pieces: Sequence[Sequence[TextDelta]]
    ) -> dict[str, Any]:
        """Return a whole answer, with the pieces of each choice."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": "".join(piece.text for piece in told),
                    "refusal": None,
                },
                "logprobs": self._logprobs(told),
                "finish_reason": answers.choices[index].finish_reason,
            }
            for index, told in enumerate(pieces)
        ]
        return {**self._base("chat.completion"), "choices": choices, "usage": answers.usage}

    def role_chunk(self, index: int) -> dict[str, Any]:
        """Return a choice's first chunk."""
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def text_chunk(self, index: int, piece: TextDelta) -> dict[str, Any]:
        """Return a chunk with some more of a choice."""
        return self._chunk(index, {"content": piece.text}, logprobs=self._logprobs([piece]))

    def finish_chunk(self, index: int, reason: str | None) -> dict[str, Any]:
        """Return a choice's last chunk."""
        return self._chunk(index, {}, reason=reason)

    def usage_chunk(self, usage: dict[str, object]) -> dict[str, Any]:
        """Return the chunk that counts a stream's tokens."""
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

    def _logprobs(self, pieces: Sequence[TextDelta]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [_token_logprob(chance) for piece in pieces for chance in piece.logprobs]
        return {"content": content, "refusal": None}


def _token_logprob(chance: TokenLogprob) -> dict[str, Any]:
    top = [_token(text, logprob) for _, text, logprob in chance.top_logprobs]
    return {**_token(chance.text, chance.logprob), "top_logprobs": top}


def _token(text: str, logprob: float) -> dict[str, Any]:
    """Return a token; the bytes of half a character are not known from its spelling."""
    known = "\N{REPLACEMENT CHARACTER}" not in text
    return {
        "token": text,
        "logprob": max(logprob, -9999.0),
        "bytes": list(text.encode()) if known else None,
    }


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
