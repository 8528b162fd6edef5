"""Prefetched batches do not depend on the number of workers; a worker that dies, hangs or fails is named."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caldera.conversation import write_conversations
from caldera.devices import Runtime
from caldera.errors import ImageError, TrainingError
from caldera.files.atomic import lock_folder
from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from caldera.training.checkpoint import latest_checkpoint
from caldera.training.hyperparameters import FINETUNE
from caldera.training.metrics_log import read_metrics
from caldera.training.prefetch import PrefetchConfig, prefetch
from tests.training.jobs import FP32, dialogues, make_job


@dataclass(frozen=True, slots=True)
class Numbered:
    """Result of an item in these tests."""

    number: int
    tensors: tuple[Tensor, ...]


def make_tensors(number: int) -> Numbered:
    """Return tensors of several dtypes and shapes, some empty."""
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(number))
    return Numbered(
        number, (values, values.T.bfloat16(), values > 0, torch.tensor(number), values[:0].long())
    )


def name(number: int) -> str:
    """Return the name of an item."""
    return f"record 'r{number}'"


def stuck_at(stop: int) -> Callable[[int], int]:
    """Return a function that blocks at one item until a signal ends it."""

    def make(number: int) -> int:
        while number == stop:
            signal.pause()
        return number

    return make


@pytest.fixture(autouse=True)
def nothing_remains() -> Iterator[None]:
    """Check that no worker process and no thread outlives a test."""
    yield
    assert multiprocessing.active_children() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "loading"]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_order_and_bits_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    """Also where the plan is a generator, has fewer items than workers, or is empty."""
    for length in (0, 1, 7):
        plan = (number for number in range(length))
        with prefetch(
            plan, make_tensors, config=PrefetchConfig(workers=workers), name=name
        ) as batches:
            results = list(batches)
        assert [item for item, _ in results] == list(range(length))
        for item, result in results:
            assert result.number == item
            for tensor, expected in zip(result.tensors, make_tensors(item).tensors, strict=True):
                assert tensor.dtype == expected.dtype
                assert torch.equal(tensor, expected)
                assert tensor.shape == expected.shape
            # The tensors are writable.
            result.tensors[0].add_(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_its_record_and_is_raised_in_order(workers: int) -> None:
    """Earlier results are returned first; the type of the error is unchanged."""

    def make(number: int) -> int:
        if number == 4:
            raise ImageError("4.png is broken; replace it")
        return number

    with prefetch(range(9), make, config=PrefetchConfig(workers=workers), name=name) as batches:
        assert [next(batches)[0] for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(ImageError, match=r"^record 'r4': 4\.png is broken; replace it$"):
            next(batches)


def test_a_killed_worker_is_named() -> None:
    """SIGKILL in the middle of a batch is an error that names the worker, the signal and the record."""
    with prefetch(range(9), stuck_at(3), config=PrefetchConfig(workers=2), name=name) as batches:
        assert [next(batches)[0] for _ in range(3)] == [0, 1, 2]
        victim = batches._workers[1]._process.pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(
            TrainingError,
            match=rf"loading worker 1 \(process {victim}\) was ended by signal 9 \(Killed; if memory ran out .*\) at "
            "record 'r3'",
        ):
            next(batches)


def test_a_worker_that_hangs_is_named() -> None:
    """After the timeout, and it is killed."""
    with prefetch(
        range(9), stuck_at(1), config=PrefetchConfig(workers=2, timeout=1), name=name
    ) as batches:
        assert next(batches)[0] == 0
        hanging = batches._workers[1]._process.pid
        with pytest.raises(
            TrainingError,
            match=rf"loading worker 1 \(process {hanging}\) has not finished record 'r1' after 1 s; check that",
        ):
            next(batches)


def test_a_thread_that_hangs_is_not_joined() -> None:
    """It cannot be stopped, but the run ends with an error."""
    release = threading.Event()

    def make(number: int) -> int:
        if number == 1:
            release.wait()
        return number

    with prefetch(range(9), make, config=PrefetchConfig(timeout=0.3), name=name) as batches:
        assert next(batches)[0] == 0
        with pytest.raises(
            TrainingError, match=r"^loading has not finished record 'r1' after 0\.3 s"
        ):
            next(batches)
    release.set()
    batches._thread.join()


def test_a_bug_in_a_worker_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """An error that is not of the data ends the worker with its traceback, and the run with the worker's name."""
    with prefetch(
        [2, 1, 0], lambda number: 2 // number, config=PrefetchConfig(workers=1), name=name
    ) as batches:
        assert [next(batches)[1] for _ in range(2)] == [1, 2]
        with pytest.raises(TrainingError, match=r"ended with exit code 1, .* at record 'r0'"):
            next(batches)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_bug_in_the_thread_is_raised_in_the_consumer() -> None:
    """As if the result had been made there."""
    with prefetch(
        [1, 0], lambda number: 2 // number, config=PrefetchConfig(), name=name
    ) as batches:
        assert next(batches) == (1, 2)
        with pytest.raises(ZeroDivisionError):
            next(batches)


def test_only_a_few_results_are_made_in_advance() -> None:
    """Memory holds the consumed results and `depth` more."""
    started: list[int] = []
    with prefetch(
        range(99), lambda number: started.append(number), config=PrefetchConfig(), name=name
    ) as batches:
        for consumed in range(1, 30):
            next(batches)
            assert len(started) <= consumed + 2


@pytest.mark.parametrize("workers", [0, 2])
def test_iteration_may_stop_early(workers: int) -> None:
    """No more results are made; `nothing_remains` checks it."""
    with prefetch(
        iter(range(10**9)), make_tensors, config=PrefetchConfig(workers=workers), name=name
    ) as batches:
        next(batches)


RUN = """
import signal, sys
from pathlib import Path
from caldera.files.atomic import lock_folder
from caldera.training.prefetch import PrefetchConfig, prefetch
from tests.training.test_prefetch import name, stuck_at
config = PrefetchConfig(workers=2)
with lock_folder(Path(sys.argv[1])), prefetch(range(9), stuck_at(1), config=config, name=name) as batches:
    print(*(worker._process.pid for worker in batches._workers), flush=True)
    signal.pause()
"""


def test_lock_and_workers_of_a_killed_run_end_with_it(tmp_path: Path) -> None:
    """A worker that outlives the kill holds no lock of the run; it ends when it has a result to send."""
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    ready, hanging = map(int, run.stdout.readline().split())
    run.kill()
    run.wait()
    run.stdout.close()
    try:
        with lock_folder(tmp_path):
            # It is still running.
            os.kill(hanging, 0)
        ends_soon(ready)
    finally:
        os.kill(hanging, signal.SIGKILL)


def ends_soon(process: int) -> None:
    """Wait for the end of a process that is not this one's child."""
    for _ in range(600):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                # A zombie: no process reads its exit code in this container.
                return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {process} is still running")


def test_training_does_not_depend_on_the_number_of_workers(
    start: Callable[[], LlavaBundle], photos: Path, tmp_path: Path
) -> None:
    """Pixels decoded by no, one and two workers give the same weights; each step logs the fraction of time waited."""
    stage = replace(
        FINETUNE,
        learning_rate=3e-3,
        batch_size=4,
        micro_batch_size=3,
        validation_size=4,
        max_length=256,
        cache_features=False,
        trainable=("vision", "projector", "language"),
    )
    weights = []
    for workers in range(3):
        out = tmp_path / str(workers)
        runtime = Runtime(FP32, NoProgress(), workers)
        trained, _ = make_job(start(), photos, out, stage, runtime=runtime).run()
        weights.append(trained.model.state_dict())
        fractions = [
            event["data_wait_fraction"] for event in read_metrics(out / "metrics.jsonl")[1:]
        ]
        assert len(fractions) == 9
        assert all(0 <= fraction <= 1 for fraction in fractions)
    for name_, weight in weights[0].items():
        assert torch.equal(weights[1][name_], weight), name_
        assert torch.equal(weights[2][name_], weight), name_


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "code"), [(signal.SIGKILL, 7), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_the_command_ends_with_its_workers(
    assistant: LlavaBundle, photos: Path, tmp_path: Path, end: signal.Signals, code: int
) -> None:
    """A killed worker is a training error with its exit code; a signal to all processes ends all of them (F4, F10).

    In each case the step is finished and saved, and the message says so.
    """
    save_model_folder(tmp_path / "start", assistant)
    write_conversations(tmp_path / "data.json", dialogues(40))
    # SIGINT is ignored where tests run in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "caldera", "train", "finetune", "--workers", "2"),
            *("--model", str(tmp_path / "start"), "--data", str(tmp_path / "data.json")),
            *("--images", str(photos), "--out", str(tmp_path / "run")),
            *("--set", "batch_size=4", "--set", "epochs=100000", "--set", "cache_features=false"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    metrics = tmp_path / "run" / "metrics.jsonl"
    while len(read_metrics(metrics)) < 5:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    workers = _children(process.pid)
    assert len(workers) == 2
    if end == signal.SIGKILL:
        os.kill(workers[0], end)
    else:
        os.killpg(process.pid, end)
    try:
        stderr = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        # It would train during the tests that follow.
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code, stderr
    if end == signal.SIGKILL:
        assert re.search(r"loading worker \d \(process \d+\) was ended by signal 9", stderr)
    else:
        assert stderr.count(f"{end.name} received: finishing the current step") == 1
        assert "stopped stage 'finetune'; step " in stderr
    assert "Traceback" not in stderr
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert f"step {checkpoint.step} of 900000 is saved in" in stderr
    for worker in workers:
        ends_soon(worker)


def _children(process: int) -> list[int]:
    """Return the child processes of a process."""
    return [
        int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]
