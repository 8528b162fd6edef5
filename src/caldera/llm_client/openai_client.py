"""Client for any server that implements OpenAI's chat completions, based on the `openai` package.

The package's own retries are off, as the runner retries. Responses are validated here, and the API key is redacted: no
text that leaves this module contains it. (The package itself reads the usual environment variables for proxies and for
OpenAI's organization.)
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, SecretStr, ValidationError

from caldera.errors import LLMClientError, UsageError
from caldera.extras import require_extra
from caldera.llm_client.client import (
    Reply,
    RequestConfig,
    RequestRejected,
    TransientError,
    one_line,
)
from caldera.llm_client.retry import retry_after

OPENAI_URL = "https://api.openai.com/v1"

_QUOTA_CODES = ("insufficient_quota", "credit_balance", "billing", "quota_exceeded")
"""Substrings of error codes and types of an exhausted quota."""

_POLICY_CODES = ("content_policy", "content_filter", "safety", "moderation", "responsibleai")
"""Substrings of error codes and types of a content policy."""


class _ResponseMessage(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _ResponseMessage
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _ResponseBody(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str = ""


class OpenAIClient:
    """LLM client over HTTP."""

    def __init__(
        self,
        base_url: str,
        model: str,
        key: SecretStr | None,
        config: RequestConfig,
        label: str = "teacher",
    ) -> None:
        """Prepare a client; no request is sent. `label` names the model's role in messages."""
        require_extra("teacher", f"the {label}")
        import openai

        if not base_url.startswith(("http://", "https://")):
            raise UsageError(
                f"{one_line(base_url)!r} is not an HTTP URL; pass one such as http://127.0.0.1:8000/v1"
            )
        self._openai = openai
        self._key = key.get_secret_value() if key else ""
        self._model = model
        self._config = config
        self._label = label
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=base_url,
            max_retries=0,
            timeout=config.timeout,
        )

    async def complete(self, name: str, messages: Sequence[Mapping[str, object]]) -> Reply:
        """Send one request; contents are text, or OpenAI's parts of text and images."""
        config = self._config
        request: dict[str, Any] = {
            "model": self._model,
            "messages": [*messages],
            config.max_tokens_field: config.max_tokens,
        }
        sampling = {"temperature": config.temperature, "top_p": config.top_p, "seed": config.seed}
        request |= {key: value for key, value in sampling.items() if value is not None}
        try:
            async with asyncio.timeout(config.timeout):
                # Not chat.completions.create: it checks every message's type, which takes half of the time.
                body = await self._client.post("/chat/completions", body=request, cast_to=bytes)
        except self._openai.APIStatusError as error:
            raise self._status_error(
                error.status_code, error.response.headers, error.body
            ) from None
        except (self._openai.APITimeoutError, TimeoutError):
            raise TransientError(f"no reply in {config.timeout:g} s", billed=True) from None
        except self._openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reason = f"{type(cause).__name__}: {self._redact(str(cause))}"
            # A request whose connection failed later may have been answered, and so be billed.
            billed = "Connect" not in type(cause).__name__
            raise TransientError(f"connection: {reason}", billed=billed) from None
        return self._parse_response(body)

    async def served_models(self) -> list[str]:
        """Return the names of the models that the endpoint serves."""
        try:
            async with asyncio.timeout(self._config.timeout):
                body = await self._client.get("/models", cast_to=bytes)
        except (self._openai.APIError, TimeoutError) as error:
            reason = f"{type(error).__name__}: {self._redact(str(error.__cause__ or error))}"
            raise self._models_not_listed(reason) from None
        try:
            return [str(model["id"]) for model in json.loads(body)["data"]]
        except (ValueError, LookupError, TypeError):
            start = self._redact(body[:80].decode(errors="replace"))
            raise self._models_not_listed(f"/models returned {start!r}") from None

    def _models_not_listed(self, reason: str) -> LLMClientError:
        return LLMClientError(
            f"the {self._label} does not list its models ({reason}); check its address and key, or name the model"
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _parse_response(self, body: bytes) -> Reply:
        """Validate a response body and return its reply."""
        try:
            response = _ResponseBody.model_validate(json.loads(body))
        except (ValueError, ValidationError, RecursionError):
            start = self._redact(body[:200].decode(errors="replace"))
            raise TransientError(f"not a chat completion: {start!r}", billed=True) from None
        choice, usage = response.choices[0], response.usage
        if choice.message.content is None and choice.message.refusal:
            refusal = self._redact(choice.message.refusal)
            raise RequestRejected(f"{self._label} refusal", refusal, by_policy=True)
        finish = choice.finish_reason or "stop"
        if choice.message.content is None and finish not in ("length", "content_filter"):
            raise TransientError("a reply without content", billed=True)
        return Reply(
            text=self._redact_text(choice.message.content or ""),
            finish=self._redact(finish),
            prompt_tokens=usage.prompt_tokens if usage else None,
            reply_tokens=usage.completion_tokens if usage else None,
            model=self._redact(response.model) or self._model,
        )

    def _status_error(self, status: int, headers: Mapping[str, str], body: object) -> Exception:
        """Return the exception for an error status."""
        error = body if isinstance(body, dict) else {}
        codes = f"{error.get('code')} {error.get('type')}".lower()
        inner = error.get("innererror")
        codes += f" {inner.get('code')}".lower() if isinstance(inner, dict) else ""
        message = error.get("message") or body or ""
        reason = f"HTTP {status}: {self._redact(str(message))}".removesuffix(": ")
        if status == 402 or any(code in codes for code in _QUOTA_CODES):
            return LLMClientError(f"the {self._label}'s quota is used up ({reason})")
        if status in (401, 403):
            return LLMClientError(f"the {self._label} does not accept the API key ({reason})")
        if status == 404:
            return LLMClientError(
                f"the {self._label} has no model {self._model!r} or the address is wrong ({reason})"
            )
        if status == 429:
            return TransientError(reason, limited=True, wait=retry_after(headers))
        if status in (408, 409) or status >= 500:
            return TransientError(reason, wait=retry_after(headers))
        if any(code in codes for code in _POLICY_CODES):
            return RequestRejected("content policy", reason, by_policy=True)
        return RequestRejected("bad request", reason, by_policy=False)

    def _redact(self, text: str) -> str:
        """Return the endpoint's text on one line, truncated, without the key."""
        return one_line(self._redact_text(text))[:200]

    def _redact_text(self, text: str) -> str:
        """Replace the key in a text."""
        return text.replace(self._key, "[key]") if len(self._key) >= 6 else text
