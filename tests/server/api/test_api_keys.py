"""Tests of authentication against a real server."""

import json

import pytest

from tests.server.conftest import KEY
from tests.server.server_process import (
    ServerProcess,
)


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Basic {KEY}", KEY,
        "Bearer schlüssel", "Bearer \xff",
    ],
)  # fmt: skip
def test_only_the_key_is_accepted(keyed_server: ServerProcess, header: str | None) -> None:
    """A missing, wrong, partial or non-ASCII key: status 401, and the key is never logged."""
    connection = keyed_server.connect()
    headers = (
        {} if header is None else {"Authorization": header.encode("latin-1").decode("latin-1")}
    )
    connection.request("GET", "/v1/models", headers=headers)
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    connection.close()
    assert (response.status, error["type"]) == (401, "authentication_error")
    assert keyed_server.ask("What is it?").status == 200
    assert keyed_server.get("/health").status == keyed_server.get("/ready").status == 200
    assert KEY not in "".join(keyed_server.lines)
