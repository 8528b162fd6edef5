"""Published benchmarks by exact name."""

from caldera.errors import UnknownNameError
from caldera.evaluation.benchmarks.task import Task

TASKS: dict[str, Task] = {}
"""In the order that `caldera evaluate tasks` lists them."""


def find_task(name: str) -> Task:
    """Return the benchmark called exactly `name`.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name]
