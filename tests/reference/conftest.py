"""Second process with the transformers that LLaVA's own code names."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "build" / "transformers_4_37"
"""transformers 4.37.2, tokenizers 0.15.1 and their huggingface_hub; all else is the tests' own."""

Run437 = Callable[..., Any]


@pytest.fixture(scope="session")
def run_437() -> Run437:
    """Return a function that runs a script with transformers 4.37.2.

    It takes the script's source and arguments for `json`, and returns what the script's `main` returns for them.
    """
    if not (FOLDER / "transformers").is_dir():
        pytest.skip(
            f"no transformers 4.37.2 in {FOLDER}; make build/transformers_4_37 (below Python 3.13)"
        )

    def run(script: str, *arguments: object) -> Any:  # noqa: ANN401 - JSON
        call = "import json, sys; print(json.dumps(main(*json.loads(sys.stdin.read()))))"
        environment = {**os.environ, "PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1"}
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"{script}\n{call}"],
            input=json.dumps(arguments),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        return json.loads(process.stdout.splitlines()[-1])

    return run
