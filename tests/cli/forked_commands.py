"""Program that runs commands in forks of itself, after it has imported what they need.

Each line of stdin is a command as JSON: `words`, and the files `stdout` and `stderr`. For each, its process id is
printed when it starts, and its exit code, or minus the signal that killed it, when it has ended.
"""

import json
import os
import signal
import sys
from importlib import import_module
from typing import NoReturn

from caldera.__main__ import _leave, main

MODULES = (
    "caldera.datasets.registry",
    "caldera.datasets.parquet",
    "caldera.evaluation.runs.coco_run",
    "caldera.formats.importing.import_model",
    "caldera.formats.original.export",
    "caldera.instructions.generate",
    "caldera.llm_client.openai_client",
    "caldera.pipelines.ablation_run",
    "caldera.pipelines.paper_run",
    "caldera.pipelines.scene_run",
    "caldera.cli",
)


def run_command(words: list[str], stdout: str, stderr: str) -> NoReturn:
    """Run a command in this process, in a process group of its own as on a terminal."""
    os.setsid()
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0)
    sys.argv = ["caldera", *words]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    print(flush=True)  # noqa: T201 - the command has begun
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    # To end Python takes longer than many commands.
    os._exit(code)


def serve() -> None:
    """Run one command after the other."""
    # The command line sets this before it imports transformers, which reads it only then.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for module in MODULES:
        import_module(module)
    for line in sys.stdin:
        command = json.loads(line)
        process = os.fork()
        if not process:
            run_command(**command)
        print(process, flush=True)  # noqa: T201 - the protocol
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)  # noqa: T201


if __name__ == "__main__":
    serve()
