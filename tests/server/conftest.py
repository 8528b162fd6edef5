"""Servers that tests share, each started once with a tiny random model."""

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
    """A random model with a context of 2,048 tokens, which never ends an answer."""
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model_folder(folder, assemble(vision_folder, language_folder, seed=3))
    return folder


@pytest.fixture(scope="session")
def shared_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server without any option."""
    with ServerProcess(model_folder) as server:
        yield server


@pytest.fixture
def server(shared_server: ServerProcess, loopback: None) -> Iterator[ServerProcess]:
    """The shared server, which must answer as before after the test."""
    before = shared_server.ask("What is it?").text
    yield shared_server
    assert shared_server.ask("What is it?").text == before


@pytest.fixture(scope="session")
def shared_uncached_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server without a prefix cache that decodes one image at a time."""
    options = ("--set", "engine.prefix_cache_bytes=0", "--set", "media.decoders=1")
    with ServerProcess(model_folder, *options) as server:
        yield server


@pytest.fixture
def uncached_server(shared_uncached_server: ServerProcess, loopback: None) -> ServerProcess:
    """The shared server without a cache."""
    return shared_uncached_server


KEY = "a-long-secret-key-of-a-test"


@pytest.fixture(scope="session")
def shared_keyed_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server with a key from the environment."""
    with ServerProcess(model_folder, key=KEY) as server:
        yield server


@pytest.fixture
def keyed_server(shared_keyed_server: ServerProcess, loopback: None) -> ServerProcess:
    """The shared server with a key."""
    return shared_keyed_server


@pytest.fixture(scope="session")
def shared_narrow_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server with one slot, a queue of one, and short timeouts for its clients."""
    options = (
        "--set", "engine.slots=1", "--set", "engine.max_waiting=1", "--set", "limits.send_timeout=2", "--set",
        "limits.keep_alive_interval=0.1", "--set", "media.decoders=1",
    )  # fmt: skip
    with ServerProcess(model_folder, *options, faults=["slow:0.01"]) as server:
        yield server


@pytest.fixture
def narrow_server(shared_narrow_server: ServerProcess, loopback: None) -> Iterator[ServerProcess]:
    """The shared narrow server, which must answer as before after the test."""
    before = shared_narrow_server.ask("What is it?").text
    yield shared_narrow_server
    shared_narrow_server.wait_until(lambda: shared_narrow_server.metric("caldera_running") == 0)
    assert shared_narrow_server.ask("What is it?").text == before


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The media folder of a server."""
    folder = tmp_path_factory.mktemp("media") / "data"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def shared_host() -> Iterator[MediaHost]:
    """An image host, whose port is known before the server starts."""
    enable_socket()
    host = MediaHost(lambda path: iter(()))
    yield host
    host.close()


@pytest.fixture(scope="session")
def shared_fetching_server(
    model_folder: Path, media_folder: Path, shared_host: MediaHost
) -> Iterator[ServerProcess]:
    """A server that fetches from one local host and from any public host, and reads a media folder."""
    options = (
        "--allowed-media-domains", f"127.0.0.1:{shared_host.port}", "--allowed-media-domains", "*",
        "--allowed-local-media-path", str(media_folder), "--set", "media.max_bytes=200000",
        "--set", "media.download_timeout=2",
    )  # fmt: skip
    faults = ("dns:inside.test=127.0.0.1", "dns:mixed.test=93.184.216.34,127.0.0.1")
    with ServerProcess(model_folder, *options, faults=faults) as server:
        yield server


@pytest.fixture
def host(shared_host: MediaHost, loopback: None) -> MediaHost:
    """The image host, without requests so far."""
    shared_host.paths.clear()
    shared_host.sent_bytes = 0
    return shared_host


@pytest.fixture
def fetching_server(
    shared_fetching_server: ServerProcess, loopback: None
) -> Iterator[ServerProcess]:
    """The shared server that fetches, which must answer as before after the test."""
    before = shared_fetching_server.ask("What is it?").text
    yield shared_fetching_server
    assert shared_fetching_server.ask("What is it?").text == before


@pytest.fixture(scope="session", autouse=True)
def _sockets_for_shared_servers() -> None:
    """Allow connections to the servers of the session during their setup and teardown."""
    enable_socket()
