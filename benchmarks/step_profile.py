"""Where a training step's time goes: `python benchmarks/step_profile.py [--side caldera] [--workload instruct]`.

The sides, sizes and workloads are those of `benchmarks/train.py`; each is a process of its own. Steps take samples in
the order of their images, so both sides get the same ones. Torch's profiler tells the time that every operation spent
in itself, and the operations are put into groups by their names; products with the vocabulary belong to the loss. What
is left of the step's time, in which no operation ran, is Python and waiting. Every table says how many cores the step
really had: on a machine that others use, its rates say little.

It is not called profile.py: beside the other scripts that name would be taken for Python's own module.
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

from caldera.batches.samples import Sample
from caldera.formats.model_folder import load_model_folder

GROUPS = (
    "matmul", "attention", "elementwise, norms", "loss", "optimiser", "casts, copies", "loading", "other operations",
    "Python, waiting",
)  # fmt: skip

_PRODUCTS = {"aten::mm", "aten::addmm", "aten::convolution", "aten::mkldnn_convolution"}

_BY_WORD = {
    "attention": ("bmm", "scaled_dot", "flash_attention", "_softmax", "baddbmm"),
    "loss": ("log_softmax", "nll_loss", "cross_entropy", "logsumexp"),
    "optimiser": ("adam", "optimizer", "foreach", "linalg_vector_norm", "_norm_"),
    "casts, copies": (
        "copy_", "_to_copy", "aten::to", "contiguous", "clone", "aten::cat", "index", "gather", "zero_", "fill_",
        "narrow", "slice", "empty", "embedding", "constant_pad", "scatter",
    ),
    "elementwise, norms": (
        "mul", "add", "sub", "div", "neg", "rsqrt", "pow", "mean", "sum", "silu", "gelu", "sigmoid", "layer_norm",
        "rms_norm", "cos", "sin", "exp", "where", "masked", "clamp",
    ),
}  # fmt: skip
"""Parts of operations' names, looked for in this order; all of them are torch's."""

_LOADING = "loading"
"""The mark that caldera's step puts on laying its batch; all operations below it count as loading."""


def group_of(name: str, shapes: Sequence[Any], vocabulary: int) -> str:
    """Return the group of an operation.

    Args:
        name: As the profiler calls it.
        shapes: Of its arguments.
        vocabulary: Words of the model; a product with an axis so long makes logits, or comes from them.
    """
    if name.split("::")[-1] in {"mm", "addmm"} and any(
        vocabulary in shape for shape in shapes if isinstance(shape, list)
    ):
        return "loss"
    if name in _PRODUCTS or "linear" in name:
        return "matmul"
    # log_softmax has _softmax in its name
    for group in ("loss", *(each for each in _BY_WORD if each != "loss")):
        if any(word in name.lower() for word in _BY_WORD[group]):
            return group
    return "other operations"


def is_loading(event: Any) -> bool:  # noqa: ANN401 - the profiler's, without types
    """Tell whether an operation belongs to the laying of a batch."""
    while event is not None and event.key != _LOADING:
        event = event.cpu_parent
    return event is not None


def profiled(step: Step, batches: Iterable[Sequence[Sample]], vocabulary: int) -> dict[str, float]:
    """Take steps under the profiler.

    Returns:
        Seconds of each group, and `wall`, `cpu`, `products` and `flops`: of all steps, of the process, of the matrix
        products (those of the loss among them), and their operations.
    """
    cpu, begun = time.process_time(), time.perf_counter()
    with profile(
        activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True, acc_events=True
    ) as seen:
        for batch in batches:
            with record_function("step"):
                step(batch)
    told = {"wall": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
    seconds: dict[str, float] = defaultdict(float)
    products = flops = 0.0
    for event in seen.events() or ():
        if event.key == "step":
            continue
        spent = event.self_cpu_time_total / 1e6
        loads = is_loading(event)
        seconds["loading" if loads else group_of(event.key, event.input_shapes, vocabulary)] += (
            spent
        )
        if event.key in {"aten::mm", "aten::addmm"}:
            products += spent
            flops += event.flops or 0
    seconds["Python, waiting"] = max(0.0, told["wall"] - sum(seconds.values()))
    return {**seconds, **told, "products": products, "flops": flops}


def show(title: str, told: dict[str, float], peak: float, steps: int) -> None:
    """Print where the time went."""
    wall, cores = told["wall"], told["cpu"] / told["wall"]
    print(f"\n{title}: {wall / steps * 1e3:.0f} ms a step, on {cores:.2f} cores")
    for group in GROUPS:
        spent = told.get(group, 0.0)
        print(f"  {group:20}{spent / steps * 1e3:10.1f} ms{spent / wall:8.1%}")
    rate = told["flops"] / told["products"] if told["products"] else math.nan
    print(
        f"  matrix products ran at {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of the measured {peak / 1e9:.0f}"
    )
    if cores < 0.9 * torch.get_num_threads():
        print(
            f"  the step had {cores:.2f} of {torch.get_num_threads()} cores: others use this machine"
        )


def run(side: str, workload: str, size: str, folder: Path, steps: int) -> None:
    """Profile one side in this process."""
    load, assistant = WORKLOADS[workload], load_model_folder(folder / "model")
    with tempfile.TemporaryDirectory() as scratch:
        samples = samples_of(load, assistant, Path(scratch), SIZES[size].side)
        if side == "caldera":
            step, _ = caldera_step(load, assistant, samples, Path(scratch) / "kept")
        else:
            step = transformers_step(folder / "model", load, assistant)
        batch = load.batch
        cut = [samples[at : at + batch] for at in range(0, len(samples) - batch + 1, batch)]
        for number in range(2):  # the first steps are slow
            step(cut[number % len(cut)])
        peak = matmul_peak()
        told = profiled(step, [cut[at % len(cut)] for at in range(steps)], SIZES[size].vocabulary)
    show(f"{side}, {workload}, {size}, batch {WORKLOADS[workload].batch}", told, peak, steps)


def main() -> None:
    """Profile the sides that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="211m")
    parser.add_argument("--workload", choices=WORKLOADS, action="append")
    parser.add_argument("--side", choices=("padded", "caldera"), action="append")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sides, loads = given.side or ["padded", "caldera"], given.workload or list(WORKLOADS)
    if given.run:
        run(sides[0], loads[0], given.size, given.run, given.steps)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch), SIZES[given.size])
        for load in loads:
            for side in sides:
                words = [sys.executable, __file__, "--run", scratch, "--size", given.size]
                words += ["--steps", str(given.steps), "--side", side, "--workload", load]
                subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
