"""Profile of a training step: `python benchmarks/step_profile.py [--side caldera] [--workload instruct]`.

The sides, sizes and workloads are those of `benchmarks/train.py`; each runs in its own process. Both sides get the same
samples in the order of their images. Operations are grouped by name, with their self time from torch's profiler;
products with the vocabulary belong to the loss. The rest of the step's time is Python and waiting. Each table has the
number of cores the step used: rates on a shared machine are not meaningful.

Not named profile.py, which would shadow Python's own module for the other scripts.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from train import Step, caldera_step, transformers_step
from train_workloads import SIZES, WORKLOADS, matmul_peak, samples_of, write_model
from transformers import LlavaForConditionalGeneration

from caldera.batches.samples import Sample
from caldera.formats.model_folder import load_model_folder

GROUPS = (
    "matmul", "attention", "elementwise, norms", "loss", "optimizer", "casts, copies", "loading", "other operations",
    "Python, waiting",
)  # fmt: skip

_PRODUCTS = {"aten::mm", "aten::addmm", "aten::convolution", "aten::mkldnn_convolution"}

_NAME_PARTS = {
    "attention": ("bmm", "scaled_dot", "flash_attention", "_softmax", "baddbmm"),
    "loss": ("log_softmax", "nll_loss", "cross_entropy", "logsumexp"),
    "optimizer": ("adam", "optimizer", "foreach", "linalg_vector_norm", "_norm_"),
    "casts, copies": (
        "copy_", "_to_copy", "aten::to", "contiguous", "clone", "aten::cat", "index", "gather", "zero_", "fill_",
        "narrow", "slice", "empty", "embedding", "constant_pad", "scatter",
    ),
    "elementwise, norms": (
        "mul", "add", "sub", "div", "neg", "rsqrt", "pow", "mean", "sum", "silu", "gelu", "sigmoid", "layer_norm",
        "rms_norm", "cos", "sin", "exp", "where", "masked", "clamp",
    ),
}  # fmt: skip
"""Parts of the names of torch's operations, tested in this order."""

_LOADING = "loading"
"""Profiler range of building a batch in caldera's step; all operations within it count as loading."""


def group_of(name: str, shapes: Sequence[Any], vocabulary: int) -> str:
    """Return the group of an operation.

    Args:
        name: Name in the profiler.
        shapes: Shapes of its arguments.
        vocabulary: Vocabulary size; a product with an axis of this length is part of the loss.
    """
    if name.split("::")[-1] in {"mm", "addmm"} and any(
        vocabulary in shape for shape in shapes if isinstance(shape, list)
    ):
        return "loss"
    if name in _PRODUCTS or "linear" in name:
        return "matmul"
    # The loss comes first: log_softmax contains _softmax.
    for group in ("loss", *(name for name in _NAME_PARTS if name != "loss")):
        if any(part in name.lower() for part in _NAME_PARTS[group]):
            return group
    return "other operations"


def is_loading(event: Any) -> bool:  # noqa: ANN401 - the profiler has no types
    """Return whether an operation is part of building a batch."""
    while event is not None and event.key != _LOADING:
        event = event.cpu_parent
    return event is not None


def profile_steps(
    step: Step, batches: Iterable[Sequence[Sample]], vocabulary: int
) -> dict[str, float]:
    """Run steps under the profiler.

    Returns:
        Seconds of each group; `wall` and `cpu` time of all steps; `products`, the seconds of all matrix products, and
        their `flops`.
    """
    cpu, start_time = time.process_time(), time.perf_counter()
    with profile(
        activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True, acc_events=True
    ) as profiler:
        for batch in batches:
            with record_function("step"):
                step(batch)
    times = {"wall": time.perf_counter() - start_time, "cpu": time.process_time() - cpu}
    seconds: dict[str, float] = defaultdict(float)
    products = flops = 0.0
    for event in profiler.events() or ():
        if event.key == "step":
            continue
        self_time = event.self_cpu_time_total / 1e6
        group = group_of(event.key, event.input_shapes, vocabulary)
        seconds["loading" if is_loading(event) else group] += self_time
        if event.key in {"aten::mm", "aten::addmm"}:
            products += self_time
            flops += event.flops or 0
    seconds["Python, waiting"] = max(0.0, times["wall"] - sum(seconds.values()))
    return {**seconds, **times, "products": products, "flops": flops}


def print_profile(title: str, times: dict[str, float], peak: float, steps: int) -> None:
    """Print the time of each group."""
    wall, cores = times["wall"], times["cpu"] / times["wall"]
    print(f"\n{title}: {wall / steps * 1e3:.0f} ms a step, on {cores:.2f} cores")
    for group in GROUPS:
        seconds = times.get(group, 0.0)
        print(f"  {group:20}{seconds / steps * 1e3:10.1f} ms{seconds / wall:8.1%}")
    rate = times["flops"] / times["products"] if times["products"] else math.nan
    print(
        f"  matrix products ran at {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of the measured {peak / 1e9:.0f}"
    )
    if cores < 0.9 * torch.get_num_threads():
        print(
            f"  the step used {cores:.2f} of {torch.get_num_threads()} cores: the machine is shared"
        )


def run(side: str, workload: str, size: str, folder: Path, steps: int) -> None:
    """Profile one side in this process."""
    load, assistant = WORKLOADS[workload], load_model_folder(folder / "model")
    with tempfile.TemporaryDirectory() as scratch:
        samples = samples_of(load, assistant, Path(scratch), SIZES[size].side)
        if side == "caldera":
            step, _ = caldera_step(load, assistant, samples, Path(scratch) / "features")
        else:
            model = LlavaForConditionalGeneration.from_pretrained(
                folder / "model", dtype=torch.float32
            )
            step = transformers_step(model, load, assistant)
        batch = load.batch
        starts = range(0, len(samples) - batch + 1, batch)
        batches = [samples[start : start + batch] for start in starts]
        # The first steps are slow.
        for number in range(2):
            step(batches[number % len(batches)])
        peak = matmul_peak()
        measured = [batches[number % len(batches)] for number in range(steps)]
        times = profile_steps(step, measured, SIZES[size].vocabulary)
    print_profile(f"{side}, {workload}, {size}, batch {batch}", times, peak, steps)


def main() -> None:
    """Profile the given sides and workloads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="211m")
    parser.add_argument("--workload", choices=WORKLOADS, action="append")
    parser.add_argument("--side", choices=("padded", "caldera"), action="append")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sides, workloads = args.side or ["padded", "caldera"], args.workload or list(WORKLOADS)
    if args.run:
        run(sides[0], workloads[0], args.size, args.run, args.steps)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch), SIZES[args.size])
        for workload in workloads:
            for side in sides:
                command = [sys.executable, __file__, "--run", scratch, "--size", args.size]
                command += ["--steps", str(args.steps), "--side", side, "--workload", workload]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
