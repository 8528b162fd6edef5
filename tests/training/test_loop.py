"""The training loop stops at signals and errors with everything saved, and a resumed run has the same bits."""

import errno
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from caldera.batches import image_sources
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import ImageError, Interrupted, OutputError, TrainingError
from caldera.images.anyres import TileLayout
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from caldera.training import checkpoint, job, loop
from caldera.training.checkpoint import latest_checkpoint
from caldera.training.hyperparameters import Stage
from caldera.training.step import training_step
from tests.training.jobs import FP32, STAGES, make_job, result_of

STAGE = replace(STAGES["finetune"], save_every=100, eval_every=4)

Start = Callable[[], LlavaBundle]


def calls_first(target: Any, action: Callable[[], object], *, call_number: int = 1) -> Any:  # noqa: ANN401
    """Return a function that acts before call `call_number` of `target`, counted from 1."""
    calls = 0

    def call(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call_number:
            action()
        return target(*args, **kwargs)

    return call


def send(number: int) -> Callable[[], None]:
    """Return a function that sends a signal to this process."""
    return lambda: signal.raise_signal(number)


def during_validation(target: Any, action: Callable[[], object], *, call_number: int) -> Any:  # noqa: ANN401
    """Return a validation that acts after the first batch of call `call_number`."""
    calls = 0

    def evaluate(model: object, batches: Iterable[object], compute: DeviceConfig) -> object:
        nonlocal calls
        calls += 1

        def act_after_first() -> Iterator[object]:
            for index, batch in enumerate(batches):
                yield batch
                if index == 0 and calls == call_number:
                    action()

        return target(model, act_after_first(), compute)

    return evaluate


_UNINTERRUPTED: dict[Stage, tuple[bytes, list[dict[str, float]]]] = {}
"""Results of runs that were never stopped."""


def assert_resumes_bit_for_bit(start: Start, photos: Path, tmp_path: Path, stage: Stage) -> None:
    """Resume the run in `tmp_path / "run"`, and compare it with one that was never stopped."""
    key = replace(stage, save_every=100)
    if key not in _UNINTERRUPTED:
        make_job(start(), photos, tmp_path / "uninterrupted", key).run()
        _UNINTERRUPTED[key] = result_of(tmp_path / "uninterrupted")
    make_job(start(), photos, tmp_path / "run", stage, resume=True).run()
    assert result_of(tmp_path / "run") == _UNINTERRUPTED[key]


@pytest.mark.parametrize(
    ("interrupted_call", "number", "saved"),
    [
        ((loop, "training_step", 3), signal.SIGINT, 3),
        ((loop, "training_step", 3), signal.SIGTERM, 3),
        ((loop, "training_step", 3), signal.SIGUSR1, 3),
        ((loop, "training_step", 3), signal.SIGHUP, 3),
        ((loop, "training_step", 4), signal.SIGTERM, 4),
        ((loop, "evaluate_loss", 2), signal.SIGTERM, 4),
        ((loop, "evaluate_loss", 4), signal.SIGTERM, 9),
        ((checkpoint, "save_file", 1), signal.SIGTERM, 5),
    ],
    ids=["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "eval-step", "eval", "last-eval", "save"],
)
def test_a_signal_ends_training_with_a_checkpoint(
    start: Start,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupted_call: tuple[Any, str, int],
    number: int,
    saved: int,
) -> None:
    """In a step, a save or a validation: the step is finished and saved once, and the message is exact (F4)."""
    out, stage = tmp_path / "run", replace(STAGE, save_every=5)
    module, function, call_number = interrupted_call
    target = getattr(module, function)
    wrap = during_validation if function == "evaluate_loss" else calls_first
    with monkeypatch.context() as patch:
        patch.setattr(module, function, wrap(target, send(number), call_number=call_number))
        with pytest.raises(Interrupted) as caught:
            make_job(start(), photos, out, stage).run()

    assert caught.value.exit_code == 128 + number
    assert str(caught.value) == (
        f"stopped stage 'finetune'; step {saved} of 9 is saved in {out / 'checkpoints'}; repeat the command with "
        "--resume to continue"
    )
    newest = latest_checkpoint(out / "checkpoints")
    assert newest is not None
    assert newest.step == saved
    if number != signal.SIGTERM:
        # What follows is the same for every signal.
        return
    assert_resumes_bit_for_bit(start, photos, tmp_path, stage)


@pytest.mark.parametrize(
    ("module", "function", "message"),
    [
        (image_sources, "read_bytes", "stopped while reading images; repeat the command"),
        (job, "_calibrate_projector", "stopped stage 'finetune'; no step of it is saved; repeat"),
        (loop, "evaluate_loss", "stopped stage 'finetune'; no step of it is saved; repeat"),
        (job, "save_model_folder", "stopped after stage 'finetune', which is finished: its model is in"),
    ],
    ids=["images", "calibration", "first-eval", "model"],
)  # fmt: skip
def test_a_signal_before_and_after_the_steps_keeps_what_there_is(
    start: Start,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,  # noqa: ANN401
    function: str,
    message: str,
) -> None:
    """While images are read, the projector is calibrated, or the model is saved; the run can be continued (F4)."""
    stage = replace(STAGE, calibrate_projector=True)
    with monkeypatch.context() as patch:
        target = getattr(module, function)
        patch.setattr(module, function, calls_first(target, send(signal.SIGTERM)))
        with pytest.raises(Interrupted, match=message):
            make_job(start(), photos, tmp_path / "run", stage).run()
    assert (tmp_path / "run" / "model").exists() == (function == "save_model_folder")
    assert_resumes_bit_for_bit(start, photos, tmp_path, stage)


def test_features_that_were_built_before_a_signal_are_used_by_the_next_run(
    start: Start, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how many there are; only the others are encoded (F4)."""
    monkeypatch.setattr(image_sources, "ENCODE_BATCH", 2)
    encode = image_sources.FrozenTower.encode_all
    with monkeypatch.context() as patch:
        patch.setattr(
            image_sources.FrozenTower,
            "encode_all",
            calls_first(encode, send(signal.SIGINT), call_number=2),
        )
        with pytest.raises(
            Interrupted, match=r"stopped while encoding images; the features of 4 of 7 are kept in .*features"
        ):  # fmt: skip
            make_job(start(), photos, tmp_path / "run", STAGE).run()

    encoded: list[int] = []

    def count(tower: image_sources.FrozenTower, pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels))
        return encode(tower, pixels)

    monkeypatch.setattr(image_sources.FrozenTower, "encode_all", count)
    make_job(start(), photos, tmp_path / "run", replace(STAGE, max_steps=1)).run()
    assert sum(encoded) == 3


def test_a_second_signal_ends_at_once(
    start: Start,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The step is not finished; the last checkpoint remains and is named (F4)."""

    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stage = replace(STAGE, save_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", calls_first(training_step, twice, call_number=6))
        with pytest.raises(KeyboardInterrupt):
            make_job(start(), photos, tmp_path / "run", stage).run()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert f"stopped at once; step 4 of 9 is saved in {tmp_path / 'run'}" in caplog.text
    assert_resumes_bit_for_bit(start, photos, tmp_path, stage)


@pytest.mark.parametrize(("minutes", "expected"), [(1e-9, [*range(1, 9)]), (1e9, [7]), (None, [7])])
def test_checkpoints_are_written_by_time_too(
    start: Start,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    minutes: float | None,
    expected: list[int],
) -> None:
    """After `save_every_minutes` the next step is saved, whatever `save_every` is; None counts steps alone."""
    steps = list[int]()

    def save(folder: Path, state: checkpoint.Checkpoint) -> None:
        steps.append(state.step)
        checkpoint.save_checkpoint(folder, state)

    monkeypatch.setattr(loop, "save_checkpoint", save)
    stage = replace(STAGE, save_every=7, save_every_minutes=minutes)
    make_job(start(), photos, tmp_path / "run", stage).run()
    assert steps == expected


def fail_at(model: Any, number: int, error: Exception | None) -> None:  # noqa: ANN401
    """Let the forward pass of a step raise an error, or return NaN."""
    forward, calls = model.hidden_states, 0

    def hidden_states(batch: object) -> torch.Tensor:
        nonlocal calls
        calls += model.training
        if not model.training or calls != number:
            return forward(batch)
        if error:
            raise error
        return forward(batch) * torch.nan

    model.hidden_states = hidden_states


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (None, r"loss nan is not finite at records \['r\d+'"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            r"out of memory at a micro-batch of 4 conversations with \d+ tokens and \d images \(\d views\), the first "
            r"'r\d+': DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes; set "
            r"gradient_checkpointing=true, micro_batch_tokens=\d+ or micro_batch_size=2, none of which changes the",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "allocate 2.00 GiB; set"),
        (MemoryError(), "MemoryError; set"),
    ],
    ids=["nan", "cpu", "cuda", "python"],
)  # fmt: skip
def test_an_error_in_a_step_keeps_the_state_before_it(
    start: Start,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    message: str,
) -> None:
    """NaN and a lack of memory at step 6 name what to do; steps 1 to 5 are saved and continued bit for bit (F5, F8)."""
    assistant = start()
    fail_at(assistant.model, 6, error)
    with pytest.raises(TrainingError, match=message) as caught:
        make_job(assistant, photos, tmp_path / "run", STAGE).run()
    saved = f"; step 5 of 9 is saved in {tmp_path / 'run' / 'checkpoints'}"
    assert str(caught.value).endswith(saved)
    assert caught.value.exit_code == 7
    assert_resumes_bit_for_bit(start, photos, tmp_path, STAGE)


def test_an_error_in_the_update_keeps_the_last_checkpoint(
    start: Start, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were partly updated are not saved (F8)."""

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    stage = replace(STAGE, save_every=2)
    with monkeypatch.context() as patch:
        update = calls_first(torch.optim.AdamW.step, fail, call_number=6)
        patch.setattr(torch.optim.AdamW, "step", update)
        with pytest.raises(
            TrainingError,
            match=r"in the update of [\d,]+ weights, .* LoRA; step 4 of 9 is saved in",
        ):
            make_job(start(), photos, tmp_path / "run", stage).run()
    assert_resumes_bit_for_bit(start, photos, tmp_path, stage)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_while_loading_keeps_the_state(
    start: Start, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The records of a lost image, or of images too large for memory, are named; finished steps are saved (F6, F8)."""
    stage = replace(STAGE, cache_features=False, validation_size=0)
    load = image_sources.DecodedImages.__call__
    for error, expected in ((ImageError("gone"), ImageError), (MemoryError(), TrainingError)):

        def load_or_fail(
            source: image_sources.DecodedImages,
            paths: list[Path],
            layouts: list[TileLayout],
            error: Exception = error,
        ) -> torch.Tensor:
            if photos / "3.png" in paths:
                raise error
            return load(source, paths, layouts)

        monkeypatch.setattr(image_sources.DecodedImages, "__call__", load_or_fail)
        runtime = Runtime(FP32, NoProgress(), workers)
        failing = make_job(start(), photos, tmp_path / str(error), stage, runtime=runtime)
        with pytest.raises(
            expected, match=r"records 'r\d+'.*; (step \d of 10|no step of it) is saved"
        ):
            failing.run()


def test_a_full_disk_ends_training_and_keeps_the_checkpoints(
    start: Start, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is 4, and the run continues once there is space (F3)."""

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stage = replace(STAGE, save_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", calls_first(save_file, fail, call_number=3))
        with pytest.raises(OutputError, match="step-00000006: No space left on device") as caught:
            make_job(start(), photos, tmp_path / "run", stage).run()
    assert caught.value.exit_code == 4
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004"]
    assert_resumes_bit_for_bit(start, photos, tmp_path, stage)


@pytest.mark.parametrize(("max_steps", "is_told"), [(10, True), (9, False)])
def test_max_steps_that_the_data_cannot_reach_are_told(
    start: Start,
    photos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    max_steps: int,
    is_told: bool,
) -> None:
    """The line has both numbers of steps."""
    stage = replace(STAGE, max_steps=max_steps)
    _, result = make_job(start(), photos, tmp_path / "run", stage).run()
    assert result is not None
    assert result.steps == min(max_steps, 9)
    line = "max_steps is 10, but 36 records end after 9 steps with epochs=1; raise epochs to train longer"
    assert (line in caplog.text) == is_told == ("max_steps is" in caplog.text)
