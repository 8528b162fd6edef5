"""Measurements of `benchmarks/gpu_check.py`: speed and peak memory, relative to transformers and TRL."""

import gc
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_exactness import CheckConfig, Row
from gpu_models import SIZES, as_transformers, random_model, transformers_processor
from serve import QUESTION, CalderaSide, noise, transformers_side
from train import Step, batches_of, caldera_step, transformers_step
from train_workloads import WORKLOADS, conversations, samples_of

from caldera.batches.samples import Sample
from caldera.devices import DeviceConfig, is_cpu
from caldera.inference.engine import Request, SamplingParams

BATCH = 8
"""Answers at a time."""

TRAINED = {"full": SIZES["1.1b"], "tiny": SIZES["tiny"]}
"""Size of the models that are trained, by scale: with their gradients and moments they take 16 bytes a weight."""

ANSWERING = {"full": SIZES["7b"], "tiny": SIZES["tiny"]}
"""Size of the models that answer, by scale."""

_WARMUP = 4
"""Steps before a measurement: FlexAttention is compiled for a second number of tokens with dynamic sizes."""


class PeakMemory:
    """Peak memory of a GPU since it was created; nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        """Release what earlier sides cached, and start."""
        self._device = device
        gc.collect()
        if not is_cpu(device):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def rows(self, side: str) -> Iterator[Row]:
        """Yield the peak."""
        if not is_cpu(self._device):
            peak = torch.cuda.max_memory_allocated(self._device)
            yield Row(f"{side}: peak memory", f"{peak / 1e9:.1f} GB")


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if not is_cpu(device):
        torch.cuda.synchronize(device)


def check_training_speed(config: CheckConfig) -> Iterator[Row]:
    """Measure samples per second of both stages, with bf16 products over fp32 weights."""
    for name in ("captions", "instruct"):
        yield from _training_speed(config, name)


def _training_speed(config: CheckConfig, name: str) -> Iterator[Row]:
    """Measure one workload."""
    workload, compute = WORKLOADS[name], DeviceConfig(config.device, torch.bfloat16)
    stage, rates = workload.stage.name, {}
    assistant = random_model(config.size, config.device, torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        samples = samples_of(workload, assistant, folder, config.size.side)

        def rate(side: str, step: Step) -> float:
            batches = batches_of(side, samples, workload.batch)
            return _steps_per_second(config, step, batches) * workload.batch

        for side in ("padded", "grouped"):
            memory = PeakMemory(config.device)
            model = as_transformers(assistant)
            rates[f"transformers, {side}"] = rate(
                side, transformers_step(model, workload, assistant, compute)
            )
            yield from memory.rows(f"{stage}, transformers, {side}")
            del model
            assistant.model.zero_grad(set_to_none=True)
        if importlib.util.find_spec("trl") is None:
            yield Row(f"{stage}, TRL", "not installed: pip install -e '.[bench]'")
        else:
            from trl_side import run_trl

            memory = PeakMemory(config.device)
            rates["TRL"], _, _ = run_trl(
                as_transformers(assistant), transformers_processor(assistant, config.size),
                conversations(workload, folder, config.size.side), folder, template=workload.stage.template,
                trainable=workload.stage.trainable, batch=workload.batch, steps=config.steps_of_speed,
            )  # fmt: skip
            yield from memory.rows(f"{stage}, TRL")
        memory = PeakMemory(config.device)
        step, feature_seconds = caldera_step(
            workload, assistant, samples, folder / "features", compute
        )
        rates["caldera"] = rate("caldera", step)
        yield from memory.rows(f"{stage}, caldera")
    seconds = 1 / rates["caldera"] + feature_seconds / len(samples)
    rates["caldera, first epoch"] = 1 / seconds
    yield from _compared(f"{stage}, samples/s", rates)


def _steps_per_second(
    config: CheckConfig, step: Step, batches: Sequence[Sequence[Sample]]
) -> float:
    """Return the speed of steps after the first ones, which are slow."""
    for number in range(1 if is_cpu(config.device) else _WARMUP):
        step(batches[number % len(batches)])
    synchronize(config.device)
    start_time = time.perf_counter()
    for number in range(config.steps_of_speed):
        step(batches[number % len(batches)])
    synchronize(config.device)
    return config.steps_of_speed / (time.perf_counter() - start_time)


def _compared(unit: str, rates: dict[str, float]) -> Iterator[Row]:
    """Yield the rate of each side, and caldera's relative to it."""
    for side, rate in rates.items():
        is_own = side.startswith("caldera")
        ratio = "" if is_own else f"; caldera is {rates['caldera'] / rate:.2f} x"
        yield Row(f"{unit}: {side}", f"{rate:.2f}{ratio}")


def check_answer_speed(config: CheckConfig) -> Iterator[Row]:
    """Measure the time to the first token and tokens per second in bf16, alone and several at a time."""
    assistant = random_model(config.size, config.device, torch.bfloat16)
    tokens = 4 if is_cpu(config.device) else 96
    images = [noise(number, config.size.side) for number in range(BATCH)]
    memory, model = PeakMemory(config.device), as_transformers(assistant)
    ask = transformers_side(model, assistant)
    ask(images[0], 4)
    alone = {"transformers": ask(images[1], tokens)}
    engine = CalderaSide(assistant)
    batched = {"transformers, one batch": _transformers_batch(model, engine, images, tokens)}
    yield from memory.rows("transformers")
    memory = PeakMemory(config.device)
    try:
        engine.ask(images[0], 4)
        alone["caldera"] = engine.ask(images[1], tokens)
        batched["caldera"] = engine.throughput(BATCH, tokens, new=True)
        batched["caldera, one batch"] = _caldera_batch(engine, images, tokens)
        turns = engine.next_turn()
    finally:
        engine.engine.close()
    yield from memory.rows("caldera")
    yield Row("decoder", engine.engine.description)
    yield from _compared("tokens/s alone", {side: timing.rate for side, timing in alone.items()})
    yield from _compared(f"tokens/s of {BATCH} new images", batched)
    for side, timing in alone.items():
        yield Row(f"first token: {side}", f"{timing.first:.3f} s")
    cached, uncached = turns["second_turn_seconds"], turns["second_turn_uncached_seconds"]
    yield Row("first token of a second turn", f"{cached:.3f} s, without the cache {uncached:.3f} s")


def _transformers_batch(
    model: Any,  # noqa: ANN401 - generate is untyped
    engine: CalderaSide,
    images: Sequence[Any],
    tokens: int,
) -> float:
    """Return the tokens per second of one batch of transformers; all prompts have the same length."""
    prompts = [engine.prompt(image, QUESTION) for image in images]
    ids = torch.tensor([prompt.ids for prompt in prompts], device=model.device)
    views = [view for prompt in prompts for view in prompt.images]
    pixels = torch.cat([image.views for image in views]).to(model.device, model.dtype)

    def generate() -> None:
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False, pad_token_id=0,
        )  # fmt: skip

    return len(images) * tokens / _seconds(model.device, generate)


def _caldera_batch(engine: CalderaSide, images: Sequence[Any], tokens: int) -> float:
    """Return the tokens per second of one batch of the engine, as evaluations submit it."""
    sampling = SamplingParams(max_new_tokens=tokens)
    requests = [Request(engine.prompt(image, QUESTION), sampling) for image in images]
    count = 0

    def answer() -> None:
        nonlocal count
        streams = engine.engine.submit_batch(requests)
        for stream in streams:
            stream.read_all()
        count = sum(stream.usage.completion_tokens for stream in streams)

    # Reading the answers waits for the device.
    seconds = _seconds(torch.device("cpu"), answer)
    return count / seconds


def _seconds(device: torch.device, call: Callable[[], None]) -> float:
    """Return the time of a call, with the device's work."""
    synchronize(device)
    start_time = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start_time
