"""Published benchmarks by exact name."""

from caldera.errors import UnknownNameError
from caldera.evaluation.benchmarks.llava_bench import LLAVA_BENCH, LLAVA_BENCH_COCO
from caldera.evaluation.benchmarks.mm_vet import MM_VET
from caldera.evaluation.benchmarks.pope import POPE
from caldera.evaluation.benchmarks.science_qa import SCIENCE_QA
from caldera.evaluation.benchmarks.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        SCIENCE_QA,
        POPE,
        LLAVA_BENCH,
        LLAVA_BENCH_COCO,
        MM_VET,
    )
}
"""In the order that `caldera evaluate tasks` lists them."""


def find_task(name: str) -> Task:
    """Return the benchmark called exactly `name`.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name]
