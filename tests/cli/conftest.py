"""Commands run in this process, as the installed program runs them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.cli import main

Said = tuple[int, str, str]
"""Exit code, stdout and stderr."""


@pytest.fixture
def in_columns(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Callable[..., Said]]:
    """Run commands by the main function on a terminal of so many columns."""

    def at(columns: int) -> Callable[..., Said]:
        def calling(*words: str | Path) -> Said:
            monkeypatch.setattr(sys, "argv", ["caldera", *map(str, words)])
            monkeypatch.setenv("COLUMNS", str(columns))
            with pytest.raises(SystemExit) as ended:
                main()
            said = capfd.readouterr()
            return int(str(ended.value.code or 0)), said.out, said.err

        return calling

    return at
