"""What tests share: no network but loopback, third-party data where it is, tiny models made on the spot."""

import os
from pathlib import Path

import pytest
import torch
from pytest_socket import disable_socket

THIRD_PARTY = Path(
    os.environ.get("CALDERA_THIRD_PARTY", Path(__file__).parents[2] / "shared" / "data")
)


def pytest_configure() -> None:
    """Use two threads, and keep transformers quiet."""
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _no_network() -> None:
    """Refuse every connection but to this machine."""
    disable_socket(allow_unix_socket=True)


@pytest.fixture
def third_party() -> Path:
    """The folder of third-party data; tests that need it are skipped where it is absent."""
    if not THIRD_PARTY.is_dir():
        pytest.skip(f"no third-party data at {THIRD_PARTY}; set CALDERA_THIRD_PARTY")
    return THIRD_PARTY
