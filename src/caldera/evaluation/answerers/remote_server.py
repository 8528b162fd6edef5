"""Answers from a server that speaks OpenAI's chat completions and takes images as data URLs."""

import asyncio
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from caldera.conversation import ImageRef, Turn
from caldera.errors import CalderaError, LLMClientError, UsageError
from caldera.evaluation.answerers.answerer import Answer, AnswerConfig, OnAnswers, PreparedItem
from caldera.evaluation.benchmark import Item
from caldera.images.data_urls import encode_data_url, image_to_data_url
from caldera.images.decoding import decode_image, read_bytes
from caldera.images.file_types import WEB_FORMATS, identify_image_format
from caldera.interruption import StopRequest, deferred_signals
from caldera.llm_client.client import Reply, RequestConfig, RequestRejected
from caldera.llm_client.openai_client import OpenAIClient
from caldera.llm_client.retry import RateLimiter, RetriesExhausted, send_with_retries

_POLL_SECONDS, _GRACE_SECONDS = 0.1, 10.0
"""Time between looks for a signal, and time for answers in flight after one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerAddress:
    """Address of a served model."""

    url: str
    """Base URL, such as http://127.0.0.1:8000/v1."""

    model: str = ""
    """Name of the model at the server; if empty, the only one that it serves."""

    key: SecretStr | None = None


class ServerAnswerer:
    """Answers items by parallel requests to a server."""

    def __init__(self, server: ServerAddress, config: AnswerConfig) -> None:
        """Find out the name of the model."""
        if config.choice_method != "generation":
            raise UsageError(
                f"choice_method={config.choice_method} needs a model folder; servers do not return likelihoods"
            )
        self._server, self._config = server, config
        self._model = server.model or asyncio.run(self._single_served_model())
        self._consecutive_failures = 0

    @property
    def identity(self) -> Mapping[str, str]:
        """Address, model and decoding; the server's own settings are unknown."""
        config, sampling = self._config, {}
        if config.temperature:
            sampling = {"top_p": str(config.top_p), "seed": str(config.seed)}
        return {
            "model": f"{self._model} at {self._server.url}",
            "template": "the server's",
            "image mode": "the server's; images are sent as their files are",
            "temperature": str(config.temperature),
            **sampling,
            "choice_method": config.choice_method,
        }

    @property
    def model_info(self) -> Mapping[str, str]:
        """Nothing: a server is known by its answers only."""
        return {}

    @property
    def deterministic(self) -> bool:
        """True for greedy decoding."""
        return self._config.temperature == 0

    @property
    def batched(self) -> bool:
        """Always false: each item is a request; how the server batches them is unknown."""
        return False

    def prepare(self, item: Item, folder: Path, image_digests: Sequence[str]) -> PreparedItem:
        """Build the messages as JSON, with the digests of images in place of their data."""
        urls = iter(f"sha256:{digest}" for digest in image_digests)
        return PreparedItem(item, folder, json.dumps(_messages(item, urls), ensure_ascii=False))

    def ask(
        self,
        items: Sequence[PreparedItem],
        answered: Collection[str],
        on_answers: OnAnswers,
        *,
        max_new_tokens: int,
    ) -> None:
        """Answer items by parallel requests.

        Raises:
            LLMClientError: The server answers no more; answers that arrived were passed on.
            Interrupted: A signal ended the work; answers that arrived within some seconds were passed on.
        """
        waiting = iter([prepared for prepared in items if prepared.item.id not in answered])
        asyncio.run(self._ask_all(waiting, on_answers, self._request_config(max_new_tokens)))

    async def _ask_all(
        self, waiting: Iterator[PreparedItem], on_answers: OnAnswers, config: RequestConfig
    ) -> None:
        """Run workers until no item is waiting."""
        client = self._client(self._model, config)
        limiter = RateLimiter(config.requests_per_minute)

        with deferred_signals() as stop_request:

            async def work() -> None:
                for prepared in waiting:
                    on_answers([await self._ask_one(prepared, client, config, limiter)])
                    self._stop_after_failures()
                    if stop_request.signal is not None:
                        return

            try:
                async with asyncio.TaskGroup() as group:
                    workers = [group.create_task(work()) for _ in range(config.concurrency)]
                    watcher = asyncio.create_task(_cancel_after_signal(stop_request, workers))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                watcher.cancel()
                await client.close()
            stop_request.raise_if_requested("stopped")

    async def _ask_one(
        self,
        prepared: PreparedItem,
        client: OpenAIClient,
        config: RequestConfig,
        limiter: RateLimiter,
    ) -> Answer:
        """Request one answer, with retries."""
        item = prepared.item
        try:
            images = item.conversation.images
            messages = _messages(item, iter([_data_url(prepared.folder / path) for path in images]))
        except CalderaError as error:
            return Answer(item.id, error=str(error))

        async def send() -> Reply:
            await limiter.acquire(0)
            return await client.complete(item.id, messages)

        try:
            reply = await send_with_retries(item.id, send, config, limiter)
        except (RequestRejected, RetriesExhausted) as error:
            self._consecutive_failures += 1
            return Answer(item.id, error=str(error))
        self._consecutive_failures = 0
        text = reply.text.encode("utf-8", "replace").decode().strip()
        return Answer(item.id, text, model=reply.model)

    def _stop_after_failures(self) -> None:
        """Raise LLMClientError if too many consecutive items failed."""
        if self._consecutive_failures >= self._config.max_consecutive_failures:
            raise LLMClientError(
                f"{self._consecutive_failures} consecutive items failed at {self._server.url}; the answers so far are "
                "saved; fix the cause, and the same command resumes"
            )

    def _request_config(self, max_new_tokens: int) -> RequestConfig:
        """Return how requests are sent; raise UsageError if a setting is out of its range."""
        config, samples = self._config, self._config.temperature > 0
        return RequestConfig(
            concurrency=config.concurrency,
            requests_per_minute=config.requests_per_minute,
            temperature=config.temperature,
            top_p=config.top_p if samples else None,
            seed=config.seed if samples else None,
            max_tokens=max_new_tokens,
            max_tokens_field=config.max_tokens_field,
            timeout=config.timeout,
            retries=config.retries,
        )

    def _client(self, model: str, config: RequestConfig) -> OpenAIClient:
        return OpenAIClient(self._server.url, model, self._server.key, config, label="server")

    async def _single_served_model(self) -> str:
        """Return the name of the only served model."""
        client = self._client("", self._request_config(1))
        try:
            models = await client.served_models()
        finally:
            await client.close()
        if len(models) != 1:
            raise UsageError(
                f"{self._server.url} serves {len(models)} models ({', '.join(models[:9])}); choose one with "
                "--served-model"
            )
        return models[0]


async def _cancel_after_signal(
    stop_request: StopRequest, workers: Sequence[asyncio.Task[None]]
) -> None:
    """Wait for a signal, and some seconds more for the answers in flight, which may be paid for."""
    while stop_request.signal is None:
        await asyncio.sleep(_POLL_SECONDS)
    await asyncio.sleep(_GRACE_SECONDS)
    for worker in workers:
        worker.cancel()


def _messages(item: Item, urls: Iterator[str]) -> list[dict[str, Any]]:
    """Return an item as messages, with the next of `urls` for each image."""
    return [
        {"role": turn.role, "content": _message_content(turn, urls)}
        for turn in item.conversation.turns
    ]


def _message_content(turn: Turn, urls: Iterator[str]) -> str | list[dict[str, Any]]:
    """Return a turn as text, or with images as parts, without the white space between text and images."""
    if not turn.images:
        return turn.text
    parts: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, ImageRef):
            parts.append({"type": "image_url", "image_url": {"url": next(urls)}})
        elif text := part.strip():
            parts.append({"type": "text", "text": text})
    return parts


def _data_url(path: Path) -> str:
    """Return an image file as a data URL; a format that servers do not take becomes PNG."""
    content = read_bytes(path)
    image = decode_image(content, str(path))  # raises for images that no server should get
    image_format = identify_image_format(content)
    if image_format not in WEB_FORMATS:
        return image_to_data_url(image, "png")
    return encode_data_url(content, image_format.lower())
