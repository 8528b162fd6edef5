"""File system whose call number n fails, for tests of what a failed write leaves behind."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_FUNCTIONS = ("mkdir", "open", "fsync", "chmod", "replace", "unlink", "rmdir")


class FaultyFiles:
    """Counts the calls of `os` that change files, and lets one of them fail."""

    def __init__(self, fail_at: int, number: int) -> None:
        """Raise the system error `number` at call `fail_at`, counted from 1."""
        self.calls = 0
        self.failed = ""
        """Name of the call that failed; empty if there were fewer calls."""
        self._fail_at, self._number = fail_at, number

    def check(self, name: str) -> None:
        """Count a call, and raise the error if it is the one that fails."""
        self.calls += 1
        if self.calls == self._fail_at:
            self.failed = name
            raise OSError(self._number, os.strerror(self._number))

    def _before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self.check(name)
            return function(*args, **kwargs)

        return call

    def _fdopen(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that opens files whose first write may fail halfway."""

        def fdopen(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            file = function(*args, **kwargs)
            write = file.write

            class File:
                def __enter__(self) -> "File":
                    return self

                def __exit__(self, *_: object) -> None:
                    file.close()

                def write(_self, data: bytes) -> int:  # noqa: N805
                    write(data[: len(data) // 2])
                    self.check("write")
                    return int(write(data[len(data) // 2 :]))

                def __getattr__(self, name: str) -> Any:  # noqa: ANN401
                    return getattr(file, name)

            return File()

        return fdopen

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the calls of the block pass through this object."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _FUNCTIONS:
                patch.setattr(os, name, self._before(name, getattr(os, name)))
            patch.setattr(os, "fdopen", self._fdopen(os.fdopen))
            yield
