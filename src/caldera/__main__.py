"""`python -m caldera` in, the command line out."""

from caldera.cli import main

main()
