"""Errors of the Hugging Face Hub in words that state what to do, and the waiting for a server that is busy."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from caldera import __version__
from caldera.errors import InputError

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
"""Failures in a row after which a request is given up."""

MAX_WAIT_SECONDS = 120.0
"""Longest time in all that a request waits for a server."""

FIRST_PAUSE_SECONDS = 1.0
"""Pause after the first failure; it doubles with each further one."""

_BUSY = (408, 429, 500, 502, 503, 504)
"""Status codes after which the same request may succeed."""

NOT_THE_HUBS = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading an answer raises that is not one of the Hub."""

_SECONDS = re.compile(r"[0-9]{1,9}")
"""Seconds that a server asks to wait; more digits mean nothing."""

_MAX_REASON = 200
"""Characters of a server's own words that a message repeats."""


class HubError(InputError):
    """A repository on the Hub, or a file in it, cannot be used."""


class HubUnreachableError(HubError):
    """The Hub cannot be reached now, or is busy."""


class Retries:
    """Waits before a request is repeated, for a limited time in all."""

    def __init__(self) -> None:
        self._failures, self._waited = 0, 0.0

    def wait(self, error: Exception) -> None:
        """Wait as long as the server asks, else longer each time; raise the error if waiting does not help."""
        response = getattr(error, "response", None)
        self._failures += 1
        pause = FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1)
        if response is not None and (retry_after := _retry_after(response)) is not None:
            pause = retry_after
        self._waited += pause
        is_final = response is not None and response.status_code not in _BUSY
        if is_final or self._failures >= MAX_ATTEMPTS or self._waited > MAX_WAIT_SECONDS:
            raise error
        log.info("the Hub: %s; next attempt in %.0f s", _reason(error), pause)
        time.sleep(pause)


@contextmanager
def hub_errors(action: str, repo_id: str, repo_type: str = "model") -> Iterator[None]:
    """Turn errors of `huggingface_hub` into a HubError that states what to do.

    Args:
        action: What is tried, such as "read org/name@main".
        repo_id: The repository.
        repo_type: Its type.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):
        raise HubError(
            f"cannot {action}: the token has a character that no token of the Hub has; renew HF_TOKEN or unset it"
        )
    try:
        yield
    except (http_error(), HFValidationError, OfflineModeIsEnabled) as error:
        raise _translate(error, action, repo_id, repo_type) from None


@contextmanager
def reading_answer(subject: str) -> Iterator[None]:
    """Turn what reading an answer raises that is not one of the Hub into a HubError.

    Args:
        subject: What is asked for, such as "org/name@main".
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError:
        raise
    except NOT_THE_HUBS as error:
        raise HubError(
            f"{constants.ENDPOINT} does not answer as the Hub does when asked for {subject}; check HF_ENDPOINT"
        ) from error


def http_error() -> type[Exception]:
    """Return the base class of all errors of requests, in whichever HTTP library `huggingface_hub` uses."""
    from huggingface_hub import errors

    base: type[Exception] = errors.HTTPError  # type: ignore[attr-defined] # not in its __all__
    return base


def _translate(error: Any, action: str, repo_id: str, repo_type: str) -> HubError:  # noqa: ANN401 - of either library
    """Return an error as a HubError."""
    from huggingface_hub import constants, errors

    host, cannot = constants.ENDPOINT, f"cannot {action}"
    page = f"{host}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    match error:
        case errors.GatedRepoError():
            return HubError(
                f"{cannot}: its access is gated, {_token_state()}; accept its terms on {page}, and set HF_TOKEN to a "
                "token of that account"
            )
        case errors.RepositoryNotFoundError():
            kind = _other_kind(repo_id, repo_type) or (
                f"{host} has no {_kind(repo_type)} of this name, or it is private, {_token_state()}"
            )
            return HubError(f"{cannot}: {kind}; check the name, or set HF_TOKEN")
        case errors.RevisionNotFoundError():
            return HubError(f"{cannot}: it has no such revision; {page}/tree/main lists them")
        case errors.RemoteEntryNotFoundError():
            return HubError(
                f"{cannot}: {host} lists {error.response.url.path}, but does not have it; run again, or choose "
                "another revision"
            )
        case errors.HfHubHTTPError():
            return _translate_status(error, cannot, host)
        case errors.OfflineModeIsEnabled():
            return HubUnreachableError(f"{cannot}: HF_HUB_OFFLINE is set; unset it")
        case errors.HFValidationError():
            return HubError(f"{cannot}: it is no valid name on the Hub: {_reason(error)}")
    return HubUnreachableError(
        f"{cannot}: {host} cannot be reached ({_reason(error)}); check the network and the proxy"
    )


def _translate_status(error: Any, cannot: str, host: str) -> HubError:  # noqa: ANN401 - as above
    """Return the error of a response as a HubError."""
    status = error.response.status_code
    if status == 429:
        retry_after = _retry_after(error.response)
        wait = "" if retry_after is None else f" and asks to wait {retry_after:.0f} s"
        return HubUnreachableError(
            f"{cannot}: {host} limits the rate of requests{wait}; run again later; with HF_TOKEN the limit is higher"
        )
    if status in _BUSY:
        return HubUnreachableError(
            f"{cannot}: {host} is not available ({_reason(error)}); run again later"
        )
    if status == 401:
        return HubError(
            f"{cannot}: {host} rejects the token ({_reason(error)}); renew HF_TOKEN or unset it"
        )
    if status == 403:
        return HubError(f"{cannot}: {host} forbids it, {_token_state()} ({_reason(error)})")
    return HubError(f"{cannot}: {_reason(error)} from {host}; check HF_ENDPOINT")


def _other_kind(repo_id: str, repo_type: str) -> str:
    """Return a sentence if the Hub has a repository of this name of another type; else an empty text."""
    from huggingface_hub import HfApi, constants

    other = "dataset" if repo_type == "model" else "model"
    try:
        api = HfApi(library_name="caldera", library_version=__version__)
        api.repo_info(repo_id, repo_type=other, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (http_error(), ValueError):
        return ""
    return f"it is a {_kind(other)}, needed is a {_kind(repo_type)}"


def _kind(repo_type: str) -> str:
    return "data set" if repo_type == "dataset" else repo_type


def _token_state() -> str:
    """Return whether a token was sent, for a message; the token itself is in no message."""
    from huggingface_hub import get_token

    return "and the token gives no access" if get_token() else "and no token is set"


def _retry_after(response: Any) -> float | None:  # noqa: ANN401 - a response of either library
    """Return the seconds that a server asks to wait; None if it does not."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined] # as above

    retry_after = response.headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(retry_after):
        return float(retry_after)
    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    return float(limit.reset_in_seconds) if limit and not limit.remaining else None


def _reason(error: Any) -> str:  # noqa: ANN401 - as above
    """Return what went wrong in one line, without the token."""
    from huggingface_hub import get_token

    response = getattr(error, "response", None)
    text = f"{type(error).__name__}: {error}"
    if response is not None:
        text = f"{response.status_code} {error.server_message or response.reason_phrase}"
    text = " ".join(text.split())
    if token := get_token():
        text = text.replace(token, "***")
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."
