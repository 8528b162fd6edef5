"""Entry point of the command `caldera` and of `python -m caldera`."""

import os
import signal
import sys
from types import FrameType
from typing import Never


def _leave(number: int, _: FrameType | None) -> Never:
    """End the process before a command has begun: an exception during imports would be printed with its traceback."""
    # These have no output files, and may have filled the Hub's cache.
    has_output = sys.argv[1:2] not in (["chat"], ["serve"])
    os.write(2, b"stopped; nothing was written\n" if has_output else b"stopped\n")
    os._exit(128 + number)


def main() -> None:
    """Run the command line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    try:
        from caldera.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "caldera").startswith("caldera"):
            raise
        sys.exit(
            f"error: the package {error.name} is missing: {sys.executable} -m pip install --upgrade caldera"
        )
    run()


if __name__ == "__main__":
    main()
