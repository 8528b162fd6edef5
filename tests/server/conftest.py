"""Servers that tests share: started once, by a tiny random model that answers at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_socket import enable_socket

from caldera.formats.assemble import assemble
from caldera.formats.model_folder import save_model_folder
from tests.server.media_host import MediaHost
from tests.server.server_process import ServerProcess


@pytest.fixture(scope="session")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory, vision_folder: Path, language_folder: Path
) -> Path:
    """A random model with a context of 2,048 tokens; it ends no answer by itself."""
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model_folder(folder, assemble(vision_folder, language_folder, seed=3))
    return folder


@pytest.fixture(scope="session")
def shared_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server as it is without any option."""
    with ServerProcess(model_folder) as server:
        yield server


@pytest.fixture
def server(shared_server: ServerProcess, loopback: None) -> Iterator[ServerProcess]:
    """The shared server, which must answer after the test as it did before."""
    before = shared_server.ask("What is it?").text
    yield shared_server
    assert shared_server.ask("What is it?").text == before


@pytest.fixture(scope="session")
def shared_uncached_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server that keeps nothing of earlier requests, and decodes one image at a time."""
    options = ("--set", "engine.prefix_cache_bytes=0", "--set", "media.decoders=1")
    with ServerProcess(model_folder, *options) as server:
        yield server


@pytest.fixture
def uncached_server(shared_uncached_server: ServerProcess, loopback: None) -> ServerProcess:
    """The shared server without a cache."""
    return shared_uncached_server


KEY = "a-long-secret-key-of-nobody"


@pytest.fixture(scope="session")
def shared_keyed_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server that a key opens, which the environment gives."""
    with ServerProcess(model_folder, key=KEY) as server:
        yield server


@pytest.fixture
def keyed_server(shared_keyed_server: ServerProcess, loopback: None) -> ServerProcess:
    """The shared server with a key."""
    return shared_keyed_server


@pytest.fixture(scope="session")
def shared_narrow_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server that answers one request at a time, lets one wait, and does not wait long for its clients."""
    options = (
        "--set", "engine.slots=1", "--set", "engine.max_waiting=1", "--set", "limits.send_timeout=2", "--set",
        "limits.keep_alive_interval=0.1", "--set", "media.decoders=1",
    )  # fmt: skip
    with ServerProcess(model_folder, *options, faults=["slow:0.01"]) as server:
        yield server


@pytest.fixture
def narrow_server(shared_narrow_server: ServerProcess, loopback: None) -> Iterator[ServerProcess]:
    """The shared narrow server, which must answer after the test as it did before."""
    before = shared_narrow_server.ask("What is it?").text
    yield shared_narrow_server
    shared_narrow_server.wait_until(lambda: shared_narrow_server.metric("caldera_running") == 0)
    assert shared_narrow_server.ask("What is it?").text == before


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images that a server lets its clients name."""
    folder = tmp_path_factory.mktemp("media") / "data"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def shared_host() -> Iterator[MediaHost]:
    """A host of images whose port is known before the server starts."""
    enable_socket()
    host = MediaHost(lambda path: iter(()))
    yield host
    host.close()


@pytest.fixture(scope="session")
def shared_fetching_server(
    model_folder: Path, media_folder: Path, shared_host: MediaHost
) -> Iterator[ServerProcess]:
    """A server that fetches from one host of this machine and from any public one, and reads a folder."""
    options = (
        "--fetch-from", f"127.0.0.1:{shared_host.port}", "--fetch-from", "*", "--media-root", str(media_folder),
        "--set", "media.max_bytes=200000", "--set", "media.download_seconds=2",
    )  # fmt: skip
    faults = ("dns:inside.test=127.0.0.1", "dns:mixed.test=93.184.216.34,127.0.0.1")
    with ServerProcess(model_folder, *options, faults=faults) as server:
        yield server


@pytest.fixture
def host(shared_host: MediaHost, loopback: None) -> MediaHost:
    """The host of images, which nobody has asked yet."""
    shared_host.paths.clear()
    shared_host.sent = 0
    return shared_host


@pytest.fixture
def fetching_server(
    shared_fetching_server: ServerProcess, loopback: None
) -> Iterator[ServerProcess]:
    """The shared server that fetches, which must answer after the test as it did before."""
    before = shared_fetching_server.ask("What is it?").text
    yield shared_fetching_server
    assert shared_fetching_server.ask("What is it?").text == before


@pytest.fixture(scope="session", autouse=True)
def _sockets_for_shared_servers() -> None:
    """Let servers of the session be reached while they are set up and torn down."""
    enable_socket()
