"""Outermost layer of the server: request ids, header checks, request counts, error responses and the request log.

The log contains nothing of what was asked or answered.
"""

import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caldera.server.api.errors import ApiError, bad_request, internal_error, service_unavailable
from caldera.server.api.service import Service

_log = logging.getLogger("caldera.requests")

_MAX_HEADERS = 100
_MAX_ACTIVE = 1024
_HOST = re.compile(r"(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass
class RequestContext:
    """State of one request, in the ASGI scope under `context`."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.perf_counter)
    owner: str = ""
    """Name for the owner of the request's key."""
    status: int | None = None
    """Status of the response, once it has started."""
    code: str | None = None
    """Code of the error, if there was one."""
    disconnected: bool = False
    """Whether the client disconnected before the end."""
    log_fields: dict[str, object] = field(default_factory=dict)
    """Additional fields of the log line: numbers and names, no content."""
    on_end: list[Callable[[], object]] = field(default_factory=list)
    """Callbacks for the end of the request."""

    def authenticated(self, owner: str) -> None:
        """Set the owner, which is also logged."""
        self.owner = self.log_fields["key"] = owner

    def fail(self, error: ApiError) -> None:
        """Record the code of an error."""
        self.code = error.code or error.type


class RequestMiddleware:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Wrap `app`."""
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        context = RequestContext()
        scope["context"] = context
        self._service.num_active += 1

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", context.id.encode())]
            await send(message)

        try:
            self._check_headers(scope)
            await self._app(scope, receive, send_with_id)
        except ApiError as error:
            context.fail(error)
            await _send_error(send_with_id, error)
        except Exception as error:  # noqa: BLE001 - the text of a bug must not reach a client
            log_exception(context, error)
            if context.status is None:
                await _send_error(send_with_id, internal_error())
        finally:
            self._service.num_active -= 1
            for callback in context.on_end:
                callback()
            self._log_request(scope, context)

    def _check_headers(self, scope: Scope) -> None:
        """Raise if there are too many headers, the host is wrong, or too many requests are running."""
        if len(scope["headers"]) > _MAX_HEADERS:
            raise ApiError(431, "there are too many headers")
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            raise bad_request("the Host header is not valid")
        if not self._is_allowed_host(hosts[0]):
            raise ApiError(
                403,
                "the Host header names another server; pass it with --allowed-host, or set a key",
            )
        if self._service.num_active > _MAX_ACTIVE:
            raise service_unavailable("too many requests at once; try again", "busy")

    def _is_allowed_host(self, host: str) -> bool:
        """Return whether a Host header is accepted; with keys, every one is.

        DNS rebinding: a web page may have its own name resolve to this machine, and then read the responses of a
        server without keys. Therefore such a server accepts only its own names.
        """
        if self._service.keys:
            return True
        name = re.sub(r":[0-9]+$", "", host).lower()
        allowed_hosts = self._service.config.allowed_hosts
        return "*" in allowed_hosts or name in (*_LOCAL_HOSTS, *allowed_hosts)

    def _log_request(self, scope: Scope, context: RequestContext) -> None:
        """Count a request and write its log line."""
        metrics = self._service.metrics
        status = 499 if context.disconnected else context.status or 499
        route = getattr(scope.get("route"), "path", "other")
        metrics.requests.labels(route, str(status)).inc()
        if context.disconnected:
            metrics.cancelled.inc()
        elif context.code is not None:
            metrics.rejected.labels(context.code).inc()
        line = {
            "request_id": context.id,
            "method": scope["method"] if scope["method"].isalpha() else "?",
            "route": route,
            "status": status,
            "seconds": round(time.perf_counter() - context.started, 4),
            **({"error": context.code} if context.code else {}),
            **context.log_fields,
        }
        _log.info("request", extra=line)


async def _send_error(send: Send, error: ApiError) -> None:
    """Send an error as the complete response."""
    body = json.dumps(error.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **error.headers,
    }
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def log_exception(context: RequestContext, error: Exception) -> None:
    """Log a bug by its type and traceback, without its text, which may quote a client."""
    context.fail(internal_error())
    steps = traceback.extract_tb(error.__traceback__)[-12:]
    frames = [f"{Path(step.filename).name}:{step.lineno} {step.name}" for step in steps]
    _log.error(
        "exception",
        extra={"request_id": context.id, "kind": type(error).__name__, "traceback": frames},
    )
