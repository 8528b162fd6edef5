"""API errors in OpenAI's shape.

`{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`, with statuses that OpenAI's clients act on: they
retry after 429 and 5xx, and not after other 4xx.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from caldera.server.media.errors import MediaError

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
]

_TYPES: Mapping[int, ErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

RETRY_SECONDS = 2
"""Value of the Retry-After header."""


@dataclass
class ApiError(Exception):
    """Error response to a request."""

    status: int
    message: str
    param: str | None = None
    """Field of the request that is not valid, such as `messages[0].content`."""
    code: str | None = None
    retry_after: bool = False
    """Whether the client is asked to try again later."""
    allow: str | None = None
    """Methods that the route supports, if the request used another."""

    @property
    def type(self) -> ErrorType:
        """OpenAI's type of the error."""
        default: ErrorType = "server_error" if self.status >= 500 else "invalid_request_error"
        return _TYPES.get(self.status, default)

    @property
    def body(self) -> dict[str, Any]:
        """JSON body of the response."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.allow:
            headers["Allow"] = self.allow
        return headers


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that is not valid."""
    return ApiError(400, message, param, code)


def service_unavailable(message: str, code: str) -> ApiError:
    """Return the error for a request that may succeed later."""
    return ApiError(503, message, code=code, retry_after=True)


def from_media_error(error: MediaError) -> ApiError:
    """Return the error for an image that cannot be used."""
    kind = error.kind
    return ApiError(
        kind.status, kind.message, "messages", kind.code, retry_after=kind.status >= 500
    )


def internal_error() -> ApiError:
    """Return the error for a bug; the log has the details under the request's id."""
    return ApiError(500, "the server failed at this request", code="internal_error")
