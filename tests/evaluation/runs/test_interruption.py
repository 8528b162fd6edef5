"""Interrupted runs: every answer that is told as kept is kept, and the next start ends with the same bytes."""

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import Interrupted
from caldera.evaluation.answerers import remote_server
from caldera.evaluation.answerers.answerer import AnswerConfig
from caldera.evaluation.answerers.remote_server import ServerAddress, ServerAnswerer
from caldera.evaluation.runs.run import evaluate
from caldera.formats.model_folder import save_model_folder
from caldera.interruption import SIGNALS, stop_at_once
from caldera.model.bundle import LlavaBundle
from tests import teacher_server
from tests.evaluation.questions import number_in, questions, right
from tests.evaluation.runs.test_run import COUNT, run
from tests.teacher_server import Script, TeacherServer

OUTSIDE = "stopped outside of the answers"


@contextmanager
def stoppable(timer: threading.Timer | None = None) -> Iterator[list[str]]:
    """Handle signals as the command line does, and yield the messages of what they stopped."""
    messages: list[str] = []
    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, stop_at_once)
    try:
        try:
            if timer is not None:
                timer.start()
            yield messages
        except Interrupted as interrupted:
            messages.append(f"{interrupted.exit_code}: {interrupted}")
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()
    except KeyboardInterrupt:
        messages.append(OUTSIDE)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def send(number: int) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), number)


def check_message(message: str, number: int, out: Path) -> int:
    """Check that the number of answers in a message is that of the journal, and return it."""
    match = re.fullmatch(
        rf"{128 + number}: stopped; (\d+) of {COUNT} answers are kept in (\S+); repeat the command to resume",
        message,
    )
    assert match, message
    assert Path(match[2]) == out / "journal.jsonl"
    lines = map(json.loads, (out / "journal.jsonl").read_text("utf-8").splitlines())
    assert int(match[1]) == sum(len(line["answers"]) for line in lines)
    return int(match[1])


# What a signal raises inside a callback of the garbage collector, Python prints and drops.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_model_stopped_at_any_moment_resumes_to_the_same_bytes(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """H1: Ctrl-C or SIGTERM at five random moments; the message counts what the journal holds."""
    save_model_folder(tmp_path / "model", assistant)
    start = time.perf_counter()
    run(tmp_path / "model", photos, tmp_path / "whole")
    seconds = time.perf_counter() - start
    out, random_moments = tmp_path / "out", random.Random(7)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        timer = threading.Timer(random_moments.uniform(0, seconds), send, [number])
        with stoppable(timer) as messages:
            run(tmp_path / "model", photos, out)
        for message in messages:
            assert message == OUTSIDE or check_message(message, number, out) <= COUNT
    run(tmp_path / "model", photos, out)
    for name in ("results.json", "answers.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("temperature", "num_kept"), [(0.0, 9), (0.5, None)])
def test_a_stopped_server_run_keeps_the_answers_that_arrived(
    serve: Callable[[Script], TeacherServer],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
    num_kept: int | None,
) -> None:
    """H1: requests in flight get some time; the next start asks the rest. H5: sampled answers are not kept."""
    monkeypatch.setattr(remote_server, "_GRACE_SECONDS", 0.1)
    asked_numbers: list[int] = []

    def script(request: dict[str, Any], count: int) -> teacher_server.Answer:
        asked_numbers.append(number_in(request))
        if len(asked_numbers) == 10:
            send(signal.SIGTERM)
            time.sleep(0.5)
        return right(request, count)

    server, out = serve(script), tmp_path / "out"
    config = AnswerConfig(concurrency=1, temperature=temperature)
    answerer = ServerAnswerer(ServerAddress(url=server.url, model="m"), config)
    with stoppable() as messages:
        evaluate(questions(COUNT), answerer, folder=photos, out=out)
    [message] = messages
    if num_kept is None:
        expected = "143: stopped; answers at a temperature above 0 are not kept; repeat the command"
        assert message == expected
        return
    assert check_message(message, signal.SIGTERM, out) == num_kept
    first = set(asked_numbers[:num_kept])
    asked_numbers[:] = [-1] * 10
    results = evaluate(questions(COUNT), answerer, folder=photos, out=out)
    assert results["counts"]["answered"] == COUNT
    assert len(asked_numbers[10:]) == COUNT - num_kept
    assert not first & {*asked_numbers[10:]}
