"""Request rate of `caldera data generate` relative to the ideal: `python -m benchmarks.teacher_rate`.

A server on loopback, in its own process, takes 200 ms per request; the command sends 2,000 requests, 64 concurrently.
The ideal is all sent requests, failed ones included, in rounds of 64. In the first run every request succeeds; in the
second one in ten has a transient error (429 with every form of Retry-After, 500, a truncated body, HTML, an empty
choice); a 429 pauses all requests for the time it asks for, which is added to the ideal. Prints times, the fraction of
the ideal rate, and the command's memory after a tenth of the requests and at its maximum.
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
RETRY_AFTERS: tuple[tuple[dict[str, str], float], ...] = (
    ({"retry-after": "0.3"}, 0.3),
    ({"retry-after-ms": "200"}, 0.2),
    ({"retry-after": "-5"}, 0.0),
    ({"retry-after": "soon"}, 0.0),
    ({}, 0.0),
)
"""Headers of a 429 and the pause in seconds they ask for; a date is another form."""


def healthy(request: dict[str, Any], _number: int) -> tuple[Answer, float]:
    """Return a valid answer."""
    return Answer(good(request).body, delay=LATENCY), 0.0


def faulty(request: dict[str, Any], number: int) -> tuple[Answer, float]:
    """Return a transient error for one request in ten, a 429 for one in two hundred."""
    if number % 200 == 7:
        headers, pause = _retry_after(number // 200)
        return Answer({"error": {"message": "slow down"}}, 429, headers, LATENCY), pause
    errors = {
        3: Answer({"error": "busy"}, 500, {}, LATENCY),
        13: Answer(good(request).body, 200, {}, LATENCY, cut=40),
        23: Answer(b"<html>gateway</html>", 200, {"content-type": "text/html"}, LATENCY),
        33: Answer({"choices": []}, 200, {}, LATENCY),
        43: Answer({"error": "overloaded"}, 529, {}, LATENCY),
    }
    return errors.get(number % 50) or healthy(request, number)[0], 0.0


def _retry_after(number: int) -> tuple[dict[str, str], float]:
    """Return the headers of a 429, every form in turn, and the pause in seconds they ask for."""
    index = number % (len(RETRY_AFTERS) + 1)
    if index < len(RETRY_AFTERS):
        return RETRY_AFTERS[index]
    until = int(time.time()) + 2
    return {"retry-after": formatdate(until, usegmt=True)}, until - time.time() - LATENCY


SCRIPTS: dict[str, Callable[[dict[str, Any], int], tuple[Answer, float]]] = {
    "healthy": healthy,
    "faulty": faulty,
}


def serve(name: str, pipe: Connection) -> None:
    """Serve until stopped; then send the times of requests, the total pause, and the maximal concurrency."""
    times: list[float] = []
    pauses: list[float] = []

    def script(request: dict[str, Any], number: int) -> Answer:
        times.append(time.monotonic())
        answer, pause = SCRIPTS[name](request, number)
        pauses.append(pause)
        return answer

    server = TeacherServer(script, keep=False)
    pipe.send(server.url)
    while pipe.recv() == "count":
        pipe.send(server.count)
    pipe.send((times, sum(pauses), server.max_active))
    server.close()


def measure(name: str, requests: int) -> None:
    """Run the command against one script and print the result."""
    pipe, server_pipe = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(name, server_pipe))
    server.start()
    with tempfile.TemporaryDirectory() as scratch:
        coco, out = write_coco(Path(scratch) / "coco", requests), Path(scratch) / "data.json"
        command = [
            str(Path(sys.executable).with_name("caldera")), "data", "generate", "coco", str(coco), "--out", str(out),
            "--teacher", "openai", "--base-url", pipe.recv(), "--model", "small", "--price", "1,2",
            "--kinds", "reasoning", "--set", f"concurrency={CONCURRENCY}", "--set", "initial_backoff=0.05",
        ]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        sizes: list[int] = []
        while process.poll() is None:
            pipe.send("count")
            if pipe.recv() > requests // 10:
                sizes.append(_resident(process.pid))
            time.sleep(0.2)
        pipe.send("stop")
        times, pauses, max_active = pipe.recv()
        records = len(json.loads(out.read_text()))
    server.join()
    ideal = math.ceil(len(times) / CONCURRENCY) * LATENCY + pauses
    seconds = times[-1] - times[0] + LATENCY
    print(
        f"{name}: {records} of {requests} dialogues, {len(times)} requests, at most {max_active} concurrently, "
        f"{pauses:.1f} s of pauses; {seconds:.2f} s, ideal {ideal:.2f} s: {ideal / seconds:.1%}; "
        f"memory {sizes[0] / 1e6:.0f} to {max(sizes) / 1e6:.0f} MB"
    )


def _resident(process: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def main() -> None:
    """Measure both scripts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    for name in SCRIPTS:
        measure(name, args.requests)


if __name__ == "__main__":
    main()
