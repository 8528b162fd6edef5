"""A Hub with one model, and the download of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.files.hub import Snapshot, download, find_snapshot
from caldera.files.hub_cache import HubName
from caldera.formats.hub_models import choose_model_files
from caldera.progress import NoProgress
from tests.hub_server import Answer, Fault, HubServer, Request

WEIGHTS = bytes(range(256)) * 1200
MODEL = {
    "config.json": b'{"model_type": "llava"}',
    "tokenizer.json": b"{}",
    "modeling_llava.py": b"raise SystemExit",
    "README.md": b"# A model",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "tf_model.h5": b"tensorflow",
    "consolidated.00.pth": b"pickle",
}
NAME = HubName("org/model")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return the folder of the Hub's cache."""
    return tmp_path / "hub"


@pytest.fixture
def server(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """Return a Hub with the model `org/model`."""
    monkeypatch.chdir(tmp_path)
    hub.add("org/model", MODEL)
    return hub


def fetch(name: HubName = NAME) -> Snapshot:
    """Find and download a model."""
    snapshot = find_snapshot(name, choose_model_files)
    download([snapshot], NoProgress())
    return snapshot


def on(part: str, answer: Callable[[], Answer], times: int = 1000) -> Fault:
    """Return a fault in the first `times` requests whose path contains `part`."""
    remaining = [times]

    def fault(request: Request) -> Answer | None:
        if part not in request.path or not remaining[0]:
            return None
        remaining[0] -= 1
        return answer()

    return fault
