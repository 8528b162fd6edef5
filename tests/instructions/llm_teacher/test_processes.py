"""The command in its own process: it resumes after a kill at any point, and is as fast as the server allows."""

import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.instructions.llm_teacher.runs import read_lines
from tests.teacher_server import Answer, TeacherServer, completion, good

KEY = "sk-process-0123456789abcdef"
Serve = Callable[..., TeacherServer]


def start(folder: Path, out: Path, url: str, *options: str) -> subprocess.Popen[str]:
    """Start the command with the key in its environment only."""
    arguments = ["data", "generate", "coco", str(folder), "--out", str(out), "--teacher", "openai"]
    arguments += ["--base-url", url, "--model", "little-teacher", "--price", "1,2", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "caldera", *arguments],
        env={**os.environ, "OPENAI_API_KEY": KEY, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a command that should succeed, and return its output."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output + errors


def read_records(out: Path) -> set[str]:
    """Return the records of a data file, without image paths."""
    content = json.loads(out.read_text())
    assert len({record["id"] for record in content}) == len(content)
    return {json.dumps([record["id"], record["conversations"]]) for record in content}


def faulty(request: dict[str, Any], number: int) -> Answer:
    """Answer after a delay, with malformed replies for some images and occasional errors, as real services do."""
    text = json.dumps(request["messages"])
    if number % 13 == 5:
        return Answer({"error": "busy"}, 500)
    if "seen 11 times" in text:
        return completion("No form.")
    return Answer(good(request).body, delay=0.02)


@pytest.mark.parametrize(
    ("kills", "images"), [(2, 40), pytest.param(20, 160, marks=pytest.mark.soak)]
)
def test_a_killed_run_has_the_same_result(
    tmp_path: Path, serve: Serve, coco: Callable[[int], Path], kills: int, images: int
) -> None:
    """The same records, each id once, and only requests that were in flight are sent again."""
    rng, folder = random.Random(kills), coco(images)
    settings = ("concurrency=4", "initial_backoff=0.01")
    options = ("--kinds", "reasoning,conversation:1", *(f"--set={setting}" for setting in settings))
    reference = serve(faulty)
    finish(start(folder, tmp_path / "reference.json", reference.url, *options))
    server, out = serve(faulty), tmp_path / "killed.json"
    for _ in range(kills):
        process = start(folder, out, server.url, *options)
        until = server.count + rng.randrange(1, max(2, 2 * images // kills))
        while server.count < until and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    output = finish(start(folder, out, server.url, *options))
    assert read_records(out) == read_records(tmp_path / "reference.json")
    assert len(read_records(out)) == 2 * images - 2
    provenance, rejected, failed = (
        [line["id"] for line in read_lines(out, f"{name}.jsonl")]
        for name in ("provenance", "rejected", "failed")
    )
    assert [len(provenance), len(rejected), len(failed)] == [2 * images - 2, 2, 0]
    assert len({*provenance, *rejected}) == 2 * images
    # Faults are in other requests of each run.
    num_repeated = server.count - reference.count
    assert -images // 2 <= num_repeated <= kills * 4 + images // 2
    num_received = Counter(
        line["received"] for line in read_lines(out, "journal.jsonl") if "received" in line
    )
    assert all(num_received[name] == (2 if name in rejected else 1) for name in num_received)
    assert KEY not in output
    assert not any(KEY in path.read_text() for path in tmp_path.glob("killed*/*"))


def test_ctrl_c_ends_a_run_in_one_line_and_it_is_resumed(
    tmp_path: Path, serve: Serve, coco: Callable[[int], Path]
) -> None:
    """Replies in flight are kept, exit code 130; a second start meanwhile is an error, a later one finishes."""
    stopped: list[bool] = []

    def script(request: dict[str, Any], number: int) -> Answer:
        # So that the first start cannot end by itself.
        late = number >= 8 and not stopped
        return Answer(good(request).body, delay=2.0 if late else 0.01)

    server = serve(script)
    folder, out = coco(120), tmp_path / "data.json"
    options = ("--kinds", "reasoning", "--set", "concurrency=4")
    process = start(folder, out, server.url, *options)
    while server.count < 8 and process.poll() is None:
        time.sleep(0.01)
    second = start(folder, out, server.url, *options)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"is in use by process {process.pid}" in errors
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    stopped.append(True)
    assert process.returncode == 130, errors
    num_kept = len(read_records(out))
    assert num_kept >= 8
    assert (
        f"stopped; {num_kept} dialogues are finished (in {out}), {120 - num_kept} are left"
        in errors
    )
    assert "Traceback" not in errors
    finish(start(folder, out, server.url, *options))
    assert len(read_records(out)) == 120
    assert server.count == 120


def test_the_key_is_not_in_the_list_of_processes(
    tmp_path: Path, serve: Serve, coco: Callable[[int], Path]
) -> None:
    """The command line does not contain it; an exhausted quota ends the command with code 5 in one line."""
    seen: list[bytes] = []
    running: list[subprocess.Popen[str]] = []
    started = threading.Event()

    def script(request: dict[str, Any], _number: int) -> Answer:
        started.wait(10)
        seen.append(Path(f"/proc/{running[0].pid}/cmdline").read_bytes())
        return Answer(
            {"error": {"message": f"no money on {KEY}", "code": "insufficient_quota"}}, 429
        )

    server = serve(script)
    process = start(coco(2), tmp_path / "data.json", server.url)
    running.append(process)
    started.set()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert b"little-teacher" in seen[0]
    assert KEY.encode() not in b"".join(seen)
    assert KEY not in output + errors
    assert "quota is used up" in errors
    assert "Traceback" not in errors


@pytest.mark.soak
def test_two_thousand_requests_are_answered_in_little_memory(
    tmp_path: Path, serve: Serve, coco: Callable[[int], Path]
) -> None:
    """64 at a time, each of 200 ms: none is lost, memory is constant; the rate is printed, but not tested."""
    times: list[float] = []

    def script(request: dict[str, Any], _number: int) -> Answer:
        times.append(time.monotonic())
        return Answer(good(request).body, delay=0.2)

    server = serve(script, keep=False)
    options = ("--kinds", "reasoning", "--set", "concurrency=64")
    process = start(coco(2000), tmp_path / "data.json", server.url, *options)
    sizes: list[int] = []
    while process.poll() is None and len(times) < 2000:
        if len(times) > 200:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            sizes.append(pages * resource.getpagesize())
        time.sleep(0.1)
    finish(process)
    ideal = math.ceil(2000 / 64) * 0.2
    seconds = times[-1] - times[0] + 0.2
    print(  # noqa: T201 - the measurement
        f"{seconds:.2f} s, ideal {ideal:.2f} s: {ideal / seconds:.1%}; memory {sizes[0]} to {max(sizes)}"
    )
    assert server.max_active == 64
    assert server.count == 2000
    assert len(read_records(tmp_path / "data.json")) == 2000
    assert max(sizes) - sizes[0] < 30_000_000
