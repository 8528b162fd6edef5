"""Tests of routes against a real server."""

import pytest

from tests.server.server_process import (
    NAME,
    ServerProcess,
)


@pytest.mark.parametrize(
    "model", ["other", "../../etc/passwd", "/etc/passwd", "", f"{NAME}/", "a\nb"]
)
def test_other_models_are_not_found(server: ServerProcess, model: str) -> None:
    """Any name but the model's own gives 404, and no file is searched for."""
    answer = server.ask("What?", model=model)
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert server.get("/v1/models/..%2f..%2fetc%2fpasswd").code == "model_not_found"
    assert server.get(f"/v1/models/{NAME}").json["id"] == NAME
