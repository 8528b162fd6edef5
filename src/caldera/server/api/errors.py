"""What goes wrong in, the one shape in which clients are told of it out.

`{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`, with a status that OpenAI's clients act on: they
try again after 429 and from 500 on, and not after other 4xx.
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
"""After which clients are asked to try again."""


@dataclass
class ApiError(Exception):
    """A request is answered with an error."""

    status: int
    message: str
    param: str | None = None
    """The field of the request that is at fault, such as `messages[0].content`."""
    code: str | None = None
    retry_after: bool = False
    """Whether the client is asked to try again later."""
    allow: str | None = None
    """Methods that the route has, where it was asked by another."""

    @property
    def type(self) -> ErrorType:
        """OpenAI's kind of error."""
        usual: ErrorType = "server_error" if self.status >= 500 else "invalid_request_error"
        return _TYPES.get(self.status, usual)

    @property
    def body(self) -> dict[str, Any]:
        """What the client is sent."""
        told = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": told}

    @property
    def headers(self) -> dict[str, str]:
        """What stands in the answer's head."""
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.allow:
            headers["Allow"] = self.allow
        return headers


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that cannot be carried out as it is."""
    return ApiError(400, message, param, code)


def service_unavailable(message: str, code: str) -> ApiError:
    """Return the error for what may be possible later."""
    return ApiError(503, message, code=code, retry_after=True)


def from_media_error(error: MediaError) -> ApiError:
    """Return the error for an image that is not used."""
    fault = error.fault
    return ApiError(
        fault.status, fault.text, "messages", fault.code, retry_after=fault.status >= 500
    )


def internal_error() -> ApiError:
    """Return the error for a fault of our own; what it was stands in the log, under the request's id."""
    return ApiError(500, "the server failed at this request", code="internal_error")
