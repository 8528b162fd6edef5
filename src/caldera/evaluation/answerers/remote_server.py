"""A server as what answers items: anything that speaks OpenAI's chat completions and takes images as data URLs."""

import asyncio
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from caldera.conversation import ImageRef, Turn
from caldera.errors import CalderaError, LLMClientError, UsageError
from caldera.evaluation.answerers.answerer import Answer, AnswerConfig, OnAnswers
from caldera.evaluation.benchmark import Item
from caldera.images.data_urls import encode_data_url
from caldera.images.decoding import decode_image, read_bytes, read_image_header
from caldera.llm_client.client import Reply, RequestConfig, RequestRejected
from caldera.llm_client.openai_client import OpenAIClient
from caldera.llm_client.retry import RateLimiter, Retrier, RetriesExhausted


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerAddress:
    """Where a model is asked."""

    url: str
    """Base address, such as http://127.0.0.1:8000/v1."""

    model: str = ""
    """As the server calls it; the only one that it serves if empty."""

    key: SecretStr | None = None


class ServerAnswerer:
    """Answers by asking a server, many items at a time."""

    def __init__(self, server: ServerAddress, asking: AnswerConfig) -> None:
        """Find out which model is asked.

        Raises:
            UsageError: The address or a setting cannot be, or it is not clear which model is meant.
            TeacherError: The server was asked what it serves, and does not say.
        """
        if asking.choice_method != "generation":
            raise UsageError(
                f"choice_method={asking.choice_method} needs a model folder; a server does not tell how likely an answer is"
            )
        self._server, self._asking = server, asking
        self._model = server.model or asyncio.run(self._single_served_model())
        self._failed_in_a_row = 0

    @property
    def identity(self) -> Mapping[str, str]:
        """Address, model and decoding. What the server makes of them is not known."""
        asking, drawn = self._asking, {}
        if asking.temperature:
            drawn = {"top_p": str(asking.top_p), "seed": str(asking.seed)}
        return {
            "model": f"{self._model} at {self._server.url}",
            "template": "the server's",
            "image mode": "the server's; images are sent as their files are",
            "temperature": str(asking.temperature),
            **drawn,
            "choice_method": asking.choice_method,
        }

    @property
    def model_info(self) -> Mapping[str, str]:
        """Nothing: what a server is is known only by its answers."""
        return {}

    @property
    def deterministic(self) -> bool:
        """Whether it is asked for the likeliest tokens."""
        return self._asking.temperature == 0

    @property
    def batched(self) -> bool:
        """Never: each item is a request of its own, and what a server puts together is not known."""
        return False

    def prompt(self, item: Item, images: Sequence[str]) -> str:
        """Return the messages as JSON, with the digests of images where these are sent."""
        shown = iter(f"sha256:{digest}" for digest in images)
        return json.dumps(_messages(item, shown), ensure_ascii=False)

    def ask(
        self,
        items: Sequence[Item],
        done: Collection[str],
        on_answers: OnAnswers,
        *,
        folder: Path,
        max_new_tokens: int,
    ) -> None:
        """Ask, several items at a time.

        Raises:
            TeacherError: The server answers nothing any more; what was answered was handed over.
        """
        waiting = iter([item for item in items if item.id not in done])
        asyncio.run(self._ask_all(waiting, on_answers, folder, self._sending(max_new_tokens)))

    async def _ask_all(
        self, waiting: Iterator[Item], took: OnAnswers, folder: Path, sending: RequestConfig
    ) -> None:
        """Have workers ask until nothing waits."""
        endpoint = self._endpoint(self._model, sending)
        pace = RateLimiter(sending.requests_per_minute)
        patience = Retrier(sending, pace, asyncio.sleep)

        async def work() -> None:
            for item in waiting:
                took([await self._ask_one(item, folder, endpoint, (patience, pace))])
                self._stop_if_all_fail()

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(sending.concurrency):
                    workers.create_task(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            await endpoint.close()

    async def _ask_one(
        self, item: Item, folder: Path, endpoint: OpenAIClient, waits: tuple[Retrier, RateLimiter]
    ) -> Answer:
        """Ask one item until it has an answer, or fails.

        Raises:
            TeacherError: No item will be answered.
        """
        patience, pace = waits
        try:
            urls = iter([_data_url(folder / path) for path in item.conversation.images])
            messages = _messages(item, urls)
        except CalderaError as fault:
            return Answer(item.id, error=str(fault))

        async def send() -> Reply:
            await pace.acquire(0)
            return await endpoint.complete(item.id, messages)

        try:
            reply = await patience.run(item.id, send)
        except (RequestRejected, RetriesExhausted) as no:
            self._failed_in_a_row += 1
            return Answer(item.id, error=str(no))
        self._failed_in_a_row = 0
        text = reply.text.encode("utf-8", "replace").decode().strip()
        return Answer(item.id, text, model=reply.model)

    def _stop_if_all_fail(self) -> None:
        """End a run that meets nothing but failure.

        Raises:
            TeacherError: Too many items failed one after another.
        """
        if self._failed_in_a_row >= self._asking.max_consecutive_failures:
            raise LLMClientError(
                f"{self._failed_in_a_row} items in a row failed at {self._server.url}; what was answered is kept, and "
                "once that is mended the same command goes on"
            )

    def _sending(self, max_new_tokens: int) -> RequestConfig:
        """Say how requests are sent.

        Raises:
            UsageError: A setting is out of its range.
        """
        asking, draws = self._asking, self._asking.temperature > 0
        return RequestConfig(
            concurrency=asking.concurrency,
            requests_per_minute=asking.requests_per_minute,
            temperature=asking.temperature,
            top_p=asking.top_p if draws else None,
            seed=asking.seed if draws else None,
            max_tokens=max_new_tokens,
            max_tokens_field=asking.limit_name,
            timeout=asking.timeout,
            retries=asking.retries,
        )

    def _endpoint(self, model: str, sending: RequestConfig) -> OpenAIClient:
        """Make a client."""
        return OpenAIClient(self._server.url, model, self._server.key, sending, label="server")

    async def _single_served_model(self) -> str:
        """Ask for the model, where there is only one.

        Raises:
            UsageError: There are several, or none.
            TeacherError: The server does not say.
        """
        endpoint = self._endpoint("", self._sending(1))
        try:
            served = await endpoint.served_models()
        finally:
            await endpoint.close()
        if len(served) != 1:
            raise UsageError(
                f"{self._server.url} serves {len(served)} models ({', '.join(served[:9])}); choose one with --served"
            )
        return served[0]


def _messages(item: Item, shown: Iterator[str]) -> list[dict[str, Any]]:
    """Write an item as messages, with the next of `shown` where an image stands."""
    return [
        {"role": turn.role, "content": _message_content(turn, shown)}
        for turn in item.conversation.turns
    ]


def _message_content(turn: Turn, shown: Iterator[str]) -> str | list[dict[str, Any]]:
    """Write a turn: text alone as it is, else parts; a line end that parts text from an image falls away."""
    if not turn.images:
        return turn.text
    parts: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, ImageRef):
            parts.append({"type": "image_url", "image_url": {"url": next(shown)}})
        elif text := part.strip():
            parts.append({"type": "text", "text": text})
    return parts


def _data_url(path: Path) -> str:
    """Return an image's file as a data URL.

    Raises:
        ImageError: It cannot be used.
    """
    content = read_bytes(path)
    decode_image(content, str(path))  # refuses what no server should get
    kind = read_image_header(content, str(path))[0].lower()
    return encode_data_url(content, kind)
