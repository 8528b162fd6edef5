"""A server under load, in the slow tier: the schema at random, 200 clients that leave, 2,000 requests in one memory."""

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.server.server_process import ServerProcess, image
from tests.server.test_serve_streams import visit

pytestmark = pytest.mark.slow


def test_c13_schemathesis_finds_no_fault_of_ours(server: ServerProcess) -> None:
    """C13: requests made from the published schema, right and wrong ones, meet no status of 500 or more."""
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
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "/v1/chat/completions" in done.stdout or "generated" in done.stdout


def test_d2_two_hundred_clients_that_leave_change_nothing(server: ServerProcess) -> None:
    """D2: 200 clients at a time, half of which leave: nobody else's tokens change, and nothing is left behind."""
    questions = [f"What is it, {number}?" for number in range(7)]
    alone = {one: server.ask(one, image(), max_tokens=40).text for one in questions}
    order = random.Random(11)
    wrong: list[str] = []
    full: list[int] = []

    def go(number: int, leave: int | None) -> None:
        if not visit(server, questions[number % 7], leave, alone, wrong):
            full.append(number)  # 128 wait and 8 are answered; the others are told to come again

    threads = [
        threading.Thread(target=go, args=(number, order.randrange(30) if number % 2 else None))
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


def test_memory_stays_over_two_thousand_requests(model_folder: Path, loopback: None) -> None:
    """Half with one of 50 images, one in ten cut by its client: with a full cache, memory is what it was.

    What is kept of earlier requests grows up to `engine.cache_bytes`, here 2 MB.
    """
    with ServerProcess(model_folder, "--set", "engine.prefix_cache_bytes=2000000") as server:
        sizes = _sizes(server)
    sys.stderr.write(f"MiB after each 250 requests: {sizes}\n")
    assert sizes[-1] - sizes[1] < 8, sizes


def _sizes(server: ServerProcess) -> list[int]:
    """Ask 2,000 times; return MiB of memory after each 250."""
    images = [image(seed, (40, 30)) for seed in range(50)]
    order = random.Random(3)
    sizes = []
    for number in range(2000):
        shown = [images[order.randrange(50)]] if number % 2 else []
        if number % 10 == 9:
            stream = server.open_stream("What is it?", *shown, max_tokens=60)
            next(stream.events())
            stream.close()
        else:
            assert server.ask(f"What is it, {number}?", *shown).status == 200
        if number % 250 == 249:
            sizes.append(server.memory() >> 20)
    return sizes
