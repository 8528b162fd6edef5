"""Servers that tests share: started once, by a tiny random model that answers at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_socket import enable_socket

from caldera.model.assemble import assemble
from caldera.model.folder import save_assistant
from tests.chat.server_process import ServerProcess


@pytest.fixture(scope="session")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory, vision_folder: Path, language_folder: Path
) -> Path:
    """A random model with a context of 2,048 tokens; it ends no answer by itself."""
    folder = tmp_path_factory.mktemp("served") / "model"
    save_assistant(folder, assemble(vision_folder, language_folder, seed=3))
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


@pytest.fixture(scope="session", autouse=True)
def _sockets_for_shared_servers() -> None:
    """Let servers of the session be reached while they are set up and torn down."""
    enable_socket()
