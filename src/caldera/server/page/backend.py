"""A conversation from the browser in, news of its answers out: one or two models, asked side by side."""

import asyncio
import base64
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from caldera.errors import CalderaError, ConversationError
from caldera.images.anyres import Size
from caldera.images.data_urls import image_to_data_url
from caldera.inference.engine import Engine, Request, SamplingParams
from caldera.inference.prompts import ProcessedImage
from caldera.server.api.errors import ApiError, bad_request, from_media_error, internal_error
from caldera.server.api.generation import CompletionStreams, from_engine_error
from caldera.server.api.service import Service
from caldera.server.media.errors import MediaError
from caldera.server.media.loader import read_data_url
from caldera.server.page.schemas import (
    ConversationPayload,
    ModelView,
    conversation_of,
    download,
    parse_payload,
)

_log = logging.getLogger(__name__)

_UPDATE_INTERVAL = 0.04
"""Seconds between news, so that a browser is not told of every single letter."""

_KEPT_BYTES = 1 << 20
_KEPT_SIDE = 2048
"""What the browser keeps of an image: its file if it is not larger, else a JPEG of at most so many pixels a side. The
towers look at a few hundred."""

_HEATMAP_CELLS = 36
"""Of a heat map, along the image's longer side."""

State = Literal["waiting", "writing", "stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class PageModel:
    """One that answers on the page."""

    name: str
    engine: Callable[[], Engine]
    """Raises an ApiError while it takes no requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """How answers are to be."""

    temperature: float
    top_p: float
    longest: int


@dataclass(slots=True)
class _AnswerState:
    """An answer so far."""

    text: str = ""
    state: State = "waiting"
    error: dict[str, Any] | None = None

    def fail(self, error: ApiError) -> None:
        """Take note of what went wrong."""
        self.state, self.error = "error", {"code": error.code, "text": error.message}

    def payload(self) -> dict[str, Any]:
        """Return it as the browser takes it."""
        return {"text": self.text, "state": self.state, "error": self.error}


@dataclass(slots=True)
class _PendingQuestion:
    """A question while it is answered."""

    answers: list[CompletionStreams] = field(default_factory=list)
    stopped: bool = False


class PageBackend:
    """Answers what browsers ask."""

    def __init__(self, service: Service, models: Sequence[PageModel]) -> None:
        """Answer with `models`, as `service` allows."""
        self.models = models
        self._service = service
        self._asked: dict[str, _PendingQuestion] = {}

    async def ask(self, told: object, wishes: SamplingOptions) -> AsyncIterator[dict[str, Any]]:
        """Yield how far the answers to the last question are, until all have ended; leaving stops them."""
        news = [_AnswerState() for _ in self.models]
        asked = _PendingQuestion()
        try:
            sent = parse_payload(told)
        except ApiError as error:
            yield {
                "id": "",
                "answers": [{"text": "", "state": "error", "error": error.body["error"]}],
            }
            return
        self._asked[sent.id] = asked
        self._service.num_active += 1
        try:
            tasks = [
                asyncio.create_task(self._answer(model, sent, wishes, asked, news[model]))
                for model in range(len(self.models))
            ]
            while True:
                ended = all(task.done() for task in tasks)
                yield {"id": sent.id, "answers": [one.payload() for one in news]}
                if ended:
                    return
                await asyncio.wait(tasks, timeout=_UPDATE_INTERVAL)
        finally:
            self._service.num_active -= 1
            del self._asked[sent.id]
            self._stop(asked)

    def stop(self, told: object) -> None:
        """Stop the answers to a question; what was said stays."""
        identity = told.get("id") if isinstance(told, dict) else None
        if isinstance(identity, str) and (asked := self._asked.get(identity)):
            self._stop(asked)

    def _stop(self, asked: _PendingQuestion) -> None:
        asked.stopped = True
        for answers in asked.answers:
            answers.cancel()

    async def _answer(
        self,
        model: int,
        sent: ConversationPayload,
        wishes: SamplingOptions,
        asked: _PendingQuestion,
        news: _AnswerState,
    ) -> None:
        """Have one model answer, and keep its news up to date; faults are part of them."""
        try:
            engine = self.models[model].engine()
            request = await self._request(engine, conversation_of(model, sent), wishes)
            answers = CompletionStreams(engine, [request])
            asked.answers.append(answers)
            if asked.stopped:
                answers.cancel()
            await self._service.run_cancellable(
                self._follow(answers, news), lambda: asyncio.Event().wait()
            )
        except ApiError as error:
            news.fail(error)
        except Exception as error:  # noqa: BLE001 - the browser must be told, and never of its text
            _log.error("fault", extra={"kind": type(error).__name__, "where": "web"})
            news.fail(internal_error())
        finally:
            for answers in asked.answers:
                if news.state == "error":
                    answers.cancel()

    async def _follow(self, answers: CompletionStreams, news: _AnswerState) -> None:
        """Take up what an answer says until its end.

        Raises:
            ApiError: It failed.
        """
        async for said in answers.events(60.0):
            for _, piece in said:
                if piece is not None:
                    news.text += piece.text
                    news.state = "writing"
        reason = answers.choices[0].finish_reason
        assert reason is not None
        news.state = reason

    async def _request(self, engine: Engine, heard: ModelView, wishes: SamplingOptions) -> Request:
        """Return what the engine is asked.

        Raises:
            ApiError: An image is refused, or the conversation is too long.
        """
        seen = await self._images(heard, engine)
        try:
            prompt = await asyncio.to_thread(engine.build_prompt, heard.conversation, seen)
        except ConversationError as error:
            raise bad_request(str(error)) from None
        room = engine.context_length
        left = wishes.longest if room is None else min(wishes.longest, room - len(prompt.ids))
        if left < 1:
            raise bad_request(
                f"the conversation is {len(prompt.ids)} tokens long, but the model has room for {room}",
                code="context_length_exceeded",
            )
        sampling = SamplingParams(
            temperature=wishes.temperature,
            top_p=wishes.top_p,
            max_new_tokens=left,
            seed=random.getrandbits(62),
        )
        return Request(prompt, sampling)

    async def _images(self, heard: ModelView, engine: Engine) -> list[ProcessedImage]:
        """Return a conversation's images.

        Raises:
            ApiError: There are too many, or one is refused.
        """
        most = self._service.settings.limits.images
        if len(heard.urls) > most:
            raise bad_request(
                f"at most {most} images may be shown in one conversation", code="too_many_images"
            )
        try:
            return await self._service.media.load_all(heard.urls, engine.prepare_image)
        except MediaError as error:
            raise from_media_error(error) from None

    async def check_image(self, url: object) -> dict[str, Any]:
        """Return an image as the browser is to keep it: `url`, or `error`."""
        if not isinstance(url, str) or not url.startswith("data:"):
            return _told(bad_request("an image must come as a data URL", code="invalid_image_url"))
        try:
            content = read_data_url(url, self._service.settings.media.max_bytes)
            [kept] = await self._service.media.load_all(
                [url], _shrink if len(content) > _KEPT_BYTES else lambda image: url
            )
        except MediaError as error:
            return _told(from_media_error(error))
        return {"url": kept}

    async def attention_maps(self, told: object) -> dict[str, Any]:
        """Return what one model's answer to the last question attended to, for the browser to draw; or `error`.

        Args:
            told: The conversation, and the number of the model.
        """
        given = told if isinstance(told, dict) else {}
        model = given.get("model")
        try:
            if not isinstance(model, int) or model not in range(len(self.models)):
                raise bad_request("there is no such model on this page")
            heard = conversation_of(model, parse_payload(given.get("sent")))
            engine = self.models[model].engine()
            seen = await self._images(heard, engine)
            return await asyncio.to_thread(_attention_payload, engine, heard, seen)
        except ApiError as error:
            return _told(error)
        except CalderaError as error:
            return _told(from_engine_error(error))

    async def download(self, told: object) -> dict[str, Any]:
        """Return the conversation as a ZIP file in base64, in `zip`; or `error`."""
        try:
            content = await asyncio.to_thread(download, parse_payload(told), len(self.models))
        except ApiError as error:
            return _told(error)
        except MediaError as error:
            return _told(from_media_error(error))
        return {"zip": base64.b64encode(content).decode()}


def _told(error: ApiError) -> dict[str, Any]:
    """Return an error as the browser takes it."""
    return {"error": {"code": error.code, "text": error.message}}


def _shrink(image: Image.Image) -> str:
    """Return an image as a smaller data URL."""
    small = image.copy()
    small.thumbnail((_KEPT_SIDE, _KEPT_SIDE))
    return image_to_data_url(small, "jpeg", quality=92)


def _attention_payload(
    engine: Engine, heard: ModelView, seen: Sequence[ProcessedImage]
) -> dict[str, Any]:
    """Return words, and for each image a heat map of each word.

    Raises:
        CalderaError: The model does not tell, or not now.
    """
    looks = engine.attention_maps(heard.conversation, heard.answer, seen)
    images = []
    for image, found in zip(seen, looks.images, strict=True):
        columns, rows = _grid(image.size)
        spread = found.heatmap((columns, rows))  # (words, rows, columns)
        steps = (spread / spread.amax().clamp(min=1e-12) * 255).round().byte()
        encoded = base64.b64encode(steps.numpy().tobytes()).decode()
        images.append(
            {"columns": columns, "rows": rows, "share": found.attention_fraction, "heat": encoded}
        )
    return {"words": [word.text for word in looks.words], "images": images}


def _grid(size: Size) -> Size:
    """Return columns and rows of an image's heat map."""
    columns, rows = (max(1, round(_HEATMAP_CELLS * length / max(size))) for length in size)
    return columns, rows
