"""The prepared check of a GPU: what it can compare on a CPU passes, and a check that fails does not stop the others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_check.py"


def run(*arguments: str | Path, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    """And how to try the script itself."""
    result = run()
    assert result.returncode == 2
    assert "finds no CUDA GPU" in result.stderr
    assert "--device cpu --scale tiny" in result.stderr


@pytest.mark.soak
def test_the_checks_pass_on_a_cpu_at_tiny_size(tmp_path: Path) -> None:
    """Each has rows, none fails, and both tables are written. The speed of training takes too long here."""
    names = ("steps", "attention", "checkpointing", "engine", "int8", "float16", "answer speed")
    chosen = [word for name in names for word in ("--check", name)]
    result = run(
        *("--device", "cpu", "--scale", "tiny", "--minutes", "30", "--out", tmp_path), *chosen
    )
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    checks = content["checks"]
    assert set(checks) == set(names)
    for rows in checks.values():
        assert rows
        assert not any(row["passed"] is False for row in rows)
    for name in names[:-1]:
        assert sum(row["passed"] is True for row in checks[name]) >= 2, name
    lines = (tmp_path / "gpu_check.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + sum(map(len, checks.values()))


@pytest.mark.soak
def test_a_check_that_fails_or_takes_too_long_does_not_stop_the_others(tmp_path: Path) -> None:
    """It is named, and the exit code is 1."""
    code = f"""
import sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
import gpu_check
from gpu_exactness import Row, below

def wrong(config):
    yield Row("measured", "5")
    yield below("a difference", 0.5, 1e-3)

def crash(config):
    yield Row("before", "1")
    raise RuntimeError("no such kernel")

def hang(config):
    yield Row("before", "1")
    time.sleep(600)

def good(config):
    yield below("no difference", 0.0, 1e-3)

sizes = gpu_check.SMALL
gpu_check.__file__ = __file__
gpu_check.CHECKS = {{
    check.__name__: gpu_check.Entry(check, sizes, seconds)
    for check, seconds in ((wrong, 60), (crash, 60), (hang, 12), (good, 60))
}}
gpu_check.main()
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    result = run("--device", "cpu", "--scale", "tiny", "--out", tmp_path, script=script)
    assert result.returncode == 1
    assert result.stderr.strip() == "failed: wrong, crash, hang"
    checks = json.loads((tmp_path / "gpu_check.json").read_text())["checks"]
    assert checks["wrong"][1]["passed"] is False
    assert checks["crash"][1]["value"] == "exit code 1: RuntimeError: no such kernel"
    assert checks["hang"][-1]["value"] == "stopped after 12 s"
    assert [row["passed"] for row in checks["good"]] == [True]


@pytest.mark.gpu
def test_all_checks_pass_on_a_gpu(tmp_path: Path) -> None:
    """In eight minutes."""
    result = run("--out", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
