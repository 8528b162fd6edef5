"""A server's life: it loads, answers, drains and ends; what all requests share is here."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeVar

from caldera.chat.api.errors import ApiError, unavailable
from caldera.chat.api.json_body import Bodies
from caldera.chat.api.keys import KeyLimits, Keys
from caldera.chat.api.metrics import Metrics
from caldera.chat.api.settings import ServerSettings
from caldera.chat.media import Media
from caldera.errors import CalderaError
from caldera.inference.engine import Engine, EngineStats

State = Literal["loading", "ready", "draining"]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_LAST_SECONDS = 3.0
"""For answers that were cut to tell it."""


class ClientGone(Exception):  # noqa: N818 - nothing is wrong
    """The client went away before its answer was whole."""


class Service:
    """One model behind one address."""

    def __init__(self, settings: ServerSettings) -> None:
        """Prepare; nothing is answered before `begin`."""
        self.settings = settings
        self.state: State = "loading"
        self.failure: CalderaError | None = None
        """Why the model could not be loaded."""
        self.metrics = Metrics(self._stats)
        self.media = Media(settings.media, took=self.metrics.decoding.observe)
        self.keys = Keys(settings.keys)
        self.key_limits = KeyLimits(settings.limits)
        self.bodies = Bodies(settings.limits)
        self.under_way = 0
        """Requests that are not wholly answered."""
        self.ended = asyncio.Event()
        self._cut = asyncio.Event()
        self._engine: Engine | None = None
        self._draining: asyncio.Task[None] | None = None

    @property
    def engine(self) -> Engine:
        """The engine, while requests are taken.

        Raises:
            ApiError: The model is still loaded, or the server is about to end.
        """
        if self.state == "draining":
            raise unavailable("the server is shutting down", "shutting_down")
        if self._engine is None:
            raise unavailable("the model is still being loaded; try again", "loading")
        return self._engine

    def begin(self, load: Callable[[], Engine]) -> None:
        """Load the model on a thread of its own, and take requests from then on."""
        loop = asyncio.get_running_loop()

        def loading() -> None:
            try:
                engine = load()
            except CalderaError as error:
                loop.call_soon_threadsafe(self._fail, error)
            else:
                loop.call_soon_threadsafe(self._open, engine)

        threading.Thread(target=loading, name="caldera loading", daemon=True).start()

    def end(self) -> None:
        """Drain: refuse new requests and let those under way finish; told again, cut them at once."""
        if self._draining is None:
            self.state = "draining"
            _log.info("draining", extra={"under_way": self.under_way})
            self._draining = asyncio.create_task(self._drain())
        else:
            self._cut.set()

    async def close(self) -> bool:
        """Free what is held; return whether the model's threads are at their end."""
        await self.media.close()
        if self._engine is not None:
            self._engine.close()
        return self._engine is not None or self.failure is not None

    async def unless_ended(
        self, work: Coroutine[Any, Any, _Result], gone: Callable[[], Awaitable[object]]
    ) -> _Result:
        """Do some work of a request, until its client goes away, the drain is over or its time is up.

        Raises:
            ClientGone: The client went away.
            ApiError: The server ends, or it took too long.
        """
        doing = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(gone())
        cutting = asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait(
                {doing, leaving, cutting},
                timeout=self.settings.limits.answer_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if doing.done():
                return doing.result()
            if leaving.done():
                raise ClientGone
            raise self.why_cut()
        finally:
            for task in (doing, leaving, cutting):
                task.cancel()
            await asyncio.gather(doing, leaving, cutting, return_exceptions=True)

    def why_cut(self) -> ApiError:
        """Say why an answer ends before its time."""
        if self._cut.is_set():
            return unavailable("the server is shutting down", "shutting_down")
        return unavailable("the answer took too long; ask for a shorter one", "timeout")

    async def until_cut(self) -> None:
        """Wait until answers are cut."""
        await self._cut.wait()

    def _stats(self) -> EngineStats | None:
        return None if self._engine is None else self._engine.stats()

    def _open(self, engine: Engine) -> None:
        self._engine = engine
        if self.state == "loading":
            self.state = "ready"
            _log.info("ready", extra={"model": self.settings.name})

    def _fail(self, error: CalderaError) -> None:
        self.failure = error
        self.ended.set()

    async def _drain(self) -> None:
        """Wait for requests under way, then cut those that are left, then end."""
        await self._quiet(self.settings.limits.drain_seconds, self._cut)
        self._cut.set()
        await self._quiet(_LAST_SECONDS, None)
        self.ended.set()

    async def _quiet(self, seconds: float, earlier: asyncio.Event | None) -> None:
        """Wait until nothing is under way, for some seconds, or until something happens earlier."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.under_way and loop.time() < end and not (earlier and earlier.is_set()):
            await asyncio.sleep(0.02)
