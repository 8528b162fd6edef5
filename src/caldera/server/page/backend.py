"""Backend of the page: streams the answers of one or two models to a browser, and computes attention maps."""

import asyncio
import base64
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from PIL import Image

from caldera.errors import CalderaError, ConversationError
from caldera.images.data_urls import image_to_data_url
from caldera.inference.engine import Engine, Request, SamplingParams
from caldera.inference.prompts import ProcessedImage
from caldera.server.api.errors import ApiError, bad_request, from_media_error, internal_error
from caldera.server.api.generation import AsyncAnswerStreams, from_engine_error
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
"""Seconds between updates of a browser, so that not every token is an update."""

_MAX_STORED_BYTES = 1 << 20
_MAX_STORED_SIDE = 2048
"""The browser stores an image as its file if it is not larger, else as a JPEG of this length in pixels."""

_HEATMAP_CELLS = 36
"""Cells of a heatmap along the longer side of the image."""

State = Literal["waiting", "writing", "stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class PageModel:
    """A model of the page."""

    name: str
    engine: Callable[[], Engine]
    """Raises an ApiError while no requests are accepted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """Sampling settings that the user chooses."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(slots=True)
class _AnswerState:
    """An answer in progress; its fields are sent to the browser."""

    text: str = ""
    state: State = "waiting"
    error: dict[str, Any] | None = None

    def fail(self, error: ApiError) -> None:
        """Set the error."""
        self.state, self.error = "error", _error_payload(error)


@dataclass(slots=True)
class _PendingQuestion:
    """A question that is being answered."""

    streams: list[AsyncAnswerStreams] = field(default_factory=list)
    stopped: bool = False

    def stop(self) -> None:
        """Stop all answers."""
        self.stopped = True
        for streams in self.streams:
            streams.cancel()


class PageBackend:
    """Functions that the browser calls."""

    def __init__(self, service: Service, models: Sequence[PageModel]) -> None:
        """Answer with `models`, within the limits of `service`."""
        self.models = models
        self._service = service
        self._pending: dict[str, _PendingQuestion] = {}

    async def ask(self, payload: object, options: SamplingOptions) -> AsyncIterator[dict[str, Any]]:
        """Yield the states of the answers to the last question until all have ended; closing stops them."""
        answers = [_AnswerState() for _ in self.models]
        question = _PendingQuestion()
        try:
            conversation = parse_payload(payload)
        except ApiError as error:
            for answer in answers:
                answer.fail(error)
            yield {"id": "", "answers": list(map(asdict, answers))}
            return
        self._pending[conversation.id] = question
        self._service.num_active += 1
        try:
            tasks = [
                asyncio.create_task(self._answer(model, conversation, options, question, answer))
                for model, answer in enumerate(answers)
            ]
            while True:
                ended = all(task.done() for task in tasks)
                yield {"id": conversation.id, "answers": list(map(asdict, answers))}
                if ended:
                    return
                await asyncio.wait(tasks, timeout=_UPDATE_INTERVAL)
        finally:
            self._service.num_active -= 1
            del self._pending[conversation.id]
            question.stop()

    def stop(self, payload: object) -> None:
        """Stop the answers to a question; their text so far remains."""
        question_id = payload.get("id") if isinstance(payload, dict) else None
        if isinstance(question_id, str) and (question := self._pending.get(question_id)):
            question.stop()

    async def _answer(
        self,
        model: int,
        payload: ConversationPayload,
        options: SamplingOptions,
        question: _PendingQuestion,
        answer: _AnswerState,
    ) -> None:
        """Update `answer` until one model has answered or failed."""
        streams = None
        try:
            engine = self.models[model].engine()
            view = conversation_of(model, payload, labeled=engine.labels_images)
            request = await self._request(engine, view, options)
            streams = AsyncAnswerStreams(engine, [request])
            question.streams.append(streams)
            if question.stopped:
                streams.cancel()
            await self._service.run_cancellable(
                self._follow(streams, answer), asyncio.Event().wait()
            )
        except ApiError as error:
            answer.fail(error)
        except Exception as error:  # noqa: BLE001 - the browser gets an error without the text of the bug
            _log.error("exception", extra={"kind": type(error).__name__, "where": "page"})
            answer.fail(internal_error())
        finally:
            if streams is not None and answer.state == "error":
                streams.cancel()

    async def _follow(self, streams: AsyncAnswerStreams, answer: _AnswerState) -> None:
        """Append the text of a stream to `answer` until its end."""
        async for events in streams.events(60.0):
            for _, delta in events:
                if delta is not None:
                    answer.text += delta.text
                    answer.state = "writing"
        reason = streams.choices[0].finish_reason
        assert reason is not None
        answer.state = reason

    async def _request(self, engine: Engine, view: ModelView, options: SamplingOptions) -> Request:
        """Return the request to an engine; raise ApiError if an image is rejected or the conversation is too long."""
        images = await self._load_images(view, engine)
        try:
            prompt = await asyncio.to_thread(engine.build_prompt, view.conversation, images)
        except ConversationError as error:
            raise bad_request(str(error)) from None
        max_tokens = options.max_tokens
        if engine.context_length is not None:
            max_tokens = min(max_tokens, engine.context_length - len(prompt.ids))
        if max_tokens < 1:
            raise bad_request(
                f"the conversation is {len(prompt.ids)} tokens long, but the model's context is "
                f"{engine.context_length}; start a new conversation",
                code="context_length_exceeded",
            )
        sampling = SamplingParams(
            temperature=options.temperature,
            top_p=options.top_p,
            max_new_tokens=max_tokens,
            seed=random.getrandbits(62),
        )
        return Request(prompt, sampling)

    async def _load_images(self, view: ModelView, engine: Engine) -> list[ProcessedImage]:
        """Return the images of a conversation; raise ApiError if there are too many or one is rejected."""
        max_images = self._service.config.limits.images
        if len(view.urls) > max_images:
            raise bad_request(
                f"a conversation may contain at most {max_images} images; start a new conversation",
                code="too_many_images",
            )
        try:
            prepare = partial(engine.prepare_image, several=len(view.urls) > 1)
            return await self._service.media.load_all(view.urls, prepare)
        except MediaError as error:
            raise from_media_error(error) from None

    async def check_image(self, url: object) -> dict[str, Any]:
        """Return the `url` of an image for the browser to store, or `error`."""
        if not isinstance(url, str) or not url.startswith("data:"):
            error = bad_request("an image must be a data URL", code="invalid_image_url")
            return {"error": _error_payload(error)}
        media = self._service.media
        try:
            content = read_data_url(url, self._service.config.media.max_bytes)
            is_small = len(content) <= _MAX_STORED_BYTES
            [stored_url] = await media.load_all([url], (lambda _: url) if is_small else _shrink)
        except MediaError as error:
            return {"error": _error_payload(from_media_error(error))}
        return {"url": stored_url}

    async def attention_maps(self, payload: object) -> dict[str, Any]:
        """Return the words and heatmaps of one model's answer to the last question, or `error`.

        Args:
            payload: The `conversation`, and the index of the `model`.
        """
        fields = payload if isinstance(payload, dict) else {}
        model = fields.get("model")
        try:
            if not isinstance(model, int) or model not in range(len(self.models)):
                raise bad_request("there is no such model on this page")
            conversation = parse_payload(fields.get("conversation"))
            engine = self.models[model].engine()
            view = conversation_of(model, conversation, labeled=engine.labels_images)
            images = await self._load_images(view, engine)
            return await asyncio.to_thread(_attention_payload, engine, view, images)
        except ApiError as error:
            return {"error": _error_payload(error)}
        except CalderaError as error:
            return {"error": _error_payload(from_engine_error(error))}

    async def download(self, payload: object) -> dict[str, Any]:
        """Return the conversation as a ZIP file in base64, in `zip`; or `error`."""
        try:
            content = await asyncio.to_thread(download, parse_payload(payload), len(self.models))
        except ApiError as error:
            return {"error": _error_payload(error)}
        except MediaError as error:
            return {"error": _error_payload(from_media_error(error))}
        return {"zip": base64.b64encode(content).decode()}


def _error_payload(error: ApiError) -> dict[str, Any]:
    return {"code": error.code, "text": error.message}


def _shrink(image: Image.Image) -> str:
    """Return an image as a smaller data URL."""
    small = image.copy()
    small.thumbnail((_MAX_STORED_SIDE, _MAX_STORED_SIDE))
    return image_to_data_url(small, "jpeg", quality=92)


def _attention_payload(
    engine: Engine, view: ModelView, images: Sequence[ProcessedImage]
) -> dict[str, Any]:
    """Return the words of an answer, and a heatmap per word for each image."""
    maps = engine.attention_maps(view.conversation, view.answer, images)
    image_payloads = []
    for image, image_map in zip(images, maps.images, strict=True):
        columns, rows = (
            max(1, round(_HEATMAP_CELLS * length / max(image.size))) for length in image.size
        )
        weights = image_map.heatmap((columns, rows))  # (words, rows, columns)
        levels = (weights / weights.amax().clamp(min=1e-12) * 255).round().byte()
        image_payloads.append(
            {
                "columns": columns,
                "rows": rows,
                "attention_fraction": image_map.attention_fraction,
                "heatmaps": base64.b64encode(levels.numpy().tobytes()).decode(),
            }
        )
    return {"words": [word.text for word in maps.words], "images": image_payloads}
