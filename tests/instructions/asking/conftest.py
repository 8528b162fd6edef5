"""Teachers on this machine, and annotated pictures for them to write about."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_socket import enable_socket, socket_allow_hosts

from tests.teacher_server import Script, TeacherServer, write_coco


@pytest.fixture(autouse=True)
def _loopback(_no_network: None) -> None:
    """Let these tests reach this machine, and no other."""
    enable_socket()
    socket_allow_hosts(["127.0.0.1"], allow_unix_socket=True)


@pytest.fixture
def serve() -> Iterator[Callable[[Script], TeacherServer]]:
    """Start teachers that are closed when the test ends."""
    started: list[TeacherServer] = []

    def starting(script: Script, *, keep: bool = True) -> TeacherServer:
        started.append(TeacherServer(script, keep=keep))
        return started[-1]

    yield starting
    for server in started:
        server.close()


@pytest.fixture
def coco(tmp_path: Path) -> Callable[[int], Path]:
    """Write a COCO folder of so many pictures."""
    return lambda count: write_coco(tmp_path / f"coco{count}", count)
