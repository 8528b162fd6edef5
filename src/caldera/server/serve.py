"""Server process: binds an address, loads the models and runs until a signal ends it."""

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
from caldera.formats.open_model import open_model
from caldera.inference.engine import Engine
from caldera.server.api.app import create_app, with_middleware
from caldera.server.api.config import ServerConfig
from caldera.server.api.service import Service
from caldera.server.page.page import PageConfig

_MAX_HEADER_BYTES = 1 << 16
_KEEP_ALIVE_SECONDS = 30
_UNREAD_MILLISECONDS = 60_000
"""TCP timeout of data that a client does not acknowledge."""
_BACKLOG = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Address that a server listens on."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 for any free port."""
    no_auth: bool = False
    """Whether other machines may connect without a key."""


def serve(
    folder: Path,
    address: Address,
    config: ServerConfig,
    *,
    compute: DeviceConfig,
    match_stored_dtype: bool,
    page: PageConfig | None,
    on_listening: Callable[[str], object],
) -> None:
    """Serve a model folder until SIGTERM or SIGINT.

    Args:
        folder: A model folder.
        address: Address to listen on.
        config: Everything else.
        compute: Device and precision of the model.
        match_stored_dtype: Whether a model that is stored in fp32 runs in fp32 in any case.
        page: Configuration of the web page; None for no page.
        on_listening: Called with the server's URL once it listens.

    Raises:
        ModelFormatError: A folder cannot be loaded.
        UsageError: The address cannot be used, or must not be used without a key.
    """
    if not (config.keys or address.no_auth or is_loopback(address.host)):
        raise UsageError(
            f"{address.host} can be reached from other machines and there is no key; set CALDERA_API_KEY or pass "
            "--api-key-file, or pass --no-auth if access is restricted otherwise"
        )
    second_folder = None if page is None else page.second_model
    # Report a folder that cannot be loaded before the server listens.
    for path in (folder, second_folder):
        if path is not None:
            open_model(path)
    listening = bind_socket(address)

    def load_one(path: Path) -> Engine:
        runtime = with_stored_dtype(path, compute) if match_stored_dtype else compute
        return load_engine(path, runtime, config.engine)

    def load_all() -> Engine:
        if page is not None and second_folder is not None:
            page.second_engine = load_one(second_folder)
        return load_one(folder)

    host = f"[{address.host}]" if ":" in address.host else address.host
    on_listening(f"http://{host}:{listening.getsockname()[1]}/v1")
    asyncio.run(_serve(listening, config, load_all, page))


def is_loopback(host: str) -> bool:
    """Return whether a listening host can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind_socket(address: Address) -> socket.socket:
    """Return a socket that listens on an address; raise UsageError if it is in use or not of this machine."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MILLISECONDS)
    try:
        listening.bind((address.host, address.port))
        listening.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is in use; choose another with --port" if in_use else f"cannot be used: {error}"
        raise UsageError(f"port {address.port} on {address.host} {reason}") from None
    return listening


async def _serve(
    listening: socket.socket,
    config: ServerConfig,
    load: Callable[[], Engine],
    page: PageConfig | None,
) -> None:
    """Run the server until its service is closed; raise the error if the model cannot be loaded."""
    service = Service(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.shutdown)
    app = create_app(service, None if page is None else page.create(service))
    uvicorn_config = uvicorn.Config(
        with_middleware(app, service),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    server = _SignalFreeServer(uvicorn_config)
    server_task = asyncio.create_task(server.serve(sockets=[listening]))
    service.start(load)
    await service.closed.wait()
    server.should_exit = True
    await server_task
    is_finished = await service.close()
    if page is not None and page.second_engine is not None:
        page.second_engine.close()
    if service.failure is not None:
        raise service.failure
    if not is_finished:
        # The thread that still loads the model would keep the process alive.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _SignalFreeServer(uvicorn.Server):
    """Server that leaves signals to the service, which responds with 503 while it drains."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield


class JsonLogFormatter(logging.Formatter):
    """Formatter that writes each record, including its extra fields, as one line of JSON."""

    _STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        extra = {name: value for name, value in vars(record).items() if name not in self._STANDARD}
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **extra,
        }
        return json.dumps(line, default=str)


def log_as_json() -> None:
    """Write all logs of this process as JSON to stderr; of libraries only warnings and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLogFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("caldera").setLevel(logging.INFO)
    # uvicorn's error messages quote requests.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
