"""Servers on this machine for the tests of the LLM client."""

import pytest


@pytest.fixture(autouse=True)
def _loopback(loopback: None) -> None:
    """Allow connections to this machine only."""
