"""How near `caldera data generate` comes to the ideal rate: `python -m benchmarks.teacher_rate`.

A server on loopback, in a process of its own, takes 200 ms for each request; the command asks it 2,000 things, 64 at a
time. Ideal is all requests that were sent, faults among them, in rounds of 64. Once every request is answered well;
once one in ten meets a fault that passes (429 with every form of Retry-After, 500, a body cut off, HTML, an empty
choice); a 429 stops all requests as long as it says, which is added to the ideal. Prints times, shares of the ideal and
the command's memory when a tenth was answered and at its most.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from email.utils import formatdate
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.teacher_server import Answer, TeacherServer, good, write_coco

LATENCY, CONCURRENCY = 0.2, 64
RESTS: tuple[tuple[dict[str, str], float], ...] = (
    ({"retry-after": "0.3"}, 0.3),
    ({"retry-after-ms": "200"}, 0.2),
    ({"retry-after": "-5"}, 0.0),
    ({"retry-after": "soon"}, 0.0),
    ({}, 0.0),
)
"""What a 429 says, and the seconds of rest that it asks for; beside these, a date."""


def healthy(request: dict[str, Any], _number: int) -> tuple[Answer, float]:
    """Answer well."""
    return Answer(good(request).body, delay=LATENCY), 0.0


def faulty(request: dict[str, Any], number: int) -> tuple[Answer, float]:
    """Meet one request in ten with a fault that passes; a 429 once in two hundred."""
    if number % 200 == 7:
        headers, rest = _rest(number // 200)
        return Answer({"error": {"message": "slow down"}}, 429, headers, LATENCY), rest
    faults = {
        3: Answer({"error": "busy"}, 500, {}, LATENCY),
        13: Answer(good(request).body, 200, {}, LATENCY, cut=40),
        23: Answer(b"<html>gateway</html>", 200, {"content-type": "text/html"}, LATENCY),
        33: Answer({"choices": []}, 200, {}, LATENCY),
        43: Answer({"error": "overloaded"}, 529, {}, LATENCY),
    }
    return faults.get(number % 50) or healthy(request, number)[0], 0.0


def _rest(turn: int) -> tuple[dict[str, str], float]:
    """Return what the next 429 says, each form in turn, and the seconds of rest that it asks for."""
    turn %= len(RESTS) + 1
    if turn < len(RESTS):
        return RESTS[turn]
    until = int(time.time()) + 2
    return {"retry-after": formatdate(until, usegmt=True)}, until - time.time() - LATENCY


SCRIPTS: dict[str, Callable[[dict[str, Any], int], tuple[Answer, float]]] = {
    "healthy": healthy,
    "faulty": faulty,
}


def serve(name: str, pipe: Connection) -> None:
    """Serve until told to stop; then send when requests came, the rests asked for, and the most at once."""
    came: list[float] = []
    rests: list[float] = []

    def script(request: dict[str, Any], number: int) -> Answer:
        came.append(time.monotonic())
        answer, rest = SCRIPTS[name](request, number)
        rests.append(rest)
        return answer

    server = TeacherServer(script, keep=False)
    pipe.send(server.url)
    while pipe.recv() == "count":
        pipe.send(server.count)
    pipe.send((came, sum(rests), server.most_under_way))
    server.close()


def measure(name: str, requests: int) -> None:
    """Run the command against one script, and print what it came to."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(name, there))
    server.start()
    with tempfile.TemporaryDirectory() as scratch:
        coco, out = write_coco(Path(scratch) / "coco", requests), Path(scratch) / "data.json"
        command = [
            str(Path(sys.executable).with_name("caldera")), "data", "generate", "coco", str(coco), "--out", str(out),
            "--teacher", "openai", "--base-url", here.recv(), "--model", "small", "--price", "1,2",
            "--kinds", "reasoning", "--set", f"concurrency={CONCURRENCY}", "--set", "initial_backoff=0.05",
        ]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        sizes: list[int] = []
        while process.poll() is None:
            here.send("count")
            if here.recv() > requests // 10:
                sizes.append(_resident(process.pid))
            time.sleep(0.2)
        here.send("stop")
        came, rests, most = here.recv()
        records = len(json.loads(out.read_text()))
    server.join()
    ideal = math.ceil(len(came) / CONCURRENCY) * LATENCY + rests
    took = came[-1] - came[0] + LATENCY
    print(
        f"{name}: {records} of {requests} dialogues, {len(came)} requests, at most {most} at once, "
        f"{rests:.1f} s of rest asked for; {took:.2f} s, ideal {ideal:.2f} s: {ideal / took:.1%}; "
        f"memory {sizes[0] / 1e6:.0f} to {max(sizes) / 1e6:.0f} MB"
    )


def _resident(process: int) -> int:
    """Return the bytes of memory that a process holds, 0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    for name in SCRIPTS:
        measure(name, given.requests)


if __name__ == "__main__":
    main()
