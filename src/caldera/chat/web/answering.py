"""A conversation from the browser in, news of its answers out: one or two models, asked side by side."""

import asyncio
import base64
import io
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from caldera.batches.anyres import Size
from caldera.chat.api.answers import Answers, of_engine
from caldera.chat.api.errors import ApiError, internal, of_media, refused
from caldera.chat.api.service import Service
from caldera.chat.data_urls import data_url, read_data_url
from caldera.chat.media_faults import MediaError
from caldera.chat.web.sent import Heard, Sent, download, heard_by, read_sent
from caldera.errors import CalderaError, RecordError
from caldera.inference.engine import Engine, Request, Sampling
from caldera.inference.prompts import PreparedPicture

_log = logging.getLogger(__name__)

_PAUSE = 0.04
"""Seconds between news, so that a browser is not told of every single letter."""

_KEPT_BYTES = 1 << 20
_KEPT_SIDE = 2048
"""What the browser keeps of a picture: its file if it is not larger, else a JPEG of at most so many pixels a side. The
towers look at a few hundred."""

_HEAT_CELLS = 36
"""Of a heat map, along the picture's longer side."""

State = Literal["waiting", "writing", "stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Model:
    """One that answers on the page."""

    name: str
    engine: Callable[[], Engine]
    """Raises an ApiError while it takes no requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """How answers are to be."""

    temperature: float
    top_p: float
    longest: int


@dataclass(slots=True)
class _News:
    """An answer so far."""

    text: str = ""
    state: State = "waiting"
    error: dict[str, Any] | None = None

    def fail(self, error: ApiError) -> None:
        """Take note of what went wrong."""
        self.state, self.error = "error", {"code": error.code, "text": error.message}

    def told(self) -> dict[str, Any]:
        """Return it as the browser takes it."""
        return {"text": self.text, "state": self.state, "error": self.error}


@dataclass(slots=True)
class _Asked:
    """A question while it is answered."""

    answers: list[Answers] = field(default_factory=list)
    stopped: bool = False


class WebAnswerer:
    """Answers what browsers ask."""

    def __init__(self, service: Service, models: Sequence[Model]) -> None:
        """Answer with `models`, as `service` allows."""
        self.models = models
        self._service = service
        self._asked: dict[str, _Asked] = {}

    async def ask(self, told: object, wishes: Wishes) -> AsyncIterator[dict[str, Any]]:
        """Yield how far the answers to the last question are, until all have ended; leaving stops them."""
        news = [_News() for _ in self.models]
        asked = _Asked()
        try:
            sent = read_sent(told)
        except ApiError as error:
            yield {
                "id": "",
                "answers": [{"text": "", "state": "error", "error": error.body["error"]}],
            }
            return
        self._asked[sent.id] = asked
        self._service.under_way += 1
        try:
            tasks = [
                asyncio.create_task(self._answer(model, sent, wishes, asked, news[model]))
                for model in range(len(self.models))
            ]
            while True:
                ended = all(task.done() for task in tasks)
                yield {"id": sent.id, "answers": [one.told() for one in news]}
                if ended:
                    return
                await asyncio.wait(tasks, timeout=_PAUSE)
        finally:
            self._service.under_way -= 1
            del self._asked[sent.id]
            self._stop(asked)

    def stop(self, told: object) -> None:
        """Stop the answers to a question; what was said stays."""
        identity = told.get("id") if isinstance(told, dict) else None
        if isinstance(identity, str) and (asked := self._asked.get(identity)):
            self._stop(asked)

    def _stop(self, asked: _Asked) -> None:
        asked.stopped = True
        for answers in asked.answers:
            answers.cancel()

    async def _answer(
        self, model: int, sent: Sent, wishes: Wishes, asked: _Asked, news: _News
    ) -> None:
        """Have one model answer, and keep its news up to date; faults are part of them."""
        try:
            engine = self.models[model].engine()
            request = await self._request(engine, heard_by(model, sent), wishes)
            answers = Answers(engine, [request])
            asked.answers.append(answers)
            if asked.stopped:
                answers.cancel()
            await self._service.unless_ended(
                self._follow(answers, news), lambda: asyncio.Event().wait()
            )
        except ApiError as error:
            news.fail(error)
        except Exception as error:  # noqa: BLE001 - the browser must be told, and never of its text
            _log.error("fault", extra={"kind": type(error).__name__, "where": "web"})
            news.fail(internal())
        finally:
            for answers in asked.answers:
                if news.state == "error":
                    answers.cancel()

    async def _follow(self, answers: Answers, news: _News) -> None:
        """Take up what an answer says until its end.

        Raises:
            ApiError: It failed.
        """
        async for said in answers.said(60.0):
            for _, piece in said:
                if piece is not None:
                    news.text += piece.text
                    news.state = "writing"
        reason = answers.choices[0].finish_reason
        assert reason is not None
        news.state = reason

    async def _request(self, engine: Engine, heard: Heard, wishes: Wishes) -> Request:
        """Return what the engine is asked.

        Raises:
            ApiError: A picture is refused, or the conversation is too long.
        """
        seen = await self._pictures(heard, engine)
        try:
            prompt = await asyncio.to_thread(engine.prompt, heard.conversation, seen)
        except RecordError as error:
            raise refused(str(error)) from None
        room = engine.context_length
        left = wishes.longest if room is None else min(wishes.longest, room - len(prompt.ids))
        if left < 1:
            raise refused(
                f"the conversation is {len(prompt.ids)} tokens long, but the model has room for {room}",
                code="context_length_exceeded",
            )
        sampling = Sampling(
            temperature=wishes.temperature,
            top_p=wishes.top_p,
            max_new_tokens=left,
            seed=random.getrandbits(62),
        )
        return Request(prompt, sampling)

    async def _pictures(self, heard: Heard, engine: Engine) -> list[PreparedPicture]:
        """Return a conversation's pictures.

        Raises:
            ApiError: There are too many, or one is refused.
        """
        most = self._service.settings.limits.images
        if len(heard.urls) > most:
            raise refused(
                f"at most {most} pictures may be shown in one conversation", code="too_many_images"
            )
        try:
            return await self._service.media.pictures(heard.urls, engine.picture)
        except MediaError as error:
            raise of_media(error) from None

    async def check_picture(self, url: object) -> dict[str, Any]:
        """Return a picture as the browser is to keep it: `url`, or `error`."""
        if not isinstance(url, str) or not url.startswith("data:"):
            return _told(refused("a picture must come as a data URL", code="invalid_image_url"))
        try:
            content = read_data_url(url, self._service.settings.media.max_bytes)
            [kept] = await self._service.media.pictures(
                [url], _kept if len(content) > _KEPT_BYTES else lambda picture: url
            )
        except MediaError as error:
            return _told(of_media(error))
        return {"url": kept}

    async def looked(self, told: object) -> dict[str, Any]:
        """Return what one model's answer to the last question attended to, for the browser to draw; or `error`.

        Args:
            told: The conversation, and the number of the model.
        """
        given = told if isinstance(told, dict) else {}
        model = given.get("model")
        try:
            if not isinstance(model, int) or model not in range(len(self.models)):
                raise refused("there is no such model on this page")
            heard = heard_by(model, read_sent(given.get("sent")))
            engine = self.models[model].engine()
            seen = await self._pictures(heard, engine)
            return await asyncio.to_thread(_looks, engine, heard, seen)
        except ApiError as error:
            return _told(error)
        except CalderaError as error:
            return _told(of_engine(error))

    async def download(self, told: object) -> dict[str, Any]:
        """Return the conversation as a ZIP file in base64, in `zip`; or `error`."""
        try:
            content = await asyncio.to_thread(download, read_sent(told), len(self.models))
        except ApiError as error:
            return _told(error)
        except MediaError as error:
            return _told(of_media(error))
        return {"zip": base64.b64encode(content).decode()}


def _told(error: ApiError) -> dict[str, Any]:
    """Return an error as the browser takes it."""
    return {"error": {"code": error.code, "text": error.message}}


def _kept(picture: Image.Image) -> str:
    """Return a picture as a smaller data URL."""
    small = picture.copy()
    small.thumbnail((_KEPT_SIDE, _KEPT_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=92)
    return data_url(buffer.getvalue(), "jpeg")


def _looks(engine: Engine, heard: Heard, seen: Sequence[PreparedPicture]) -> dict[str, Any]:
    """Return words, and for each picture a heat map of each word.

    Raises:
        CalderaError: The model does not tell, or not now.
    """
    looks = engine.looks(heard.conversation, heard.answer, seen)
    pictures = []
    for picture, found in zip(seen, looks.pictures, strict=True):
        columns, rows = _grid(picture.size)
        spread = found.heat((columns, rows))  # (words, rows, columns)
        steps = (spread / spread.amax().clamp(min=1e-12) * 255).round().byte()
        encoded = base64.b64encode(steps.numpy().tobytes()).decode()
        pictures.append({"columns": columns, "rows": rows, "share": found.share, "heat": encoded})
    return {"words": [word.text for word in looks.words], "pictures": pictures}


def _grid(size: Size) -> Size:
    """Return columns and rows of a picture's heat map."""
    columns, rows = (max(1, round(_HEAT_CELLS * length / max(size))) for length in size)
    return columns, rows
