"""Protocol of an LLM client: messages in, a reply out, or one of three kinds of failure.

A `TransientError` is retried, a `RequestRejected` ends one task, and an `LLMClientError` (API key, quota, model) would
meet every request, so it ends the run.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from caldera.errors import UsageError, check_ranges

MAX_CAPTION = 400
"""Maximum length of third-party text in a prompt or message, in characters; COCO's longest caption has about 250."""

_HIDDEN_CATEGORIES = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
"""Unicode categories of invisible characters: controls, bidirectional marks, lone surrogates."""

Message = Mapping[str, str]
"""One message of a request: role and content."""


class RejectedReply(Exception):  # noqa: N818 - the result of one request, which the run records
    """A reply that breaks a rule."""

    def __init__(self, rule: str, detail: str = "", *, feedback: str = "") -> None:
        """Store the rule, and the feedback to send to the model; empty if it is not asked again."""
        super().__init__(f"{rule}: {detail}" if detail else rule)
        self.rule, self.detail = rule, detail
        self.feedback = feedback


@dataclass(frozen=True, slots=True)
class Reply:
    """Reply of a model, with its usage."""

    text: str
    finish: str
    """Finish reason, in OpenAI's terms: "stop", "length", "content_filter"."""

    prompt_tokens: int | None = None
    """Usage reported by the endpoint; None if it reports none."""

    reply_tokens: int | None = None
    model: str = ""
    """Model name reported by the endpoint."""


class TransientError(Exception):
    """A failed request that may succeed when it is sent again."""

    def __init__(
        self, reason: str, *, limited: bool = False, wait: float | None = None, billed: bool = False
    ) -> None:
        """Store the reason, whether it is a rate limit, the requested pause, and whether it may be billed."""
        super().__init__(reason)
        self.limited = limited
        self.wait = wait
        """Seconds during which no request should be sent; None if the endpoint asks for no pause."""
        self.billed = billed


class RequestRejected(Exception):  # noqa: N818 - the result of one request, which the run records
    """A request that will never get a reply: blocked by a content policy, or invalid."""

    def __init__(self, reason: str, detail: str, *, by_policy: bool) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
        self.by_policy = by_policy


class LLMClient(Protocol):
    """A language model that replies to messages."""

    async def complete(self, name: str, messages: Sequence[Message]) -> Reply:
        """Send one request of the task `name`.

        Raises:
            TransientError: The request may be sent again.
            RequestRejected: The request should not be sent again.
            LLMClientError: No request will succeed.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestConfig:
    """Settings of requests: concurrency, rates, retries, sampling."""

    concurrency: int = 16
    """Maximum number of requests in flight."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Tokens of prompts plus `max_tokens` of each reply, as services count them."""

    temperature: float | None = 0.7
    """None: the endpoint's default."""

    top_p: float | None = None
    """Nucleus sampling probability; None: the endpoint's default."""

    seed: int | None = None
    """Sampling seed, for endpoints that accept one."""

    max_tokens: int = 1500
    """Maximum length of a reply; a reply of this length is rejected as truncated."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Request field for `max_tokens`; some newer models of OpenAI accept only the second."""

    timeout: float = 180.0
    """Seconds for one request."""

    retries: int = 5
    """Maximum number of retries after transient errors; ten times as many after 429."""

    initial_backoff: float = 1.0
    """Seconds before the first retry; doubled for each retry, with up to 50 % of jitter."""

    max_backoff: float = 300.0
    """Maximum pause in seconds, even if an endpoint asks for a longer one."""

    max_repairs: int = 1
    """Maximum number of times that a model gets feedback on a rejected reply and is asked again."""

    max_consecutive_failures: int = 20
    """Consecutive failed tasks after which the run stops."""

    def __post_init__(self) -> None:
        """Check every setting."""
        counts = ("concurrency", "requests_per_minute", "tokens_per_minute", "max_tokens")
        limits = (
            "temperature",
            "top_p",
            "retries",
            "initial_backoff",
            "max_backoff",
            "max_repairs",
        )
        check_ranges(
            self,
            {
                **dict.fromkeys((*counts, "max_consecutive_failures"), "[1, inf]"),
                **dict.fromkeys(limits, "[0, inf]"),
                "timeout": "[0.001, inf]",
            },
        )
        if self.max_tokens_field not in ("max_tokens", "max_completion_tokens"):
            raise UsageError(
                f"max_tokens_field is {self.max_tokens_field!r}; it must be max_tokens or max_completion_tokens"
            )


def one_line(text: str) -> str:
    """Return third-party text on one line, without angle brackets and invisible characters, truncated."""
    visible = "".join(
        " " if char.isspace() else char
        for char in text[: 4 * MAX_CAPTION]
        if char.isspace() or unicodedata.category(char) not in _HIDDEN_CATEGORIES
    )
    line = " ".join(visible.split()).replace("<", "‹").replace(">", "›")
    return line if len(line) <= MAX_CAPTION else f"{line[: MAX_CAPTION - 1]}…"
