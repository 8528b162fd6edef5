"""Training, caldera beside transformers in one run: `python benchmarks/train.py [--json FILE]`.

The same weights, records and precision (bf16 products over fp32 weights) on both sides:

- padded: transformers' own LlavaForConditionalGeneration, random batches padded to their longest, as its users train it
- grouped: the same with batches of like lengths
- trl: TRL's SFTTrainer, random batches, where TRL is installed (the extra `bench`)
- caldera: this package's step, with batches of like lengths and the frozen tower's features kept

Workloads: stage 1 captions; stage 2 in LLaVA-Instruct's shape (two conversations a picture, lengths log-normal around
200 tokens); VQA's shape (ten short questions a picture). Every side and workload is a process of its own, so that its
peak memory is its own; sides take turns, and the median of the rounds counts. Pixels are prepared beforehand on both
sides. `first epoch` also counts caldera's one pass of the tower over the pictures.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from caldera.batches.labels import IGNORED
from caldera.batches.packing import about_the_same
from caldera.batches.picture_sources import Pixels
from caldera.batches.sampler import Plan, StepSize
from caldera.batches.samples import Sample, SampleMaker
from caldera.batches.templates import find_template
from caldera.conversation import Conversation, Picture, Turn
from caldera.model.assemble import assemble
from caldera.model.folder import Assistant, load_assistant, save_assistant
from caldera.processor import keep_freed_memory
from caldera.progress import Silent
from caldera.scenes.backbones import find_backbone
from caldera.skips import Skips
from caldera.training.devices import Compute, Means
from caldera.training.features import stop_at, tower_features
from caldera.training.freeze import train_only
from caldera.training.loop import lay, passes
from caldera.training.optimiser import build_optimiser
from caldera.training.stage import FINETUNE, PRETRAIN, Stage
from caldera.training.step import training_step

SIDES = ("padded", "grouped", "trl", "caldera")
COMPUTE = Compute(torch.device("cpu"), torch.bfloat16)
BATCH = 8
_SHARE_OF_CORES, _SPREAD = 0.85, 1.25
"""A side that has fewer cores in a round, or whose rounds differ by more, was disturbed by other work."""

Step = Callable[[Sequence[Sample]], None]


@dataclass(frozen=True)
class Size:
    """Two towers."""

    side: int
    patch: int
    vision: tuple[int, int]
    """Width and layers."""

    language: tuple[int, int]
    vocabulary: int


SIZES = {
    "211m": Size(224, 16, (768, 12), (576, 30), 32_064),
    "26m": Size(112, 16, (384, 6), (384, 8), 8_192),
}


@dataclass(frozen=True)
class Workload:
    """What is trained on: pictures, conversations about each, questions of one, and words of an answer."""

    stage: Stage
    pictures: int
    conversations: int
    questions: int
    words: Callable[[random.Random], int]


WORKLOADS = {
    "captions": Workload(PRETRAIN, 48, 1, 1, lambda rng: rng.randint(8, 20)),
    "instruct": Workload(
        FINETUNE, 24, 2, 3, lambda rng: min(200, max(4, round(rng.lognormvariate(3.4, 0.7))))
    ),
    "vqa": Workload(FINETUNE, 24, 10, 1, lambda rng: rng.randint(1, 2)),
}


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, forward and backward, by torch's own formulas."""

    def __init__(self) -> None:
        """Begin at none."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Let an operation run, and count it."""
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def write_model(folder: Path, size: Size) -> None:
    """Join two random towers of a size into a model folder."""
    torch.manual_seed(0)
    width, layers = size.vision
    tower = CLIPVisionConfig(
        image_size=size.side, patch_size=size.patch, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=width // 64, intermediate_size=4 * width,
    )  # fmt: skip
    CLIPVisionModel(tower).save_pretrained(folder / "vision")
    CLIPImageProcessorPil(
        size={"shortest_edge": size.side}, crop_size={"height": size.side, "width": size.side}
    ).save_pretrained(folder / "vision")
    width, layers = size.language
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=width // 192, intermediate_size=round(width * 8 / 3), max_position_embeddings=4096,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "language")
    words = AutoTokenizer.from_pretrained(find_backbone("scenes-llama"))
    words.model_max_length = 4096
    words.save_pretrained(folder / "language")
    save_assistant(folder / "model", assemble(folder / "vision", folder / "language"))


def conversations(load: Workload, folder: Path, side: int) -> list[Conversation]:
    """Write pictures of noise and conversations of common words about them."""
    rng = random.Random(1)
    words = [
        "the",
        "dog",
        "is",
        "on",
        "a",
        "red",
        "car",
        "and",
        "two",
        "cats",
        "sit",
        "near",
        "it",
        "tree",
    ]
    made = []
    for number in range(load.pictures):
        path = folder / f"{number}.png"
        Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side)).save(path)
        for talk in range(load.conversations):
            turns = []
            for turn in range(load.questions):
                asked = " ".join(rng.choices(words, k=9)) + "?"
                turns.append(
                    Turn("user", (Picture(path.name), f"\n{asked}") if turn == 0 else (asked,))
                )
                told = " ".join(rng.choices(words, k=load.words(rng)))
                turns.append(Turn("assistant", (told,)))
            made.append(Conversation(f"{number}-{talk}", tuple(turns)))
    return made


def samples_of(load: Workload, assistant: Assistant, folder: Path, side: int) -> list[Sample]:
    """Encode a workload; every side gets these."""
    maker = SampleMaker(
        tokenizer=assistant.tokenizer, template=find_template(load.stage.template),
        image_token_id=assistant.model.image_token_id, layout=assistant.processor.layout,
        count_tokens=assistant.model.count_tokens, max_length=2048,
    )  # fmt: skip
    return maker.make_all(conversations(load, folder, side), folder, Skips())


def padded(rows: Sequence[Sequence[int]], by: int) -> Tensor:
    """Return rows of numbers, padded on the right to the longest."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[by] * (width - len(row))] for row in rows])


def transformers_step(model: Path, load: Workload, assistant: Assistant) -> Step:
    """Return the step that users of transformers take."""
    peer = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    parts = {"projector": peer.model.multi_modal_projector, "language": peer.model.language_model}
    peer.requires_grad_(False)
    for part in load.stage.trains:
        parts[part].requires_grad_(True)
    peer.train()
    moving = [each for each in peer.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(moving, lr=1e-5, fused=True)
    pixels: dict[Path, Tensor] = {}
    source = Pixels(assistant.processor)

    def step(samples: Sequence[Sample]) -> None:
        paths = [path for sample in samples for path in sample.pictures]
        for path in paths:
            pixels[path] = pixels[path] if path in pixels else source([path])
        ids = padded([sample.ids for sample in samples], assistant.tokenizer.pad_token_id)
        labels = padded([sample.labels for sample in samples], IGNORED)
        mask = padded([[1] * sample.length for sample in samples], 0)
        with COMPUTE.autocast():
            loss = peer(
                input_ids=ids, attention_mask=mask, labels=labels,
                pixel_values=torch.cat([pixels[path] for path in paths]),
            ).loss  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def caldera_step(
    load: Workload, assistant: Assistant, samples: Sequence[Sample], kept: Path
) -> tuple[Step, float]:
    """Return this package's step, and the seconds that its features took."""
    keep_freed_memory()
    begun = time.perf_counter()
    paths = list(dict.fromkeys(path for sample in samples for path in sample.pictures))
    means = Means(COMPUTE, Silent())
    source = tower_features(assistant, kept, paths, means=means, on_fault=stop_at)
    looked = time.perf_counter() - begun
    model = assistant.model
    train_only(model, load.stage.trains)
    model.arrange(COMPUTE.attention)
    model.train()
    stage = replace(load.stage, learning_rate=1e-5)
    optimiser = build_optimiser(model, stage)

    def step(some: Sequence[Sample]) -> None:
        batches = [lay(packs, source) for packs in passes(some, stage, share=True)]
        training_step(
            model, batches, optimiser, max_grad_norm=1.0, compute=COMPUTE,
            names=[sample.id for sample in some],
        )  # fmt: skip

    return step, looked


def run_trl_side(workload: str, size: str, folder: Path, steps: int) -> dict[str, float]:
    """Take steps by TRL's own trainer; the operations in its loop are not counted."""
    from trl_side import run_trl  # only there where TRL is

    load = WORKLOADS[workload]
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(scratch)
        told = conversations(load, pictures, SIZES[size].side)
        samples, tokens, cores = run_trl(
            folder / "model", told, pictures, template=load.stage.template, trains=load.stage.trains, batch=BATCH,
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
    load, assistant = WORKLOADS[workload], load_assistant(folder / "model")
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
        plan = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        if side != "padded":
            groups = about_the_same(samples) if side == "caldera" else None
            dealt = Plan(
                lengths=lengths, groups=groups, size=StepSize(samples=BATCH), epochs=1, seed=3
            )
            plan = dealt.epoch(0)
        batches = [[samples[at] for at in indices] for indices in plan if len(indices) == BATCH]
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
        "samples_per_second": steps * BATCH / seconds,
        "tokens_per_second": tokens / seconds,
        "first_epoch_samples_per_second": 1 / (seconds / steps / BATCH + per_sample),
        "flops_of_a_step": counted.total,
        "flops_per_second": counted.total / (seconds / steps),
        "cores": cores,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def matmul_peak() -> float:
    """Measure bf16 products of square matrices, in operations a second."""
    one, other = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    one @ other
    begun = time.perf_counter()
    for _ in range(10):
        one @ other
    return 10 * 2 * 2048**3 / (time.perf_counter() - begun)


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
    print(f"\n{workload}, {size}, batch {BATCH}")
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
