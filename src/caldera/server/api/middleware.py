"""Every HTTP request in, through to the routes, and a line of log out: the outermost layer.

It gives each request an id, refuses heads that no honest client sends, counts what is under way, and answers what
nothing else answered with a fixed text. The log says nothing of what was asked or answered.
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

_MOST_HEADERS = 100
_MOST_UNDER_WAY = 1024
_HOST = re.compile(r"(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII)
_HERE = ("localhost", "127.0.0.1", "[::1]")


@dataclass
class RequestContext:
    """One request, from its first byte to its last."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.perf_counter)
    status: int | None = None
    """Of the answer, once it has begun."""
    code: str | None = None
    """Of the error, if there was one."""
    disconnected: bool = False
    """Whether the client went away before its end."""
    log_fields: dict[str, object] = field(default_factory=dict)
    """What else the log says: numbers and names, no content."""
    on_end: list[Callable[[], object]] = field(default_factory=list)
    """What is to be done at its end."""

    def fail(self, error: ApiError) -> None:
        """Remember an error."""
        self.code = error.code or error.type


class RequestMiddleware:
    """Wraps the routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Pass requests on to `app`."""
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request."""
        if scope["type"] != "http":
            return  # there are no others
        visit = RequestContext()
        scope["visit"] = visit
        self._service.num_active += 1

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", visit.id.encode())]
            await send(message)

        try:
            self._check_headers(scope)
            await self._app(scope, receive, telling)
        except ApiError as error:
            visit.fail(error)
            await _answer(telling, error)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not be told to a client
            log_exception(visit, error)
            if visit.status is None:
                await _answer(telling, internal_error())
        finally:
            self._service.num_active -= 1
            for end in visit.on_end:
                end()
            self._log_request(scope, visit)

    def _check_headers(self, scope: Scope) -> None:
        """Refuse a head that no honest client sends.

        Raises:
            ApiError: It has too many headers, or a wrong host; or too many requests are under way.
        """
        if len(scope["headers"]) > _MOST_HEADERS:
            raise ApiError(431, "there are too many headers")
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            raise bad_request("the Host header is not valid")
        if not self._is_allowed_host(hosts[0]):
            raise ApiError(
                403,
                "this server is not reached by that Host; name it with --host-name, or set a key",
            )
        if self._service.num_active > _MOST_UNDER_WAY:
            raise service_unavailable("too many requests at once; try again", "busy")

    def _is_allowed_host(self, host: str) -> bool:
        """Tell whether a host is one of ours; where there is a key, it does not matter.

        A page on the web may have its own name point at this machine, and then read what it asks; so without a key a
        request must name us as we are.
        """
        if self._service.keys:
            return True
        name = re.sub(r":[0-9]+$", "", host).lower()
        names = self._service.settings.host_names
        return "*" in names or name in (*_HERE, *names)

    def _log_request(self, scope: Scope, visit: RequestContext) -> None:
        """Count a request and write its line."""
        metrics, status = self._service.metrics, 499 if visit.disconnected else visit.status or 499
        route = getattr(scope.get("route"), "path", "other")
        metrics.requests.labels(route, str(status)).inc()
        if visit.disconnected:
            metrics.aborted.inc()
        elif visit.code is not None:
            metrics.rejected.labels(visit.code).inc()
        line = {
            "request_id": visit.id,
            "method": scope["method"] if scope["method"].isalpha() else "?",
            "route": route,
            "status": status,
            "seconds": round(time.perf_counter() - visit.started, 4),
            **({"error": visit.code} if visit.code else {}),
            **visit.log_fields,
        }
        _log.info("request", extra=line)


async def _answer(send: Send, error: ApiError) -> None:
    """Send an error as the whole answer."""
    body = json.dumps(error.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **error.headers,
    }
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def log_exception(visit: RequestContext, error: Exception) -> None:
    """Write down a fault of ours: its kind and where it was, not its text, which may quote a client."""
    visit.fail(internal_error())
    steps = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(step.filename).name}:{step.lineno} {step.name}" for step in steps[-12:]]
    _log.error(
        "fault", extra={"request_id": visit.id, "kind": type(error).__name__, "where": places}
    )
