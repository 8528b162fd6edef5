"""Training, caldera beside transformers in one run: `python benchmarks/train.py [--json FILE]`.

The same weights, records and precision (bf16 products over fp32 weights) on both sides:

- padded: transformers' own LlavaForConditionalGeneration, random batches padded to their longest, as its users train it
- grouped: the same with batches of like lengths
- trl: TRL's SFTTrainer, random batches, where TRL is installed (the extra `bench`)
- caldera: this package's step, packed, with the frozen tower's features kept

Workloads: stage 1 captions, one an image as in LLaVA-Pretrain, or five as in COCO; stage 2 in LLaVA-Instruct's shape
(two conversations an image, lengths log-normal around 200 tokens); VQA's shape (ten short questions an image). Every
side and workload is a process of its own, so that its peak memory is its own; sides take turns, and the median of the
rounds counts. Pixels are prepared beforehand on both sides. `first epoch` also counts caldera's one pass of the tower
over the images.
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
from transformers import (
    LlavaForConditionalGeneration,
)

from caldera.batches.image_sources import DecodedImages
from caldera.batches.packing import BatchBuilder, group_by_images
from caldera.batches.sampler import BatchLimit, StepSampler
from caldera.batches.samples import Sample
from caldera.devices import DeviceConfig, Runtime, tune_malloc
from caldera.formats.model_folder import load_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.progress import NoProgress
from caldera.templates.encoding import IGNORE_INDEX
from caldera.training.job import cached_tower_features
from caldera.training.loop import training_step
from caldera.training.parameters import build_optimizer, set_trainable

SIDES = ("padded", "grouped", "trl", "caldera")
COMPUTE = DeviceConfig(torch.device("cpu"), torch.bfloat16)
_SHARE_OF_CORES, _SPREAD = 0.85, 1.25
"""A side that has fewer cores in a round, or whose rounds differ by more, was disturbed by other work."""

Step = Callable[[Sequence[Sample]], None]


def padded(rows: Sequence[Sequence[int]], by: int) -> Tensor:
    """Return rows of numbers, padded on the right to the longest."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[by] * (width - len(row))] for row in rows])


def transformers_step(model: Path, load: Workload, assistant: LlavaBundle) -> Step:
    """Return the step that users of transformers take."""
    peer = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    parts = {"projector": peer.model.multi_modal_projector, "language": peer.model.language_model}
    peer.requires_grad_(False)
    for part in load.stage.trainable:
        parts[part].requires_grad_(True)
    peer.train()
    moving = [each for each in peer.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=1e-5, fused=True)
    pixels: dict[Path, Tensor] = {}
    source = DecodedImages(assistant.processor)

    def step(samples: Sequence[Sample]) -> None:
        paths = [path for sample in samples for path in sample.images]
        for path in paths:
            pixels[path] = pixels[path] if path in pixels else source([path])
        ids = padded([sample.ids for sample in samples], assistant.tokenizer.pad_token_id)
        labels = padded([sample.labels for sample in samples], IGNORE_INDEX)
        mask = padded([[1] * sample.length for sample in samples], 0)
        with COMPUTE.autocast():
            loss = peer(
                input_ids=ids, attention_mask=mask, labels=labels,
                pixel_values=torch.cat([pixels[path] for path in paths]),
            ).loss  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def caldera_step(
    load: Workload, assistant: LlavaBundle, samples: Sequence[Sample], kept: Path
) -> tuple[Step, float]:
    """Return this package's step, and the seconds that its features took."""
    tune_malloc()
    begun = time.perf_counter()
    paths = list(dict.fromkeys(path for sample in samples for path in sample.images))
    runtime = Runtime(COMPUTE, NoProgress())
    source = cached_tower_features(assistant, kept, paths, runtime=runtime)
    looked = time.perf_counter() - begun
    model = assistant.model
    set_trainable(model, load.stage.trainable)
    model.choose_batch_layout(COMPUTE.attention)
    model.train()
    stage = replace(load.stage, learning_rate=1e-5)
    optimizer = build_optimizer(model, stage)
    builder = BatchBuilder(
        load_images=source,
        share_prefixes=True,
        max_tokens=stage.micro_batch_tokens,
        max_samples=stage.micro_batch_size,
    )

    def step(some: Sequence[Sample]) -> None:
        with record_function("loading"):  # for step_profile.py
            batches = builder.build(some)
        training_step(
            model, batches, optimizer, max_grad_norm=1.0, compute=COMPUTE,
            record_ids=[sample.id for sample in some],
        )  # fmt: skip

    return step, looked


def run_trl_side(workload: str, size: str, folder: Path, steps: int) -> dict[str, float]:
    """Take steps by TRL's own trainer; the operations in its loop are not counted."""
    from trl_side import run_trl  # only there where TRL is

    load = WORKLOADS[workload]
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch)
        told = conversations(load, images, SIZES[size].side)
        samples, tokens, cores = run_trl(
            folder / "model", told, images, template=load.stage.template, trains=load.stage.trainable, batch=load.batch,
            steps=steps,
        )  # fmt: skip
    return {
        "samples_per_second": samples,
        "tokens_per_second": tokens,
        "flops_per_second": float("nan"),
        "cores": cores,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def run_side(side: str, workload: str, size: str, folder: Path, steps: int) -> dict[str, float]:
    """Take steps on one side, and tell how fast and in how much memory."""
    if side == "trl":
        return run_trl_side(workload, size, folder, steps)
    load, assistant = WORKLOADS[workload], load_model_folder(folder / "model")
    with tempfile.TemporaryDirectory() as scratch:
        samples = samples_of(load, assistant, Path(scratch), SIZES[size].side)
        looked = 0.0
        if side == "caldera":
            step, looked = caldera_step(load, assistant, samples, Path(scratch) / "kept")
        else:
            step = transformers_step(folder / "model", load, assistant)
        lengths = [sample.length for sample in samples]
        order = list(range(len(samples)))
        random.Random(3).shuffle(order)
        plan = [order[at : at + load.batch] for at in range(0, len(order), load.batch)]
        if side != "padded":
            groups = group_by_images(samples) if side == "caldera" else None
            dealt = StepSampler(
                lengths=lengths,
                groups=groups,
                limit=BatchLimit(samples=load.batch),
                epochs=1,
                seed=3,
            )
            plan = dealt.epoch(0)
        batches = [
            [samples[at] for at in indices] for indices in plan if len(indices) == load.batch
        ]
        with Operations() as counted:
            step(batches[0])  # also the first step, which is slow
        step(batches[1])
        begun, processor = time.perf_counter(), time.process_time()
        done = [batches[at % len(batches)] for at in range(2, 2 + steps)]
        for some in done:
            step(some)
        seconds = time.perf_counter() - begun
        cores = (time.process_time() - processor) / seconds
    tokens = sum(sample.length for some in done for sample in some)
    per_sample = looked / len(samples)  # of the features
    return {
        "samples_per_second": steps * load.batch / seconds,
        "tokens_per_second": tokens / seconds,
        "first_epoch_samples_per_second": 1 / (seconds / steps / load.batch + per_sample),
        "flops_of_a_step": counted.total,
        "flops_per_second": counted.total / (seconds / steps),
        "cores": cores,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def sides() -> tuple[str, ...]:
    """Return the sides that can run here."""
    here = importlib.util.find_spec("trl") is not None
    return SIDES if here else tuple(side for side in SIDES if side != "trl")


def measure(
    workload: str, size: str, folder: Path, rounds: int, steps: int
) -> dict[str, dict[str, float]]:
    """Let the sides take turns, each in a process of its own, and return each one's median."""
    heard: dict[str, list[dict[str, float]]] = {side: [] for side in sides()}
    for _ in range(rounds):
        for side in heard:
            words = [sys.executable, __file__, "--side", side, workload, size, str(folder), str(steps)]  # fmt: skip
            told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            heard[side].append(json.loads(told.splitlines()[-1]))
    medians = {
        side: {name: statistics.median(one[name] for one in told) for name in told[0]}
        for side, told in heard.items()
    }
    for side, rounds_of_side in heard.items():
        rates = [one["samples_per_second"] for one in rounds_of_side]
        medians[side]["spread"] = max(rates) / min(rates)
        medians[side]["fewest_cores"] = min(one["cores"] for one in rounds_of_side)
    return medians


def disturbed(measured: dict[str, dict[str, float]]) -> list[str]:
    """Say which sides were not alone on the machine; ratios to or of them mean nothing."""
    cores = torch.get_num_threads()
    return [
        f"{side} had {told['fewest_cores']:.2f} of {cores} cores in one round, and its rounds differ by "
        f"{told['spread']:.2f} x"
        for side, told in measured.items()
        if told["fewest_cores"] < _SHARE_OF_CORES * cores or told["spread"] > _SPREAD
    ]


def show(workload: str, size: str, measured: dict[str, dict[str, float]], peak: float) -> None:
    """Print one workload's sides, and caldera's ratios to the others."""
    print(f"\n{workload}, {size}, batch {WORKLOADS[workload].batch}")
    print(
        f"{'':10}{'samples/s':>11}{'tokens/s':>10}{'of peak':>9}{'peak GB':>9}{'cores':>7}{'spread':>8}"
    )
    for side, told in measured.items():
        share = told["flops_per_second"] / peak
        shown = "-" if math.isnan(share) else f"{share:.0%}"
        print(
            f"{side:10}{told['samples_per_second']:11.2f}{told['tokens_per_second']:10.0f}{shown:>9}"
            f"{told['peak_bytes'] / 1e9:9.2f}{told['cores']:7.2f}{told['spread']:8.2f}"
        )
    if faults := disturbed(measured):
        print("the machine was not ours alone, so no ratios are told:", *faults, sep="\n  ")
        return
    mine = measured["caldera"]
    for side, other in measured.items():
        if side == "caldera":
            continue
        print(
            f"caldera is {mine['samples_per_second'] / other['samples_per_second']:.2f} x {side} "
            f"({mine['first_epoch_samples_per_second'] / other['samples_per_second']:.2f} x in a first epoch), in "
            f"{mine['peak_bytes'] / other['peak_bytes']:.2f} x its memory"
        )


def main() -> None:
    """Measure all workloads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--size", choices=SIZES, default="211m")
    parser.add_argument("--workload", choices=WORKLOADS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--side", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        side, workload, size, folder, steps = given.side
        print(json.dumps(run_side(side, workload, size, Path(folder), int(steps))))
        return
    peak = matmul_peak()
    print(f"bf16 products: {peak / 1e9:.0f} GFLOP/s; load of the machine {os.getloadavg()[0]:.1f}")
    if "trl" not in sides():
        print("trl is not installed, its side is left out: pip install -e '.[bench]'")
    results: dict[str, object] = {"size": given.size, "matmul_peak": peak}
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch), SIZES[given.size])
        for workload in given.workload or WORKLOADS:
            measured = measure(workload, given.size, Path(scratch), given.rounds, given.steps)
            show(workload, given.size, measured, peak)
            results[workload] = measured
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
