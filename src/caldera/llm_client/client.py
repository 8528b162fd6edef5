"""What a language model is to the run: messages in, a reply out, or one of three ways to fail.

`Trouble` may pass and the request is sent again; `Declined` will not, and the dialogue is given up; a `TeacherError`
(key, quota, model) would meet every request, and the run stops.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from caldera.errors import UsageError

MAX_CAPTION = 400
"""Characters of a caption that are sent; COCO's longest has some 250."""


_HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
"""Categories of characters that nobody sees: controls, marks of writing direction, halves of characters."""


Message = Mapping[str, str]
"""One message of a request: role and content."""


class NothingToWrite(Exception):  # noqa: N818 - not an error: the teacher declines, and says why
    """The annotations do not hold what this kind needs."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote, and what the request took."""

    text: str
    finish: str
    """Why it ended, in OpenAI's words: "stop", "length", "content_filter"."""

    prompt_tokens: int | None = None
    """As the endpoint counted; None where it did not say."""

    reply_tokens: int | None = None
    model: str = ""
    """The model by the name that the endpoint gives it."""


class TransientError(Exception):  # noqa: N818 - not the user's error: it may pass
    """A request came to nothing for a reason that may pass."""

    def __init__(
        self, reason: str, *, limited: bool = False, wait: float | None = None, billed: bool = False
    ) -> None:
        """Say why, whether the endpoint asks for fewer requests, how long it wants to rest, whether it may bill."""
        super().__init__(reason)
        self.limited = limited
        self.wait = wait
        """Seconds in which no request at all should be sent; None where the endpoint did not say."""
        self.billed = billed


class RequestRejected(Exception):  # noqa: N818 - not an error: the model or its service says no to one request
    """A request that will never get a reply: `refused` by a policy, or unanswerable for another reason."""

    def __init__(self, reason: str, detail: str, *, by_policy: bool) -> None:
        """Name the reason."""
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.by_policy = by_policy


class LLMClient(Protocol):
    """A language model that takes messages."""

    async def complete(self, name: str, messages: Sequence[Message]) -> Reply:
        """Send one request about the dialogue `name`.

        Raises:
            Trouble: It may be sent again.
            Declined: It should not.
            TeacherError: No request will be answered.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestConfig:
    """How requests are sent."""

    concurrency: int = 16
    """Requests under way at a time."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and the longest replies together, as services count."""

    temperature: float | None = 0.7
    """None leaves it to the endpoint."""

    top_p: float | None = None
    """Draw only from the likeliest tokens of this probability together; None leaves it to the endpoint."""

    seed: int | None = None
    """Of the draws, for endpoints that take one."""

    max_tokens: int = 1500
    """Longest reply; one that reaches it is refused as cut off."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls it; some newer models of OpenAI take only the second."""

    timeout: float = 180.0
    """Seconds for one request."""

    retries: int = 5
    """How often a request that met a passing trouble is sent again; ten times as often after 429."""

    initial_backoff: float = 1.0
    """Seconds before the first retry; doubled each time, and varied by up to a half."""

    max_backoff: float = 300.0
    """Most seconds to wait, also where an endpoint asks for more."""

    max_repairs: int = 1
    """How often a teacher is told what was wrong and asked again."""

    give_up_after: int = 20
    """Dialogues that fail in a row before the run stops."""

    def __post_init__(self) -> None:
        """Check each setting.

        Raises:
            UsageError: One cannot be.
        """
        least: dict[str, float] = {
            "concurrency": 1, "requests_per_minute": 1, "tokens_per_minute": 1, "temperature": 0, "top_p": 0,
            "max_tokens": 1, "timeout": 0.001,
            "retries": 0, "initial_backoff": 0, "max_backoff": 0, "max_repairs": 0, "give_up_after": 1,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise UsageError(f"{name} is {value}; it must be at least {bound}")
        if self.max_tokens_field not in ("max_tokens", "max_completion_tokens"):
            raise UsageError(
                f"limit_name is {self.max_tokens_field!r}; write max_tokens or max_completion_tokens"
            )


def one_line(text: str) -> str:
    """Return a stranger's text on one line, without marks and hidden characters, cut at the cap."""
    seen = "".join(
        " " if char.isspace() else char
        for char in text[: 4 * MAX_CAPTION]
        if char.isspace() or unicodedata.category(char) not in _HIDDEN
    )
    one_line = " ".join(seen.split()).replace("<", "‹").replace(">", "›")
    return one_line if len(one_line) <= MAX_CAPTION else f"{one_line[: MAX_CAPTION - 1]}…"


class RejectedReply(NothingToWrite):
    """A reply that is not taken, and the rule it breaks."""

    def __init__(self, rule: str, detail: str = "", *, feedback: str = "") -> None:
        """Name the rule; `feedback` is what the teacher is told where asking again pays, else nothing."""
        super().__init__(f"{rule}: {detail}" if detail else rule)
        self.rule = rule
        self.feedback = feedback
