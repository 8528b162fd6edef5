"""Requests that no route of the API takes in, to the page what is the page's out: all others are refused.

Gradio has many routes, for files, streams, monitoring and more. The page needs the few that are named here; the rest
is not reachable. What goes out carries a policy that has the browser load from this server alone.
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
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/(?:assets|static|svelte)/[\w@./+-]+"
        r"|/gradio_api/(?:app_id|startup-events|info|queue/(?:data|status)|heartbeat/\w+|theme\.css)/?"
    ),
    "HEAD": re.compile(r"/"),
    "POST": re.compile(r"/gradio_api/(?:queue/join|run/predict|component_server|reset|cancel)/?"),
}
"""What the page asks for. No route for files is among them: images travel within messages."""

MAX_BODY = 48 << 20
"""Bytes: of a whole conversation, images among it, in base64."""

_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio makes components' scripts in the browser
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
    """Stands before the page."""

    def __init__(self, page: ASGIApp, service: Service) -> None:
        """Let through to `page` what is the page's."""
        self._page = page
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request.

        Raises:
            ApiError: It is not the page's, or comes from another site, without a key, or is too large.
        """
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        known = _ALLOWED_PATHS.get(scope["method"])
        if known is None or not known.fullmatch(scope["path"]) or ".." in scope["path"]:
            raise ApiError(404, "there is no such route", code="unknown_url")
        self._check_origin(headers)
        self._check_key(headers, scope)
        self._service.num_active -= (
            1  # an open page is nothing that a shutdown waits for; answers count themselves
        )
        try:
            await self._page(
                scope, _limit_body(MAX_BODY, headers, receive), _add_security_headers(send)
            )
        finally:
            self._service.num_active += 1

    def _check_origin(self, headers: dict[bytes, str]) -> None:
        """Refuse what another site's page has the browser send.

        Raises:
            ApiError: It is.
        """
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers[b"host"].lower():
            raise ApiError(403, "this page takes no requests from other sites", code="other_site")

    def _check_key(self, headers: dict[bytes, str], scope: Scope) -> None:
        """Have the browser ask for the key: its password is one of the server's keys, the user's name is any.

        Raises:
            ApiError: It is missing or wrong.
        """
        given = headers.get(b"authorization", "")
        scheme, _, encoded = given.partition(" ")
        if scheme.lower() == "basic":
            given = f"Bearer {_password(encoded)}"
        try:
            owner = self._service.keys.authenticate(given or None)
        except ApiError as error:
            raise _AuthRequiredError(error.status, error.message, error.param, error.code) from None
        scope["visit"].told["key"] = owner
        if scope["path"].startswith("/gradio_api/queue/join"):
            scope["visit"].ends.append(self._service.key_limits.acquire(owner))


class _AuthRequiredError(ApiError):
    """The key is missing or wrong; a browser asks its user for one."""

    @property
    def headers(self) -> dict[str, str]:
        """What stands in the answer's head."""
        return {"WWW-Authenticate": 'Basic realm="caldera: the password is an API key"'}


def _password(encoded: str) -> str:
    """Return the password of basic credentials; nothing if they are not understood."""
    try:
        return base64.b64decode(encoded, validate=True).decode("latin-1").partition(":")[2]
    except ValueError:
        return ""


def _limit_body(
    limit: int, headers: dict[bytes, str], receive: Receive
) -> Callable[[], Awaitable[Message]]:
    """Return a `receive` that reads no more than so many bytes.

    Raises:
        ApiError: More are announced.
    """
    too_large = ApiError(413, "the conversation is too large; begin a new one", code="too_large")
    announced = headers.get(b"content-length", "0")
    if not announced.isdecimal() or int(announced) > limit:
        raise too_large
    read = 0

    async def reading() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise too_large
        return message

    return reading


def _add_security_headers(send: Send) -> Send:
    """Return a `send` that adds the headers that guard a browser."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *_HEADERS]
        await send(message)

    return sending
