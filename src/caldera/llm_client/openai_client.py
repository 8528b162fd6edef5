"""The official `openai` client as an endpoint: any service that speaks OpenAI's chat completions, at any address.

The client's own retries are off, as the run has its own. Whatever comes back is checked here, and the key is struck out
of it: no text that leaves this module holds the key. (The client itself follows the usual variables for proxies and for
OpenAI's organization.)
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from caldera.errors import LLMClientError, UsageError
from caldera.llm_client.client import (
    Reply,
    RequestConfig,
    RequestRejected,
    TransientError,
    one_line,
)
from caldera.llm_client.retry import retry_after

OPENAI_URL = "https://api.openai.com/v1"

_QUOTA = ("insufficient_quota", "credit_balance", "billing", "quota_exceeded")
"""Parts of codes and types of errors that mean: no money is left."""

_POLICY = ("content_policy", "content_filter", "safety", "moderation", "responsibleai")


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _ResponseMessage(_Wire):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Wire):
    message: _ResponseMessage
    finish_reason: str | None = None


class _Usage(_Wire):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _ResponseBody(_Wire):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str = ""


class OpenAIClient:
    """Asks over HTTP."""

    def __init__(
        self,
        base_url: str,
        model: str,
        key: SecretStr | None,
        sending: RequestConfig,
        label: str = "teacher",
    ) -> None:
        """Prepare a client; nothing is sent. Messages call the model as it is `called` by the user.

        Raises:
            UsageError: The package `openai` is missing, or the address is not one.
        """
        try:
            import openai
        except ImportError as error:
            raise UsageError(
                f"the {label} is reached with the package openai; pip install 'caldera[teacher]'"
            ) from error
        if not base_url.startswith(("http://", "https://")):
            raise UsageError(
                f"{one_line(base_url)!r} is no address; write one such as http://127.0.0.1:8000/v1"
            )
        self._openai = openai
        self._key = key.get_secret_value() if key else ""
        self._model = model
        self._sending = sending
        self._called = label
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=base_url,
            max_retries=0,
            timeout=sending.timeout,
        )

    async def complete(self, name: str, messages: Sequence[Mapping[str, object]]) -> Reply:
        """Send one request; contents are text, or OpenAI's parts of text and images.

        Raises:
            Trouble: It may be sent again.
            Declined: It should not.
            TeacherError: No request will be answered.
        """
        request: dict[str, Any] = {
            "model": self._model,
            "messages": [*messages],
            self._sending.max_tokens_field: self._sending.max_tokens,
        }
        if self._sending.temperature is not None:
            request["temperature"] = self._sending.temperature
        if self._sending.top_p is not None:
            request["top_p"] = self._sending.top_p
        if self._sending.seed is not None:
            request["seed"] = self._sending.seed
        try:
            async with asyncio.timeout(self._sending.timeout):
                # not chat.completions.create, which walks through every message's type: half of the time it takes
                body = await self._client.post("/chat/completions", body=request, cast_to=bytes)
        except self._openai.APIStatusError as error:
            raise self._status(error.status_code, error.response.headers, error.body) from None
        except (self._openai.APITimeoutError, TimeoutError):
            reason = f"no reply in {self._sending.timeout:g} s"
            raise TransientError(reason, billed=True) from None
        except self._openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reason = f"{type(cause).__name__}: {self._redact(str(cause))}"
            raise TransientError(f"connection: {reason}", billed=_may_be_billed(cause)) from None
        return self._reply(body)

    async def served_models(self) -> list[str]:
        """Ask which models the endpoint serves.

        Raises:
            TeacherError: It does not say.
        """
        try:
            async with asyncio.timeout(self._sending.timeout):
                raw = await self._client.get("/models", cast_to=bytes)
        except (self._openai.APIError, TimeoutError) as error:
            told = f"{type(error).__name__}: {self._redact(str(error.__cause__ or error))}"
            raise self._models_not_listed(told) from None
        try:
            return [str(each["id"]) for each in json.loads(raw)["data"]]
        except (ValueError, LookupError, TypeError):
            told = self._redact(raw[:80].decode(errors="replace"))
            raise self._models_not_listed(f"/models answers {told!r}") from None

    def _models_not_listed(self, told: str) -> LLMClientError:
        """Say that the endpoint does not tell its models, and what to do."""
        return LLMClientError(
            f"the {self._called} does not say what it serves ({told}); check its address and key, or name the model"
        )

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()

    def _reply(self, body: bytes) -> Reply:
        """Check a body and take the reply out of it.

        Raises:
            Trouble: It is not a chat completion.
            Declined: The model refused.
        """
        try:
            read = _ResponseBody.model_validate(json.loads(body))
        except (ValueError, ValidationError, RecursionError):
            start = self._redact(body[:200].decode(errors="replace"))
            raise TransientError(f"not a chat completion: {start!r}", billed=True) from None
        choice, usage = read.choices[0], read.usage
        if choice.message.content is None and choice.message.refusal:
            raise RequestRejected(
                f"{self._called} refuses", self._redact(choice.message.refusal), by_policy=True
            )
        finish = choice.finish_reason or "stop"
        if choice.message.content is None and finish not in ("length", "content_filter"):
            raise TransientError("a reply without content", billed=True)
        return Reply(
            text=self._redact_text(choice.message.content or ""),
            finish=self._redact(finish),
            prompt_tokens=usage.prompt_tokens if usage else None,
            reply_tokens=usage.completion_tokens if usage else None,
            model=self._redact(read.model) or self._model,
        )

    def _status(self, status: int, headers: Mapping[str, str], body: object) -> Exception:
        """Return what an error status means."""
        fault = body if isinstance(body, dict) else {}
        marks = f"{fault.get('code')} {fault.get('type')}".lower()
        inner = fault.get("innererror")
        marks += f" {inner.get('code')}".lower() if isinstance(inner, dict) else ""
        said = fault.get("message") or body or ""
        reason = f"HTTP {status}: {self._redact(str(said))}".removesuffix(": ")
        if status == 402 or any(mark in marks for mark in _QUOTA):
            return LLMClientError(f"the {self._called}'s quota is used up ({reason})")
        if status in (401, 403):
            return LLMClientError(f"the {self._called} does not take the key ({reason})")
        if status == 404:
            return LLMClientError(
                f"the {self._called} has no model {self._model!r} or the address is wrong ({reason})"
            )
        if status == 429:
            return TransientError(reason, limited=True, wait=retry_after(headers))
        if status in (408, 409) or status >= 500:
            return TransientError(reason, wait=retry_after(headers))
        if any(mark in marks for mark in _POLICY):
            return RequestRejected("content policy", reason, by_policy=True)
        return RequestRejected("bad request", reason, by_policy=False)

    def _redact(self, text: str) -> str:
        """Return a text of the endpoint's on one line, cut, without the key."""
        return one_line(self._redact_text(text))[:200]

    def _redact_text(self, text: str) -> str:
        """Take the key out of a text."""
        return text.replace(self._key, "[key]") if len(self._key) >= 6 else text


def _may_be_billed(cause: BaseException) -> bool:
    """Tell whether a request whose connection failed may have been answered, and so be billed."""
    return "Connect" not in type(cause).__name__
