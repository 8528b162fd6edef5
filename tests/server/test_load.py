"""Load tests, in the slow tier: random requests by schema, 200 clients, and memory over 2,000 requests."""

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.server.server_process import (
    ServerProcess,
    make_image,
    stream_or_leave,
)

pytestmark = pytest.mark.soak


def test_schemathesis_finds_no_server_error(server: ServerProcess) -> None:
    """Valid and invalid requests generated from the published schema get no status of 500 or more."""
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    words = (
        "run",
        url,
        "--checks",
        "not_a_server_error",
        "--max-examples",
        "60",
        "--seed",
        "7",
        "--no-color",
    )
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    result = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "/v1/chat/completions" in result.stdout or "generated" in result.stdout


def test_two_hundred_clients_that_disconnect_change_nothing(server: ServerProcess) -> None:
    """Of 200 concurrent clients half disconnect: the tokens of the others do not change."""
    questions = [f"What is it, {number}?" for number in range(7)]
    alone = {
        question: server.ask(question, make_image(), max_tokens=40).text for question in questions
    }
    order = random.Random(11)
    wrong: list[str] = []
    full: list[int] = []

    def run_client(number: int, leave: int | None) -> None:
        if not stream_or_leave(server, questions[number % 7], leave, alone, wrong):
            # at most 128 wait and 8 are answered
            full.append(number)

    threads = [
        threading.Thread(
            target=run_client, args=(number, order.randrange(30) if number % 2 else None)
        )
        for number in range(200)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(full) < 100
    server.wait_until(
        lambda: server.metric("caldera_running") + server.metric("caldera_waiting") == 0
    )


def test_memory_does_not_grow_over_two_thousand_requests(
    model_folder: Path, loopback: None
) -> None:
    """Half with one of 50 images, one in ten disconnected: with a full prefix cache of 2 MB, memory does not grow."""
    with ServerProcess(model_folder, "--set", "engine.prefix_cache_bytes=2000000") as server:
        sizes = _memory_sizes(server)
    sys.stderr.write(f"MiB after each 250 requests: {sizes}\n")
    assert sizes[-1] - sizes[1] < 8, sizes


def _memory_sizes(server: ServerProcess) -> list[int]:
    """Send 2,000 requests; return the memory in MiB after each 250."""
    images = [make_image(seed, (40, 30)) for seed in range(50)]
    order = random.Random(3)
    sizes = []
    for number in range(2000):
        question_images = [images[order.randrange(50)]] if number % 2 else []
        if number % 10 == 9:
            stream = server.open_stream("What is it?", *question_images, max_tokens=60)
            next(stream.events())
            stream.close()
        else:
            assert server.ask(f"What is it, {number}?", *question_images).status == 200
        if number % 250 == 249:
            sizes.append(server.memory() >> 20)
    return sizes
