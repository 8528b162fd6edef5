"""Guard of the page: middleware that passes only the page's own requests and adds security headers.

Gradio has many routes, for files, streams, monitoring and more; only those that the page needs are reachable. The
Content-Security-Policy makes the browser load from this server alone.
"""

import base64
import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caldera.server.api.errors import ApiError
from caldera.server.api.service import Service

_ALLOWED_PATHS = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/(?:assets|static|svelte)/[\w@./+-]+"
        r"|/gradio_api/(?:app_id|startup-events|info|queue/(?:data|status)|heartbeat/\w+|theme\.css)/?"
    ),
    "HEAD": re.compile(r"/"),
    "POST": re.compile(r"/gradio_api/(?:queue/join|run/predict|component_server|reset|cancel)/?"),
}
"""Paths that the page requests. There is no route for files: images are part of the messages."""

MAX_BODY = 48 << 20
"""Bytes of a conversation, including its images in base64."""

_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio compiles the scripts of components in the browser.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)

_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class PageGuard:
    """ASGI middleware around the page."""

    def __init__(self, page: ASGIApp, service: Service) -> None:
        """Wrap `page`."""
        self._page = page
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        allowed = _ALLOWED_PATHS.get(scope["method"])
        if allowed is None or not allowed.fullmatch(scope["path"]) or ".." in scope["path"]:
            raise ApiError(404, "there is no such route", code="unknown_url")
        self._check_origin(headers)
        self._check_key(headers, scope)
        # A shutdown does not wait for open pages; answers are counted by the backend.
        self._service.num_active -= 1
        try:
            await self._page(scope, _limit_body(headers, receive), _add_security_headers(send))
        finally:
            self._service.num_active += 1

    def _check_origin(self, headers: dict[bytes, str]) -> None:
        """Raise if the page of another site made the browser send the request."""
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers[b"host"].lower():
            raise ApiError(403, "this page accepts no requests of other sites", code="other_site")

    def _check_key(self, headers: dict[bytes, str], scope: Scope) -> None:
        """Raise if the key is missing or wrong; a browser sends it as the password of any user name."""
        authorization = headers.get(b"authorization", "")
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() == "basic":
            authorization = f"Bearer {_password(encoded)}"
        try:
            owner = self._service.keys.authenticate(authorization or None)
        except ApiError as error:
            raise _BasicAuthError(error.status, error.message, error.param, error.code) from None
        context = scope["context"]
        context.authenticated(owner)
        if scope["path"].startswith("/gradio_api/queue/join"):
            context.on_end.append(self._service.key_limits.acquire(owner))


class _BasicAuthError(ApiError):
    """The key is missing or wrong; the browser asks its user for a password."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        return {"WWW-Authenticate": 'Basic realm="caldera: the password is an API key"'}


def _password(encoded: str) -> str:
    """Return the password of basic credentials; an empty string if they are not valid."""
    try:
        return base64.b64decode(encoded, validate=True).decode("latin-1").partition(":")[2]
    except ValueError:
        return ""


def _limit_body(headers: dict[bytes, str], receive: Receive) -> Callable[[], Awaitable[Message]]:
    """Return a `receive` that raises ApiError after MAX_BODY bytes; raise it now if more are announced."""
    too_large = ApiError(413, "the conversation is too large; start a new one", code="too_large")
    announced = headers.get(b"content-length", "0")
    if not announced.isdecimal() or int(announced) > MAX_BODY:
        raise too_large
    num_received = 0

    async def receive_limited() -> Message:
        nonlocal num_received
        message = await receive()
        num_received += len(message.get("body", b""))
        if num_received > MAX_BODY:
            raise too_large
        return message

    return receive_limited


def _add_security_headers(send: Send) -> Send:
    """Return a `send` that adds the security headers."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *_HEADERS]
        await send(message)

    return send_with_headers
