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
RESTS: tuple[dict[str, str], ...] = (
    {"retry-after": "0.3"},
    {"retry-after-ms": "200"},
    {"retry-after": "-5"},
    {"retry-after": "soon"},
    {},
)
"""What a 429 says; beside these, a date."""


def healthy(request: dict[str, Any], _number: int) -> Answer:
    """Answer well."""
    return Answer(good(request).body, delay=LATENCY)


def faulty(request: dict[str, Any], number: int) -> Answer:
    """Meet one request in ten with a fault that passes; a 429 once in two hundred."""
    if number % 200 == 7:
        told = RESTS[number // 200 % (len(RESTS) + 1)] if number // 200 % 6 < 5 else None
        headers = (
            {"retry-after": formatdate(time.time() + 1, usegmt=True)} if told is None else told
        )
        return Answer({"error": {"message": "slow down"}}, 429, headers, LATENCY)
    faults = {
        3: Answer({"error": "busy"}, 500, {}, LATENCY),
        13: Answer(good(request).body, 200, {}, LATENCY, cut=40),
        23: Answer(b"<html>gateway</html>", 200, {"content-type": "text/html"}, LATENCY),
        33: Answer({"choices": []}, 200, {}, LATENCY),
        43: Answer({"error": "overloaded"}, 529, {}, LATENCY),
    }
    return faults.get(number % 50, healthy(request, number))


SCRIPTS: dict[str, Callable[[dict[str, Any], int], Answer]] = {"healthy": healthy, "faulty": faulty}


def serve(name: str, pipe: Connection) -> None:
    """Serve until told to stop; then send when each request came, and the most at once."""
    came: list[float] = []

    def script(request: dict[str, Any], number: int) -> Answer:
        came.append(time.monotonic())
        return SCRIPTS[name](request, number)

    server = TeacherServer(script, keep=False)
    pipe.send(server.url)
    while pipe.recv() == "count":
        pipe.send(server.count)
    pipe.send((came, server.most_under_way))
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
            "--kinds", "reasoning", "--set", f"concurrency={CONCURRENCY}", "--set", "first_wait=0.05",
        ]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        sizes: list[int] = []
        while process.poll() is None:
            here.send("count")
            if here.recv() > requests // 10:
                sizes.append(_resident(process.pid))
            time.sleep(0.2)
        here.send("stop")
        came, most = here.recv()
        records = len(json.loads(out.read_text()))
    server.join()
    ideal, took = math.ceil(len(came) / CONCURRENCY) * LATENCY, came[-1] - came[0] + LATENCY
    print(
        f"{name}: {records} of {requests} dialogues, {len(came)} requests, at most {most} at once; {took:.2f} s, "
        f"ideal {ideal:.2f} s: {ideal / took:.1%}; memory {sizes[0] / 1e6:.0f} to {max(sizes) / 1e6:.0f} MB"
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
