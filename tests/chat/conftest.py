"""Session that the tests of the chat share."""

from collections.abc import Iterator

import pytest

from caldera.chat.session import Session
from caldera.inference.engine import Engine
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle


@pytest.fixture
def session(assistant: LlavaBundle) -> Iterator[Session]:
    """A session with the random model."""
    with Engine(assistant) as engine:
        yield Session(engine, SamplingParams(max_new_tokens=7))
