"""A server's life: it loads, answers, drains and ends; what all requests share is here."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeVar

from caldera.errors import CalderaError
from caldera.inference.engine import Engine, EngineStats
from caldera.server.api.api_keys import ApiKeys, KeyRateLimiter
from caldera.server.api.config import ServerConfig
from caldera.server.api.errors import ApiError, service_unavailable
from caldera.server.api.metrics import Metrics
from caldera.server.api.request_body import BodyReader
from caldera.server.media.loader import ImageLoader

State = Literal["loading", "ready", "draining"]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_LAST_SECONDS = 3.0
"""For answers that were cut to tell it."""


class ClientDisconnected(Exception):  # noqa: N818 - nothing is wrong
    """The client went away before its answer was whole."""


class Service:
    """One model behind one address."""

    def __init__(self, settings: ServerConfig) -> None:
        """Prepare; nothing is answered before `begin`."""
        self.settings = settings
        self.state: State = "loading"
        self.failure: CalderaError | None = None
        """Why the model could not be loaded."""
        self.metrics = Metrics(self._stats)
        self.media = ImageLoader(settings.media, on_decode_time=self.metrics.decoding.observe)
        self.keys = ApiKeys(settings.keys)
        self.key_limits = KeyRateLimiter(settings.limits)
        self.bodies = BodyReader(settings.limits)
        self.num_active = 0
        """Requests that are not wholly answered."""
        self.ended = asyncio.Event()
        self._cancel = asyncio.Event()
        self._engine: Engine | None = None
        self._draining: asyncio.Task[None] | None = None

    @property
    def engine(self) -> Engine:
        """The engine, while requests are taken.

        Raises:
            ApiError: The model is still loaded, or the server is about to end.
        """
        if self.state == "draining":
            raise service_unavailable("the server is shutting down", "shutting_down")
        if self._engine is None:
            raise service_unavailable("the model is still being loaded; try again", "loading")
        return self._engine

    def start(self, load: Callable[[], Engine]) -> None:
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

    def shutdown(self) -> None:
        """Drain: refuse new requests and let those under way finish; told again, cut them at once."""
        if self._draining is None:
            self.state = "draining"
            _log.info("draining", extra={"under_way": self.num_active})
            self._draining = asyncio.create_task(self._drain())
        else:
            self._cancel.set()

    async def close(self) -> bool:
        """Free what is held; return whether the model's threads are at their end."""
        await self.media.close()
        if self._engine is not None:
            self._engine.close()
        return self._engine is not None or self.failure is not None

    async def run_cancellable(
        self, work: Coroutine[Any, Any, _Result], gone: Callable[[], Awaitable[object]]
    ) -> _Result:
        """Do some work of a request, until its client goes away, the drain is over or its time is up.

        Raises:
            ClientGone: The client went away.
            ApiError: The server ends, or it took too long.
        """
        doing = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(gone())
        cutting = asyncio.ensure_future(self._cancel.wait())
        try:
            await asyncio.wait(
                {doing, leaving, cutting},
                timeout=self.settings.limits.answer_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if doing.done():
                return doing.result()
            if leaving.done():
                raise ClientDisconnected
            raise self.cancel_reason()
        finally:
            for task in (doing, leaving, cutting):
                task.cancel()
            await asyncio.gather(doing, leaving, cutting, return_exceptions=True)

    def cancel_reason(self) -> ApiError:
        """Say why an answer ends before its time."""
        if self._cancel.is_set():
            return service_unavailable("the server is shutting down", "shutting_down")
        return service_unavailable("the answer took too long; ask for a shorter one", "timeout")

    async def until_cut(self) -> None:
        """Wait until answers are cut."""
        await self._cancel.wait()

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
        await self._wait_idle(self.settings.limits.drain_timeout, self._cancel)
        self._cancel.set()
        await self._wait_idle(_LAST_SECONDS, None)
        self.ended.set()

    async def _wait_idle(self, seconds: float, earlier: asyncio.Event | None) -> None:
        """Wait until nothing is under way, for some seconds, or until something happens earlier."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.num_active and loop.time() < end and not (earlier and earlier.is_set()):
            await asyncio.sleep(0.02)
