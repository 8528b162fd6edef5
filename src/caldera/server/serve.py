"""A model folder and an address in, a server that runs until it is told to end."""

import asyncio
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from caldera.chat.chat_model import load_engine, with_stored_dtype
from caldera.devices import DeviceConfig
from caldera.errors import UsageError
from caldera.formats.model_folder import open_lazily
from caldera.inference.engine import Engine
from caldera.server.api.app import create_app, with_middleware
from caldera.server.api.config import ServerConfig
from caldera.server.api.service import Service
from caldera.server.page.page import PageConfig

_HEAD_BYTES = 1 << 16
"""Of a request's head; longer ones are refused before they are read."""

_KEEP_ALIVE = 30
_BACKLOG = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 for any that is free."""
    insecure: bool = False
    """Whether it may be reached from elsewhere without a key."""


def serve(
    folder: Path,
    address: Address,
    settings: ServerConfig,
    *,
    compute: DeviceConfig,
    match_stored_dtype: bool,
    web: PageConfig | None,
    on_listening: Callable[[str], object],
) -> None:
    """Serve a model folder until SIGTERM or SIGINT.

    Args:
        folder: A model folder.
        address: Where to listen.
        settings: Everything else.
        compute: Where and in which precision the model runs.
        by_storage: Whether a folder that is stored in fp32 runs in fp32 all the same.
        web: Of the page in a browser; None for no page.
        tell: Given the server's URL once it listens.

    Raises:
        ModelFolderError: A folder cannot be loaded.
        UsageError: It cannot listen there, or should not without a key.
    """
    if not (settings.keys or address.insecure or is_loopback(address.host)):
        raise UsageError(
            f"{address.host} can be reached from other machines and there is no key; set CALDERA_API_KEY or give "
            "--key-file, or say --insecure if others guard it"
        )
    beside = None if web is None else web.second_model
    for each in (folder, *([] if beside is None else [beside])):
        open_lazily(each)  # what cannot be loaded is told of before anything listens
    listening = bind_socket(address)

    def opened(each: Path) -> Engine:
        chosen = with_stored_dtype(each, compute) if match_stored_dtype else compute
        return load_engine(each, chosen, settings.engine)

    def load() -> Engine:
        if web is not None and beside is not None:
            web.second_engine = opened(beside)
        return opened(folder)

    host = f"[{address.host}]" if ":" in address.host else address.host
    on_listening(f"http://{host}:{listening.getsockname()[1]}/v1")
    asyncio.run(_serve(listening, settings, load, web))


def is_loopback(host: str) -> bool:
    """Tell whether a host to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind_socket(address: Address) -> socket.socket:
    """Take the address.

    Raises:
        UsageError: It is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    load_one = socket.socket(family, socket.SOCK_STREAM)
    load_one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    load_one.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000
    )  # of those who do not read
    try:
        load_one.bind((address.host, address.port))
        load_one.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        load_one.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "is in use; choose another with --port" if taken else f"cannot be used: {error}"
        raise UsageError(f"port {address.port} on {address.host} {why}") from None
    return load_one


async def _serve(
    listening: socket.socket,
    settings: ServerConfig,
    load: Callable[[], Engine],
    web: PageConfig | None,
) -> None:
    """Run the server until its service has ended.

    Raises:
        CalderaError: The model cannot be loaded.
    """
    service = Service(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.shutdown)
    config = uvicorn.Config(
        with_middleware(create_app(service, None if web is None else web.page(service)), service),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=1,
    )
    server = _SignalFreeServer(config)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    service.start(load)
    await service.ended.wait()
    server.should_exit = True
    await running
    finished = await service.close()
    if web is not None and web.second_engine is not None:
        web.second_engine.close()
    if service.failure is not None:
        raise service.failure
    if not finished:  # a thread still loads, and would keep the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _SignalFreeServer(uvicorn.Server):
    """Leaves the signals to the service, which answers with 503 while it drains instead of not at all."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


class JsonLogFormatter(logging.Formatter):
    """Writes each record as a line of JSON: when, what, and the numbers that go with it."""

    _USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        more = {name: value for name, value in vars(record).items() if name not in self._USUAL}
        line = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **more,
        }
        return json.dumps(line, default=str)


def log_as_json() -> None:
    """Write every log of this process as JSON on the error stream; libraries only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLogFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("caldera").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(
        logging.CRITICAL
    )  # what it says of errors quotes requests
