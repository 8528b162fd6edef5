"""The command `caldera evaluate judge` in a process of its own: resuming after a kill, and exit codes."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

from tests.evaluation.judging.conftest import (
    KEY,
    Bench,
    MakeBench,
    Serve,
    answer_number,
    fair,
)
from tests.teacher_server import Answer, completion


def start_command(bench: Bench, url: str, *options: str) -> subprocess.Popen[str]:
    """Start the command; the key is in its environment only."""
    words = ["evaluate", "judge", "llava-bench", "--answers", str(bench.answers), "--json"]
    words += [
        "--questions",
        str(bench.folder / "questions.jsonl"),
        "--annotations",
        str(bench.folder / "references.jsonl"),
    ]
    words += ["--judge-url", url, "--judge-model", "little-judge", "--set", "concurrency=4"]
    words += ["--set", "initial_backoff=0.001", "--set", "retries=1", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "caldera", *words],
        env={**os.environ, "OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_command_resumes(serve: Serve, make_bench: MakeBench) -> None:
    """H1: the metrics are those without the kill, and only requests in flight are sent again."""
    bench, out = make_bench(40), "out"

    def script(request: dict[str, Any], count: int) -> Answer:
        if count == 15:
            os.kill(started.pid, signal.SIGKILL)
        return Answer(fair(request).body, delay=0.02)

    server = serve(script)
    started = start_command(bench, server.url, "--out", str(bench.folder / out))
    started.communicate(timeout=120)
    assert started.returncode == -signal.SIGKILL
    again = start_command(bench, server.url, "--out", str(bench.folder / out))
    stdout, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    metrics = json.loads(stdout)["figures"]
    assert (metrics["overall"], metrics["num_valid"]) == (50.0, 40)
    assert 40 <= server.count <= 44


def test_an_invalid_run_prints_its_metrics_and_ends_with_code_6_of(
    serve: Serve, make_bench: MakeBench
) -> None:
    """H2: the metrics are on stdout, the reason is one line on stderr."""
    server = serve(
        lambda request, _: completion("8/10") if answer_number(request) < 2 else fair(request)
    )
    bench = make_bench(6)
    started = start_command(
        bench, server.url, "--out", str(bench.folder / "out"), "--protocol", "paper"
    )
    stdout, stderr = started.communicate(timeout=120)
    assert started.returncode == 6
    assert json.loads(stdout)["figures"]["errors"] == {"one score of two": 2}
    assert "error: 2 of 6 items have no usable verdict (2 one score of two)" in stderr
