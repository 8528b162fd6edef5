"""Batches made ahead are the same whoever makes them, and one who dies, hangs or fails is named, not waited for."""

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

from caldera.conversation import Conversation, ImageRef, Turn, write_conversations
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import ImageError, TrainingError
from caldera.files.atomic import lock_folder
from caldera.files.skipped import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import save_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.progress import NoProgress
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.metrics_log import read_metrics
from caldera.training.prefetch import PrefetchConfig, prefetch
from caldera.training.stage import FINETUNE


@dataclass(frozen=True, slots=True)
class Laid:
    """What is made in these tests."""

    number: int
    tensors: tuple[Tensor, ...]


def lay(number: int) -> Laid:
    """Make tensors of several precisions and shapes, some without content."""
    drawn = torch.randn(3, 5, generator=torch.Generator().manual_seed(number))
    return Laid(
        number, (drawn, drawn.T.bfloat16(), drawn > 0, torch.tensor(number), drawn[:0].long())
    )


def name(number: int) -> str:
    """Name an item."""
    return f"record 'r{number}'"


def stuck_at(stop: int) -> Callable[[int], int]:
    """Return a maker that never ends at one item; only a signal ends it."""

    def make(number: int) -> int:
        while number == stop:
            signal.pause()
        return number

    return make


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process and no thread of loading outlives a test."""
    yield
    assert multiprocessing.active_children() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "loading"]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_order_and_bits_are_the_same_whoever_makes_them(workers: int) -> None:
    """Also where the plan is a generator, shorter than there are workers, or empty."""
    for length in (0, 1, 7):
        plan = (number for number in range(length))
        with prefetch(plan, lay, config=PrefetchConfig(workers=workers), name=name) as made:
            found = list(made)
        assert [item for item, _ in found] == list(range(length))
        for item, got in found:
            assert got.number == item
            for mine, theirs in zip(got.tensors, lay(item).tensors, strict=True):
                assert mine.dtype == theirs.dtype
                assert torch.equal(mine, theirs)
                assert mine.shape == theirs.shape
            got.tensors[0].add_(1)  # they can be written to


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_names_its_record_and_comes_in_its_turn(workers: int) -> None:
    """What was made before it is handed out first; the kind of error stays."""

    def make(number: int) -> int:
        if number == 4:
            raise ImageError("4.png is broken; replace it")
        return number

    with prefetch(range(9), make, config=PrefetchConfig(workers=workers), name=name) as made:
        assert [next(made)[0] for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(ImageError, match=r"^record 'r4': 4\.png is broken; replace it$"):
            next(made)


def test_a_killed_worker_is_named() -> None:
    """SIGKILL in the middle of a batch is an error that says which worker, by what, at which record."""
    with prefetch(range(9), stuck_at(3), config=PrefetchConfig(workers=2), name=name) as made:
        assert [next(made)[0] for _ in range(3)] == [0, 1, 2]
        victim = made._workers[1]._process.pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(
            TrainingError,
            match=rf"loading worker 1 \(process {victim}\) was ended by signal 9 \(Killed; if memory ran out .*\) at "
            "record 'r3'",
        ):
            next(made)


def test_a_worker_that_hangs_is_named() -> None:
    """After the timeout, and it is ended."""
    with prefetch(
        range(9), stuck_at(1), config=PrefetchConfig(workers=2, timeout=1), name=name
    ) as made:
        assert next(made)[0] == 0
        hanging = made._workers[1]._process.pid
        with pytest.raises(
            TrainingError,
            match=rf"loading worker 1 \(process {hanging}\) has not finished record 'r1' after 1 s; check that",
        ):
            next(made)


def test_a_thread_that_hangs_is_not_waited_for() -> None:
    """It cannot be ended, but the run ends with an error."""
    release = threading.Event()

    def make(number: int) -> int:
        if number == 1:
            release.wait()
        return number

    with prefetch(range(9), make, config=PrefetchConfig(timeout=0.3), name=name) as made:
        assert next(made)[0] == 0
        with pytest.raises(
            TrainingError, match=r"^loading has not finished record 'r1' after 0\.3 s"
        ):
            next(made)
    release.set()
    made._thread.join()


def test_a_mistake_in_a_worker_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """What is no fault of the data ends the worker with its traceback, and the run with its name."""
    with prefetch(
        [2, 1, 0], lambda number: 2 // number, config=PrefetchConfig(workers=1), name=name
    ) as made:
        assert [next(made)[1] for _ in range(2)] == [1, 2]
        with pytest.raises(TrainingError, match=r"ended with exit code 1, .* at record 'r0'"):
            next(made)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_mistake_in_the_thread_is_raised_where_it_is_taken() -> None:
    """As if it had been made there."""
    with prefetch([1, 0], lambda number: 2 // number, config=PrefetchConfig(), name=name) as made:
        assert next(made) == (1, 2)
        with pytest.raises(ZeroDivisionError):
            next(made)


def test_only_a_few_are_made_ahead() -> None:
    """Memory holds what is taken and `depth` more."""
    begun: list[int] = []
    with prefetch(
        range(99), lambda number: begun.append(number), config=PrefetchConfig(), name=name
    ) as made:
        for taken in range(1, 30):
            next(made)
            assert len(begun) <= taken + 2


@pytest.mark.parametrize("workers", [0, 2])
def test_one_may_stop_in_the_middle(workers: int) -> None:
    """Nobody goes on making what nobody takes; `nothing_is_left` looks."""
    with prefetch(
        iter(range(10**9)), lay, config=PrefetchConfig(workers=workers), name=name
    ) as made:
        next(made)


RUN = """
import signal, sys
from pathlib import Path
from caldera.files.atomic import lock_folder
from caldera.training.prefetch import PrefetchConfig, prefetch
from tests.training.test_loading import name, stuck_at
config = PrefetchConfig(workers=2)
with lock_folder(Path(sys.argv[1])), prefetch(range(9), stuck_at(1), config=config, name=name) as made:
    print(*(worker._process.pid for worker in made._workers), flush=True)
    signal.pause()
"""


def test_a_killed_runs_lock_and_workers_go_with_it(tmp_path: Path) -> None:
    """A worker that outlives the kill holds no lock of the run; it ends when it has something to hand over."""
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
            os.kill(hanging, 0)  # it is there still
        ends_soon(ready)
    finally:
        os.kill(hanging, signal.SIGKILL)


def ends_soon(process: int) -> None:
    """Wait for the end of a process that is not this one's child."""
    for _ in range(600):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return  # nobody asks for its exit code in this container
        except FileNotFoundError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {process} goes on")


def dialogues(count: int) -> list[Conversation]:
    """Return dialogues about no, one or two images."""
    told = []
    for number in range(count):
        shown = tuple(ImageRef(f"{(number + at) % 7}.png") for at in range(number % 3))
        turns = Turn("user", (*shown, "what?")), Turn("assistant", ("a dog on the left",))
        told.append(Conversation(f"r{number}", turns))
    return told


def test_training_is_the_same_bit_for_bit_whoever_decodes(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Pixels of no, one and two workers give the same weights; the share of waiting is recorded at each step."""
    weights = []
    for workers in range(3):
        out = tmp_path / str(workers)
        trained, _ = TrainingJob(
            stage=replace(
                FINETUNE, learning_rate=3e-3, batch_size=4, micro_batch_size=3, validation_size=4, max_length=256,
                cache_features=False, trainable=("vision", "projector", "language"),
            ),
            assistant=assemble(vision_folder, language_folder, seed=3),
            data=TrainingData(conversations=dialogues(40), images=photos),
            out=out,
            features=tmp_path / "features",
            runtime=Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress(), workers),
            skipped=SkippedItems(),
        ).run()  # fmt: skip
        weights.append(trained.model.state_dict())
        shares = [event["data_wait_fraction"] for event in read_metrics(out / "metrics.jsonl")[1:]]
        assert len(shares) == 9
        assert all(0 <= share <= 1 for share in shares)
    for name_, weight in weights[0].items():
        assert torch.equal(weights[1][name_], weight), name_
        assert torch.equal(weights[2][name_], weight), name_


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [("worker", 7), ("interrupt", 130)])
def test_the_command_ends_with_its_workers(
    assistant: LlavaBundle, photos: Path, tmp_path: Path, end: str, code: int
) -> None:
    """A killed worker is a training error with its exit code; Ctrl-C, which all of them hear, leaves none behind."""
    save_model_folder(tmp_path / "start", assistant)
    write_conversations(tmp_path / "data.json", dialogues(40))
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where tests run in the background
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
    if end == "worker":
        os.kill(workers[0], signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGINT)
    try:
        said = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # it would train on beside the tests that follow
        raise
    assert process.returncode == code, said
    if end == "worker":
        assert re.search(r"loading worker \d \(process \d+\) was ended by signal 9", said)
    assert "Traceback" not in said
    for worker in workers:
        ends_soon(worker)


def _children(process: int) -> list[int]:
    """Return the processes that a process has begun."""
    return [
        int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]
