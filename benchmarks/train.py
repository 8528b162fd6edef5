"""Training speed and memory of caldera, transformers and TRL: `python benchmarks/train.py [--json FILE]`.

All sides have the same weights, records and precision (bf16 products over fp32 weights):

- padded: transformers' LlavaForConditionalGeneration, random batches padded to the longest sample
- grouped: the same with batches of similar length
- trl: TRL's SFTTrainer with random batches, if TRL is installed (the extra `bench`)
- caldera: this package's step, packed, with cached features of the frozen tower

Workloads: stage 1 captions, one per image as in LLaVA-Pretrain, or five as in COCO; stage 2 like LLaVA-Instruct (two
conversations per image, lengths log-normal around 200 tokens); VQA (ten short questions per image). Every side and
workload runs in its own process, which gives its peak memory; sides take turns, and the median of the rounds counts.
Pixels are prepared in advance on all sides. `first epoch` includes caldera's single pass of the tower over the images.
"""

import argparse
import importlib.util
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import record_function
from train_workloads import (
    SIZES,
    WORKLOADS,
    Operations,
    Workload,
    conversations,
    matmul_peak,
    samples_of,
    write_model,
)
from transformers import AutoProcessor, LlavaForConditionalGeneration

from caldera.batches.image_sources import DecodedImages
from caldera.batches.packing import BatchBuilder, group_by_images
from caldera.batches.sampler import BatchLimit, StepSampler
from caldera.batches.samples import Sample
from caldera.devices import DeviceConfig, Runtime, tune_malloc
from caldera.formats.model_folder import load_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from caldera.templates.encoding import IGNORE_INDEX
from caldera.training.job import cached_tower_features
from caldera.training.parameters import build_optimizer, set_trainable
from caldera.training.step import training_step

SIDES = ("padded", "grouped", "trl", "caldera")
COMPUTE = DeviceConfig(torch.device("cpu"), torch.bfloat16)
_MIN_CORE_FRACTION, _MAX_SPREAD = 0.85, 1.25
"""A side with fewer cores in a round, or with rounds that differ by more, was disturbed by other processes."""

Step = Callable[[Sequence[Sample]], None]


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return rows of numbers, padded on the right to the longest."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def transformers_step(
    model: LlavaForConditionalGeneration,
    workload: Workload,
    assistant: LlavaBundle,
    compute: DeviceConfig = COMPUTE,
) -> Step:
    """Return a training step of transformers; `model` is on the device."""
    parts = {"projector": model.model.multi_modal_projector, "language": model.model.language_model}
    model.requires_grad_(False)
    for part in workload.stage.trainable:
        parts[part].requires_grad_(True)
    model.train()
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, fused=True)
    pixels: dict[Path, Tensor] = {}
    source, device = DecodedImages(assistant.processor), compute.device

    def step(samples: Sequence[Sample]) -> None:
        paths = [path for sample in samples for path in sample.images]
        for path in paths:
            pixels[path] = pixels[path] if path in pixels else source([path])
        ids = pad([sample.ids for sample in samples], assistant.tokenizer.pad_token_id)
        labels = pad([sample.labels for sample in samples], IGNORE_INDEX)
        mask = pad([[1] * sample.length for sample in samples], 0)
        with compute.autocast():
            loss = model(
                input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device),
                pixel_values=torch.cat([pixels[path] for path in paths]).to(device),
            ).loss  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def caldera_step(
    workload: Workload,
    assistant: LlavaBundle,
    samples: Sequence[Sample],
    feature_folder: Path,
    compute: DeviceConfig = COMPUTE,
) -> tuple[Step, float]:
    """Return this package's training step, and the seconds to compute its features."""
    tune_malloc()
    start_time = time.perf_counter()
    paths = list(dict.fromkeys(path for sample in samples for path in sample.images))
    runtime = Runtime(compute, NoProgress())
    source = cached_tower_features(assistant, feature_folder, paths, runtime=runtime)
    feature_seconds = time.perf_counter() - start_time
    model = assistant.model.to(compute.device)
    set_trainable(model, workload.stage.trainable)
    model.choose_batch_layout(compute.attention)
    model.train()
    stage = replace(workload.stage, learning_rate=1e-5)
    optimizer = build_optimizer(model, stage)
    builder = BatchBuilder(
        load_images=source,
        share_prefixes=True,
        max_tokens=stage.micro_batch_tokens,
        max_samples=stage.micro_batch_size,
    )

    def step(samples: Sequence[Sample]) -> None:
        # The range is for step_profile.py.
        with record_function("loading"):
            batches = builder.build(samples)
        training_step(model, batches, optimizer, max_grad_norm=1.0, compute=compute)

    return step, feature_seconds


def run_trl_side(name: str, size: str, folder: Path, steps: int) -> dict[str, float]:
    """Run steps of TRL's trainer; the operations in its loop are not counted."""
    # TRL is optional.
    from trl_side import run_trl

    workload = WORKLOADS[name]
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch)
        dialogues = conversations(workload, images, SIZES[size].side)
        model = LlavaForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder / "model")
        samples, tokens, cores = run_trl(
            model, processor, dialogues, images, template=workload.stage.template,
            trainable=workload.stage.trainable, batch=workload.batch, steps=steps,
        )  # fmt: skip
    return {
        "samples_per_second": samples,
        "tokens_per_second": tokens,
        "flops_per_second": float("nan"),
        "cores": cores,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def batches_of(side: str, samples: Sequence[Sample], batch: int) -> list[list[Sample]]:
    """Return the whole batches of an epoch in the order of a side."""
    order = list(range(len(samples)))
    random.Random(3).shuffle(order)
    epoch = [order[start : start + batch] for start in range(0, len(order), batch)]
    if side != "padded":
        sampler = StepSampler(
            lengths=[sample.length for sample in samples],
            groups=group_by_images(samples) if side == "caldera" else None,
            limit=BatchLimit(samples=batch),
            epochs=1,
            seed=3,
        )
        epoch = sampler.epoch(0)
    return [[samples[index] for index in indices] for indices in epoch if len(indices) == batch]


def run_side(side: str, name: str, size: str, folder: Path, steps: int) -> dict[str, float]:
    """Run steps of one side, and return its speed and memory."""
    if side == "trl":
        return run_trl_side(name, size, folder, steps)
    workload, assistant = WORKLOADS[name], load_model_folder(folder / "model")
    with tempfile.TemporaryDirectory() as scratch:
        samples = samples_of(workload, assistant, Path(scratch), SIZES[size].side)
        feature_seconds = 0.0
        if side == "caldera":
            step, feature_seconds = caldera_step(
                workload, assistant, samples, Path(scratch) / "features"
            )
        else:
            model = LlavaForConditionalGeneration.from_pretrained(
                folder / "model", dtype=torch.float32
            )
            step = transformers_step(model, workload, assistant)
        batches = batches_of(side, samples, workload.batch)
        # The first step is slow.
        with Operations() as operations:
            step(batches[0])
        step(batches[1])
        start_time, start_cpu = time.perf_counter(), time.process_time()
        measured = [batches[number % len(batches)] for number in range(2, 2 + steps)]
        for batch in measured:
            step(batch)
        seconds = time.perf_counter() - start_time
        cores = (time.process_time() - start_cpu) / seconds
    tokens = sum(sample.length for batch in measured for sample in batch)
    feature_seconds_per_sample = feature_seconds / len(samples)
    return {
        "samples_per_second": steps * workload.batch / seconds,
        "tokens_per_second": tokens / seconds,
        "first_epoch_samples_per_second": 1
        / (seconds / steps / workload.batch + feature_seconds_per_sample),
        "flops_of_a_step": operations.total,
        "flops_per_second": operations.total / (seconds / steps),
        "cores": cores,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def sides() -> tuple[str, ...]:
    """Return the sides whose packages are installed."""
    has_trl = importlib.util.find_spec("trl") is not None
    return SIDES if has_trl else tuple(side for side in SIDES if side != "trl")


def measure(
    workload: str, size: str, folder: Path, rounds: int, steps: int
) -> dict[str, dict[str, float]]:
    """Run the sides in turn, each in its own process, and return the medians of each."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides()}
    for _ in range(rounds):
        for side in results:
            arguments = [side, workload, size, str(folder), str(steps)]
            command = [sys.executable, __file__, "--side", *arguments]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[side].append(json.loads(output.splitlines()[-1]))
    medians = {
        side: {name: statistics.median(result[name] for result in items) for name in items[0]}
        for side, items in results.items()
    }
    for side, items in results.items():
        rates = [result["samples_per_second"] for result in items]
        medians[side]["spread"] = max(rates) / min(rates)
        medians[side]["min_cores"] = min(result["cores"] for result in items)
    return medians


def disturbed(measured: dict[str, dict[str, float]]) -> list[str]:
    """Return a message for each side that was disturbed by other processes, so that its ratios mean nothing."""
    cores = torch.get_num_threads()
    return [
        f"{side} had {result['min_cores']:.2f} of {cores} cores in one round, and its rounds differ by "
        f"{result['spread']:.2f} x"
        for side, result in measured.items()
        if result["min_cores"] < _MIN_CORE_FRACTION * cores or result["spread"] > _MAX_SPREAD
    ]


def print_results(
    workload: str, size: str, measured: dict[str, dict[str, float]], peak: float
) -> None:
    """Print the results of a workload, and the ratios of caldera to the other sides."""
    print(f"\n{workload}, {size}, batch {WORKLOADS[workload].batch}")
    print(
        f"{'':10}{'samples/s':>11}{'tokens/s':>10}{'of peak':>9}{'peak GB':>9}{'cores':>7}{'spread':>8}"
    )
    for side, result in measured.items():
        fraction = result["flops_per_second"] / peak
        percentage = "-" if math.isnan(fraction) else f"{fraction:.0%}"
        print(
            f"{side:10}{result['samples_per_second']:11.2f}{result['tokens_per_second']:10.0f}{percentage:>9}"
            f"{result['peak_bytes'] / 1e9:9.2f}{result['cores']:7.2f}{result['spread']:8.2f}"
        )
    if messages := disturbed(measured):
        print("the machine was shared, so no ratios are printed:", *messages, sep="\n  ")
        return
    caldera = measured["caldera"]
    for side, other in measured.items():
        if side == "caldera":
            continue
        print(
            f"caldera is {caldera['samples_per_second'] / other['samples_per_second']:.2f} x {side} "
            f"({caldera['first_epoch_samples_per_second'] / other['samples_per_second']:.2f} x in a first epoch), in "
            f"{caldera['peak_bytes'] / other['peak_bytes']:.2f} x its memory"
        )


def main() -> None:
    """Measure all workloads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--size", choices=SIZES, default="211m")
    parser.add_argument("--workload", choices=WORKLOADS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--side", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, workload, size, folder, steps = args.side
        print(json.dumps(run_side(side, workload, size, Path(folder), int(steps))))
        return
    peak = matmul_peak()
    print(f"bf16 products: {peak / 1e9:.0f} GFLOP/s; load {os.getloadavg()[0]:.1f}")
    if "trl" not in sides():
        print("trl is not installed, so its side is skipped: pip install -e '.[bench]'")
    results: dict[str, object] = {"size": args.size, "matmul_peak": peak}
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch), SIZES[args.size])
        for workload in args.workload or WORKLOADS:
            measured = measure(workload, args.size, Path(scratch), args.rounds, args.steps)
            print_results(workload, args.size, measured, peak)
            results[workload] = measured
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
