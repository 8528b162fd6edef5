"""Entry point of `python -m caldera`."""

from caldera.cli import main

main()
