"""The public API is exactly what `caldera.__all__` lists, documented, and cheap to import."""

import subprocess
import sys
from pathlib import Path

import caldera

PUBLIC = {
    "CalderaError",
    "ChatModel",
    "Conversation",
    "Engine",
    "EngineConfig",
    "ImageRef",
    "Request",
    "SamplingParams",
    "Turn",
    "__version__",
    "load",
    "read_conversations",
}


def test_all_lists_the_public_names() -> None:
    """`__all__` is the agreed list, sorted, and every name in it can be imported."""
    assert set(caldera.__all__) == PUBLIC
    assert caldera.__all__ == sorted(caldera.__all__)
    assert all(getattr(caldera, name) is not None for name in caldera.__all__)


def test_every_public_name_has_a_docstring_and_a_place_in_the_reference() -> None:
    """A user finds each in `help()` and in docs/python.md."""
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    for name in PUBLIC - {"__version__"}:
        assert getattr(caldera, name).__doc__, name
        assert f"::: caldera.{name}\n" in page, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy import keeps Python's usual error."""
    assert not hasattr(caldera, "missing")


def test_importing_caldera_imports_no_torch() -> None:
    """`import caldera` is for scripts that may not load a model at all."""
    code = "import caldera, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
