"""Fill in what the examples in docs/ print: `make docs`. The tests then compare them."""

import contextlib
import doctest
import io
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

RUN = ("docs/tour.md",)
"""Pages whose Python examples are run."""


def filled(page: str, name: str) -> str:
    """Return a page with the output of each of its examples below it, run in an empty folder."""
    names: dict[str, object] = {}
    written = []
    for piece in doctest.DocTestParser().parse(page, name):
        if isinstance(piece, str):
            written.append(piece)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(piece.source, name, "single"), names)
        first, *more = piece.source.splitlines()
        lines = [f">>> {first}", *(f"... {line}".rstrip() for line in more)]
        written.append("\n".join(lines) + "\n" + printed.getvalue())
    return "".join(written)


def main() -> None:
    """Rewrite every page."""
    for name in RUN:
        page = (ROOT / name).read_text()
        with tempfile.TemporaryDirectory() as empty:
            os.chdir(empty)
            result = filled(page, name)
            os.chdir(ROOT)
        (ROOT / name).write_text(result)


if __name__ == "__main__":
    main()
