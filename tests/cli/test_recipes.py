"""Lists and errors that need no model come without torch, whose import takes seconds, and fit 80 columns."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys
from typer.testing import CliRunner
from caldera.cli import app
results = []
for line in sys.stdin:
    result = CliRunner().invoke(app, line.split(), env={"COLUMNS": "80"})
    imported = sorted({"torch", "transformers", "matplotlib"} & sys.modules.keys())
    results.append([line.strip(), result.exit_code, result.output, imported])
print(json.dumps(results))
"""

COMMANDS = {
    "recipes": "llava_15_7b: 304 M + 21.0 M + 6.74 B parameters",
    "recipes llava_15_7b": "2e-5",
    "recipes --json": '"llava_15_7b"',
    "ablate --list": "no stage 1",
    "evaluate benchmarks": "pope",
    "demo --set lr=1": "did you mean 'pretrain.learning_rate' or 'finetune.learning_rate'?",
    "train finetune --set lr=1 --model m --data d --out o": "did you mean 'learning_rate'?",
    "train pretrain --set lr=1 --data d --out o": "did you mean 'learning_rate'?",
    "train finetune --epochs 2": "it is a setting: --set epochs=VALUE",
}
"""A part of the output of each command."""


def test_lists_and_errors_need_no_torch() -> None:
    """Each command prints what it should, within 80 columns unless it is JSON or one error line."""
    words = [sys.executable, "-c", PROGRAM]
    process = subprocess.run(
        words, input="\n".join(COMMANDS), capture_output=True, text=True, check=True
    )
    results = json.loads(process.stdout)
    assert len(results) == len(COMMANDS)
    for command, exit_code, output, imported in results:
        assert imported == [], command
        assert COMMANDS[command] in output, (command, output)
        if exit_code == 0 and "--json" not in command:
            assert max(map(len, output.splitlines())) <= 80, command
