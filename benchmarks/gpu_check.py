"""Check and measure caldera on one CUDA GPU, in at most 8 minutes: `python benchmarks/gpu_check.py [--out FOLDER]`.

Everything is random and created on the device; nothing is downloaded. Each check runs in a process of its own with a
time budget, so that one that fails, crashes or hangs does not stop the others. Results go to a table in Markdown and to
JSON. The exit code is 1 if a check failed, or was not reached in time.

Without a GPU, `--device cpu --scale tiny` tries the script itself: what means something on a CPU is compared there.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from gpu_exactness import (
    SMALL,
    Check,
    CheckConfig,
    Row,
    check_attention,
    check_checkpointing,
    check_engine,
    check_float16,
    check_int8,
    check_steps,
)
from gpu_speed import ANSWERING, TRAINED, check_answer_speed, check_training_speed
from serve_models import Size

MINUTES = 8.0
"""Time of all checks together."""


@dataclass(frozen=True)
class Entry:
    """A check, the sizes of its models by scale, and its time budget in seconds."""

    check: Check
    sizes: dict[str, Size]
    seconds: float


CHECKS = {
    "steps": Entry(check_steps, SMALL, 60),
    "attention": Entry(check_attention, SMALL, 90),
    "checkpointing": Entry(check_checkpointing, SMALL, 45),
    "engine": Entry(check_engine, SMALL, 45),
    "int8": Entry(check_int8, SMALL, 30),
    "float16": Entry(check_float16, SMALL, 60),
    "training speed": Entry(check_training_speed, TRAINED, 180),
    "answer speed": Entry(check_answer_speed, ANSWERING, 120),
}
"""Checks in the order in which they run; most of them take a fraction of their budget."""


def run_check(name: str, device: str, scale: str) -> None:
    """Run a check in this process, and print each row as a line of JSON."""
    # The patch embedding is a convolution, for which cuDNN's default is not fp32.
    torch.backends.cudnn.allow_tf32 = False
    entry = CHECKS[name]
    for row in entry.check(CheckConfig(torch.device(device), entry.sizes[scale])):
        print(json.dumps(asdict(row)), flush=True)


def run_in_process(name: str, device: str, scale: str, seconds: float) -> list[Row]:
    """Run a check in its own process, and return its rows; what ends it early is a failed row."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, "--run", name, device, scale],
            stdout=output, stderr=errors, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Its workers that compile kernels, too.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        errors.seek(0)
        rows = [Row(**json.loads(line)) for line in output if line.startswith('{"name"')]
        lines = errors.read().strip().splitlines()
    if code is None:
        rows.append(Row("time", f"stopped after {seconds:.0f} s", "in time", passed=False))
    elif code:
        reason = lines[-1] if lines else "no message"
        rows.append(Row("run", f"exit code {code}: {reason}"[:300], "exit code 0", passed=False))
    return rows


def table(results: dict[str, list[Row]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield "| check | name | value | limit | result |"
    yield "| --- | --- | --- | --- | --- |"
    words = {True: "pass", False: "**fail**", None: "measured"}
    for name, rows in results.items():
        for row in rows:
            cells = (name, row.name, row.value, row.limit, words[row.passed])
            yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def describe_machine(device: str) -> str:
    """Return the device and the versions that the results are of."""
    name = f"a CPU ({platform.machine()})"
    if device != "cpu":
        properties = torch.cuda.get_device_properties(torch.device(device))
        name = f"{properties.name} ({properties.total_memory / 1e9:.0f} GB)"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    """Run the checks and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", choices=CHECKS, action="append", help="repeatable; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help="of all checks together; each one's grow with it",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), help="folder")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_check(*args.run)
        return
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} finds no CUDA GPU; run this on a machine with one, or try the script itself "
            "with --device cpu --scale tiny"
        )
    end = time.monotonic() + 60 * args.minutes
    machine = describe_machine(args.device)
    print(machine)
    results: dict[str, list[Row]] = {}
    for name in args.check or CHECKS:
        start, left = time.monotonic(), end - time.monotonic()
        if left > 0:
            seconds = min(left, CHECKS[name].seconds * args.minutes / MINUTES)
            results[name] = run_in_process(name, args.device, args.scale, seconds)
        else:
            results[name] = [Row("time", "not reached", "in time", passed=False)]
        print(
            f"\n{name}: {time.monotonic() - start:.0f} s", *table({name: results[name]}), sep="\n"
        )
    failed = [name for name, rows in results.items() if any(row.passed is False for row in rows)]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu_check.md").write_text("\n".join([f"{machine}\n", *table(results), ""]))
    content = {name: [asdict(row) for row in rows] for name, rows in results.items()}
    (args.out / "gpu_check.json").write_text(
        json.dumps({"machine": machine, "scale": args.scale, "checks": content}, indent=1)
    )
    print(f"\n{args.out / 'gpu_check.md'}, {args.out / 'gpu_check.json'}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
