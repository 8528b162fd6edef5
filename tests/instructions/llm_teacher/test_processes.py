"""The command in a process of its own: killed at any point it goes on, and fast where the teacher allows it."""

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

from caldera.instructions.llm_teacher.teacher import run_folder
from tests.teacher_server import Answer, TeacherServer, completion, good

KEY = "sk-process-0123456789abcdef"
Serve = Callable[..., TeacherServer]


def command(folder: Path, out: Path, url: str, *more: str) -> subprocess.Popen[str]:
    """Start the command; the key is in its environment alone."""
    words = ["data", "generate", "coco", str(folder), "--out", str(out), "--teacher", "openai"]
    words += ["--base-url", url, "--model", "little-teacher", "--price", "1,2", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "caldera", *words],
        env={**os.environ, "OPENAI_API_KEY": KEY, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a command that should end well, and return what it said."""
    said, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    return said + told


def records(out: Path) -> set[str]:
    """Read a data file as a set of records, paths of images left out."""
    read = json.loads(out.read_text())
    assert len({record["id"] for record in read}) == len(read)
    return {json.dumps([record["id"], record["conversations"]]) for record in read}


def faulty(request: dict[str, Any], number: int) -> Answer:
    """Answer after a moment; refuse the form of some images and fail now and then, as real services do."""
    told = json.dumps(request["messages"])
    if number % 13 == 5:
        return Answer({"error": "busy"}, 500)
    if "seen 11 times" in told:
        return completion("No form.")
    return Answer(good(request).body, delay=0.02)


@pytest.mark.parametrize(
    ("kills", "images"), [(2, 40), pytest.param(20, 160, marks=pytest.mark.slow)]
)
def test_a_run_killed_at_random_ends_as_one_that_was_not(
    tmp_path: Path, serve: Serve, coco: Callable[[int], Path], kills: int, images: int
) -> None:
    """The same records, no id lost or doubled, and nothing asked again but what was in flight."""
    rng, folder = random.Random(kills), coco(images)
    options = (
        "--kinds",
        "reasoning,conversation:1",
        "--set",
        "concurrency=4",
        "--set",
        "initial_backoff=0.01",
    )
    whole = serve(faulty)
    finish(command(folder, tmp_path / "whole.json", whole.url, *options))
    server, out = serve(faulty), tmp_path / "killed.json"
    for _ in range(kills):
        process = command(folder, out, server.url, *options)
        until = server.count + rng.randrange(1, max(2, 2 * images // kills))
        while server.count < until and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    said = finish(command(folder, out, server.url, *options))
    assert records(out) == records(tmp_path / "whole.json")
    assert len(records(out)) == 2 * images - 2
    lists = [
        [json.loads(line)["id"] for line in (run_folder(out) / name).read_text().splitlines()]
        for name in ("provenance.jsonl", "refused.jsonl", "failed.jsonl")
    ]
    assert [len(each) for each in lists] == [2 * images - 2, 2, 0]
    assert len({name for each in lists for name in each}) == 2 * images
    again = server.count - whole.count
    assert -images // 2 <= again <= kills * 4 + images // 2  # faults fall on other requests in each
    heard = Counter(
        line["heard"]
        for line in map(json.loads, (run_folder(out) / "journal.jsonl").read_text().splitlines())
        if "heard" in line
    )
    refused = {*lists[1]}
    assert all(times == (2 if name in refused else 1) for name, times in heard.items())
    assert KEY not in said
    assert not any(KEY in path.read_text() for path in tmp_path.glob("killed*/*"))


def test_ctrl_c_ends_a_run_in_one_line_and_it_goes_on(
    tmp_path: Path, serve: Serve, coco: Callable[[int], Path]
) -> None:
    """Exit code 130, no traceback; a second start at the same time is refused, a later one finishes."""
    stopped: list[bool] = []

    def script(request: dict[str, Any], number: int) -> Answer:
        late = number >= 40 and not stopped  # so that the first start cannot end by itself
        return Answer(good(request).body, delay=60.0 if late else 0.05)

    server = serve(script)
    folder, out = coco(120), tmp_path / "data.json"
    options = ("--kinds", "reasoning", "--set", "concurrency=4")
    process = command(folder, out, server.url, *options)
    while server.count < 8 and process.poll() is None:
        time.sleep(0.01)
    second = command(folder, out, server.url, *options)
    _, told = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"is in use by process {process.pid}" in told
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    stopped.append(True)
    assert process.returncode == 130, told
    assert "stopped; what was finished is kept" in told
    assert "Traceback" not in told
    finish(command(folder, out, server.url, *options))
    assert len(records(out)) == 120
    assert server.count <= 124


def test_the_key_is_not_in_the_list_of_processes(
    tmp_path: Path, serve: Serve, coco: Callable[[int], Path]
) -> None:
    """Whoever lists processes sees the command, and not the key; a quota ends it with code 5 in one line."""
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
    process = command(coco(2), tmp_path / "data.json", server.url)
    running.append(process)
    started.set()
    said, told = process.communicate(timeout=60)
    assert process.returncode == 5
    assert b"little-teacher" in seen[0]
    assert KEY.encode() not in b"".join(seen)
    assert KEY not in said + told
    assert "quota is used up" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_two_thousand_requests_are_answered_in_little_memory(
    tmp_path: Path, serve: Serve, coco: Callable[[int], Path]
) -> None:
    """64 at a time, each taking 200 ms: none is lost, memory stays flat; the rate is printed, no time decides."""
    came: list[float] = []

    def script(request: dict[str, Any], _number: int) -> Answer:
        came.append(time.monotonic())
        return Answer(good(request).body, delay=0.2)

    server = serve(script, keep=False)
    process = command(
        coco(2000),
        tmp_path / "data.json",
        server.url,
        "--kinds",
        "reasoning",
        "--set",
        "concurrency=64",
    )
    sizes: list[int] = []
    while process.poll() is None and len(came) < 2000:
        if len(came) > 200:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            sizes.append(pages * resource.getpagesize())
        time.sleep(0.1)
    finish(process)
    ideal = math.ceil(2000 / 64) * 0.2
    took = came[-1] - came[0] + 0.2
    print(  # noqa: T201 - what it measured
        f"{took:.2f} s, ideal {ideal:.2f} s: {ideal / took:.1%}; memory {sizes[0]} to {max(sizes)}"
    )
    assert server.max_active == 64
    assert server.count == 2000
    assert len(records(tmp_path / "data.json")) == 2000
    assert max(sizes) - sizes[0] < 30_000_000
