"""Server state that all requests share: the engine, its life cycle, keys, limits and metrics."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, TypeVar

from caldera.errors import CalderaError
from caldera.inference.engine import Engine, EngineStats
from caldera.server.api.api_keys import ApiKeys, KeyRateLimiter
from caldera.server.api.config import ServerConfig
from caldera.server.api.errors import ApiError, service_unavailable
from caldera.server.api.metrics import Metrics
from caldera.server.api.request_body import BodyReader
from caldera.server.media.loader import ImageLoader

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_ERROR_SECONDS = 3.0
"""Time for cancelled requests to send their error."""


class ServiceState(Enum):
    """Stage of a server's life.

        STARTING ── model loaded ──> READY
            │                          │
            ├────── shutdown() ────────┤
            │                          v
            │                      DRAINING
            │                          │
       loading failed     all requests ended, or timed out
            │                          │
            └───────────> CLOSED <─────┘

    Requests are accepted in READY alone; in every other state they get status 503.
    """

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"


class ClientDisconnected(Exception):  # noqa: N818 - not an error
    """The client disconnected before its answer was complete."""


class Service:
    """One model behind one address."""

    def __init__(self, config: ServerConfig) -> None:
        """Create a service in the state STARTING; `start` loads its model."""
        self.config = config
        self.state = ServiceState.STARTING
        self.failure: CalderaError | None = None
        """Error that the model could not be loaded for."""
        self.metrics = Metrics(self._stats)
        self.media = ImageLoader(config.media, on_decode_time=self.metrics.image_decode.observe)
        self.keys = ApiKeys(config.keys)
        self.key_limits = KeyRateLimiter(config.limits)
        self.bodies = BodyReader(config.limits)
        self.num_active = 0
        """Requests whose response is not complete."""
        self.closed = asyncio.Event()
        """Set in the state CLOSED."""
        self._cancel = asyncio.Event()
        """Set when the requests that still run are cancelled."""
        self._engine: Engine | None = None
        self._draining: asyncio.Task[None] | None = None

    @property
    def engine(self) -> Engine:
        """The engine; in any other state than READY an ApiError is raised."""
        if self.state is ServiceState.STARTING:
            raise service_unavailable("the model is still being loaded; try again", "loading")
        if self.state is not ServiceState.READY:
            raise _shutdown_error()
        assert self._engine is not None
        return self._engine

    def start(self, load: Callable[[], Engine]) -> None:
        """Call `load` on a thread of its own: STARTING -> READY, or CLOSED if it fails."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                engine = load()
            except CalderaError as error:
                loop.call_soon_threadsafe(self._loading_failed, error)
            else:
                loop.call_soon_threadsafe(self._loaded, engine)

        threading.Thread(target=run, name="caldera loading", daemon=True).start()

    def shutdown(self) -> None:
        """Begin to drain: STARTING, READY -> DRAINING; a second call cancels the running requests."""
        if self._draining is None:
            self.state = ServiceState.DRAINING
            _log.info("draining", extra={"active_requests": self.num_active})
            self._draining = asyncio.create_task(self._drain())
        else:
            self._cancel.set()

    async def close(self) -> bool:
        """Release the decoders and the engine; return False if the model is still being loaded."""
        await self.media.close()
        if self._engine is not None:
            self._engine.close()
        return self._engine is not None or self.failure is not None

    async def run_cancellable(
        self, work: Coroutine[Any, Any, _Result], disconnect: Coroutine[Any, Any, object]
    ) -> _Result:
        """Return the result of `work` for a request, unless something ends the request first.

        Args:
            work: Cancelled if it is not the first to end.
            disconnect: Ends when the client disconnects.

        Raises:
            ClientDisconnected: The client disconnected.
            ApiError: The running requests were cancelled, or `answer_timeout` passed.
        """
        work_task = asyncio.ensure_future(work)
        disconnect_task = asyncio.ensure_future(disconnect)
        cancel_task = asyncio.ensure_future(self._cancel.wait())
        tasks = (work_task, disconnect_task, cancel_task)
        try:
            await asyncio.wait(
                tasks,
                timeout=self.config.limits.answer_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work_task.done():
                return work_task.result()
            if disconnect_task.done():
                raise ClientDisconnected
            if self._cancel.is_set():
                raise _shutdown_error()
            raise service_unavailable("the answer took too long; ask for a shorter one", "timeout")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _stats(self) -> EngineStats | None:
        return None if self._engine is None else self._engine.stats()

    def _loaded(self, engine: Engine) -> None:
        # Also set while draining, so that `close` stops its thread.
        self._engine = engine
        if self.state is ServiceState.STARTING:
            self.state = ServiceState.READY
            _log.info("ready", extra={"model": self.config.name})

    def _loading_failed(self, error: CalderaError) -> None:
        self.failure = error
        self._set_closed()

    def _set_closed(self) -> None:
        self.state = ServiceState.CLOSED
        self.closed.set()

    async def _drain(self) -> None:
        """Wait for the running requests, cancel those that remain, and close."""
        await self._wait_idle(self.config.limits.drain_timeout, self._cancel)
        self._cancel.set()
        await self._wait_idle(_ERROR_SECONDS, None)
        self._set_closed()

    async def _wait_idle(self, timeout: float, stop: asyncio.Event | None) -> None:
        """Wait until no request is active, `timeout` seconds passed, or `stop` is set."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self.num_active and loop.time() < deadline and not (stop and stop.is_set()):
            await asyncio.sleep(0.02)


def _shutdown_error() -> ApiError:
    return service_unavailable("the server is shutting down", "shutting_down")
