"""Inference speed of caldera's engine, transformers and llama.cpp: `python benchmarks/serve.py [--json FILE]`.

Random weights of the sizes in SIZES, the same on all sides; greedy answers of a fixed length about images of noise.

- transformers: LlavaForConditionalGeneration.generate in bf16
- caldera, caldera int8: the engine in bf16, and with its language model in int8
- llama.cpp f16, llama.cpp q8_0: llama-cpp-python with the files of `caldera export --to gguf`

Every side runs in its own process; sides take turns, and the median of the rounds counts. Measured are the time from a
decoded image and a question to the first token, and the tokens per second after it; for caldera also the time to the
first token of a second turn, with and without the cached first turn, and the tokens per second of concurrent requests,
about one cached image and about a new image each.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from serve_models import SIZES, write_model
from transformers import LlavaForConditionalGeneration

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.formats.gguf.export import gguf_files
from caldera.formats.model_folder import load_model_folder
from caldera.inference.engine import Engine, EngineConfig, Request, SamplingParams
from caldera.inference.packed_linear import Quantization
from caldera.inference.prompts import Prompt, PromptBuilder, process_image
from caldera.model.bundle import LlavaBundle
from caldera.templates.registry import VICUNA_SYSTEM

SIDES = ("transformers", "caldera", "caldera int8", "llama.cpp f16", "llama.cpp q8_0")
CONCURRENT = (1, 2, 4, 8, 16)
QUESTION = (
    "What do you see in the image? Describe all things, their colours, and where they are. " * 2
)


def noise(number: int, side: int) -> Image.Image:
    """Return an image of noise with this seed."""
    values = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


def conversation(*texts: str) -> Conversation:
    """Return a conversation about one image with alternating questions and answers."""
    turns = [Turn("user", (ImageRef("image"), f"\n{texts[0]}"))]
    for number, text in enumerate(texts[1:]):
        turns.append(Turn("user" if number % 2 else "assistant", (text,)))
    return Conversation("benchmark", tuple(turns))


@dataclass(frozen=True)
class Timing:
    """Speed of one answer."""

    first: float
    """Seconds to the first token."""

    rate: float
    """Tokens per second after the first."""


def timing_of(start_time: float, times: Sequence[float]) -> Timing:
    """Return the speed of an answer from the times of its tokens."""
    span = times[-1] - times[0]
    return Timing(times[0] - start_time, (len(times) - 1) / span if span else 0.0)


Ask = Callable[[Image.Image, int], Timing]
"""Answers the question about an image with a number of tokens."""


def transformers_side(model: Any, assistant: LlavaBundle) -> Ask:  # noqa: ANN401 - generate is untyped
    """Return a function that answers with transformers' LlavaForConditionalGeneration of the assistant's weights."""
    prompt_builder = PromptBuilder(assistant)

    class Clock:
        """Streamer that records the time of each token."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: object) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def ask(image: Image.Image, tokens: int) -> Timing:
        start_time, clock = time.perf_counter(), Clock()
        processed = process_image(image, assistant.processor)
        prompt = prompt_builder.from_images(conversation(QUESTION), [processed])
        model.generate(
            input_ids=torch.tensor([prompt.ids], device=model.device),
            pixel_values=processed.views.to(model.device, model.dtype), max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False, streamer=clock, pad_token_id=0,
        )  # fmt: skip
        # The first call is for the prompt.
        return timing_of(start_time, clock.times[1:])

    return ask


class CalderaSide:
    """Answers with caldera's engine."""

    def __init__(self, assistant: LlavaBundle, quantization: Quantization = "as stored") -> None:
        """Start the engine."""
        self.engine = Engine(
            assistant, EngineConfig(quantization=quantization, slots=max(CONCURRENT))
        )
        self.side = assistant.processor.side
        self._number = 1000

    def new_image(self) -> Image.Image:
        """Return an image that was not used before."""
        self._number += 1
        return noise(self._number, self.side)

    def prompt(self, image: Image.Image, *texts: str) -> Prompt:
        """Return the prompt of a conversation about an image."""
        return self.engine.build_prompt(conversation(*texts), [self.engine.prepare_image(image)])

    def ask(self, image: Image.Image, tokens: int) -> Timing:
        """Answer one question."""
        return self.answer(image, tokens, QUESTION)[0]

    def answer(self, image: Image.Image, tokens: int, *texts: str) -> tuple[Timing, str]:
        """Answer a conversation, and return the speed and the text."""
        start_time = time.perf_counter()
        request = Request(
            self.prompt(image, *texts), SamplingParams(max_new_tokens=tokens, logprobs=False)
        )
        times, text = [], ""
        for delta in self.engine.submit(request):
            times += [time.perf_counter()] * len(delta.tokens)
            text += delta.text
        return timing_of(start_time, times), text

    def next_turn(self) -> dict[str, float]:
        """Return the time to the first token of a second turn, with a cached and with a new image."""
        cached_image, new_image = self.new_image(), self.new_image()
        _, text = self.answer(cached_image, 16, QUESTION)
        cached, _ = self.answer(cached_image, 2, QUESTION, text, "And what else?")
        uncached, _ = self.answer(new_image, 2, QUESTION, text, "And what else?")
        return {
            "second_turn_seconds": cached.first,
            "second_turn_uncached_seconds": uncached.first,
        }

    def throughput(self, count: int, tokens: int, *, new: bool) -> float:
        """Return the tokens per second of concurrent requests."""
        cached_image = self.new_image()
        self.answer(cached_image, 2, QUESTION)
        images = [self.new_image() if new else cached_image for _ in range(count)]
        start_time = time.perf_counter()
        streams = [
            self.engine.submit(
                Request(
                    self.prompt(image, f"{QUESTION} In {number} words?"),
                    SamplingParams(max_new_tokens=tokens),
                )
            )
            for number, image in enumerate(images)
        ]
        for stream in streams:
            stream.read_all()
        num_tokens = sum(stream.usage.completion_tokens for stream in streams)
        return num_tokens / (time.perf_counter() - start_time)


class LlamaCppSide:
    """Answers with llama.cpp."""

    def __init__(self, folder: Path, file_format: str) -> None:
        """Load the two files of a format."""
        self._api, self._mtmd = import_module("llama_cpp"), import_module("llama_cpp.mtmd_cpp")
        self._quiet = self._api.llama_log_callback(lambda level, text, data: None)
        self._mtmd.mtmd_log_set(self._quiet, None)
        self._mtmd.mtmd_helper_log_set(self._quiet, None)
        files, threads = gguf_files(folder / file_format), torch.get_num_threads()
        self._model = self._api.Llama(
            str(files.language), n_ctx=2048, n_batch=1024, n_ubatch=1024, n_threads=threads, n_threads_batch=threads,
            verbose=False,
        )  # fmt: skip
        settings = self._mtmd.mtmd_context_params_default()
        settings.use_gpu, settings.n_threads, settings.print_timings = False, threads, False
        self._tower = self._mtmd.mtmd_init_from_file(
            str(files.vision).encode(), self._model.model, settings
        )

    def ask(self, image: Image.Image, tokens: int) -> Timing:
        """Answer one question."""
        start_time = time.perf_counter()
        prompt_length = self._prefill(image)
        times = []
        batch = self._api.llama_batch_init(1, 0, 1)
        for position in range(prompt_length, prompt_length + tokens):
            logits = self._api.llama_get_logits_ith(self._model.ctx, -1)
            token = int(np.ctypeslib.as_array(logits, (self._model.n_vocab(),)).argmax())
            times.append(time.perf_counter())
            batch.n_tokens, batch.token[0], batch.pos[0] = 1, token, position
            batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, 1
            assert self._api.llama_decode(self._model.ctx, batch) == 0
        self._api.llama_batch_free(batch)
        return timing_of(start_time, times)

    def _prefill(self, image: Image.Image) -> int:
        """Prefill image and question, and return their number of positions."""
        api, mtmd = self._api, self._mtmd
        api.llama_memory_clear(api.llama_get_memory(self._model.ctx), True)
        values = np.ascontiguousarray(np.asarray(image))
        data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(image.width, image.height, data)
        text = f"{VICUNA_SYSTEM} USER: {mtmd.mtmd_default_marker().decode()}\n{QUESTION} ASSISTANT:"
        prompt = mtmd.mtmd_input_text()
        prompt.text, prompt.text_len = text.encode(), len(text.encode())
        prompt.add_special = prompt.parse_special = True
        chunks = mtmd.mtmd_input_chunks_init()
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        assert mtmd.mtmd_tokenize(self._tower, chunks, ctypes.byref(prompt), bitmaps, 1) == 0
        position = api.llama_pos(0)
        code = mtmd.mtmd_helper_eval_chunks(
            self._tower, self._model.ctx, chunks, 0, 0, 1024, True, ctypes.byref(position)
        )
        assert code == 0, f"llama.cpp returned {code}"
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return int(position.value)


def peak_bytes() -> int:
    """Return the peak memory of this process, mapped files included; getrusage would include its parent's."""
    [line] = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


def run_side(side: str, size: str, folder: Path, tokens: int) -> dict[str, float]:
    """Measure one side."""
    results: dict[str, float] = {}
    engine: CalderaSide | None = None
    ask: Ask
    if side == "transformers":
        model = LlavaForConditionalGeneration.from_pretrained(
            folder / "model", dtype=torch.bfloat16
        )
        ask = transformers_side(model, load_model_folder(folder / "model", torch.bfloat16))
    elif side.startswith("caldera"):
        assistant = load_model_folder(folder / "model", torch.bfloat16)
        engine = CalderaSide(assistant, "int8" if side.endswith("int8") else "as stored")
        ask = engine.ask
    else:
        ask = LlamaCppSide(folder, side.split()[1]).ask
    # The first answer is slow.
    ask(noise(0, SIZES[size].side), 4)
    answers = [ask(noise(number, SIZES[size].side), tokens) for number in (1, 2)]
    results["first_token_seconds"] = min(answer.first for answer in answers)
    results["tokens_per_second"] = max(answer.rate for answer in answers)
    if engine is not None:
        results |= engine.next_turn()
        for count in CONCURRENT:
            results[f"cached_{count}"] = engine.throughput(count, tokens, new=False)
        for count in (1, 8):
            results[f"new_{count}"] = engine.throughput(count, tokens, new=True)
        engine.engine.close()
    results["peak_bytes"] = peak_bytes()
    return results


def measure(
    sides: Sequence[str], size: str, folder: Path, rounds: int, tokens: int
) -> dict[str, dict[str, float]]:
    """Run the sides in turn, each in its own process, and return the medians of each."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            command = [sys.executable, __file__, "--run", side, size, str(folder), str(tokens)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[side].append(json.loads(output.splitlines()[-1]))
    return {
        side: {name: statistics.median(result[name] for result in items) for name in items[0]}
        for side, items in results.items()
    }


def print_results(size: str, measured: dict[str, dict[str, float]]) -> None:
    """Print the results of all sides, and the ratios of caldera to the others."""
    print(f"\n{size}\n{'':16}{'first token, s':>15}{'tokens/s':>10}{'peak GB':>9}")
    for side, result in measured.items():
        print(
            f"{side:16}{result['first_token_seconds']:15.2f}{result['tokens_per_second']:10.1f}"
            f"{result['peak_bytes'] / 1e9:9.2f}"
        )
    for side in (side for side in measured if side.startswith("caldera")):
        result = measured[side]
        for other in (side for side in measured if not side.startswith("caldera")):
            first = measured[other]["first_token_seconds"] / result["first_token_seconds"]
            rate = result["tokens_per_second"] / measured[other]["tokens_per_second"]
            print(f"{side} relative to {other}: first token {first:.2f} x, tokens/s {rate:.2f} x")
        cached, uncached = result["second_turn_seconds"], result["second_turn_uncached_seconds"]
        print(
            f"{side}: first token of the second turn {cached:.3f} s, without the cache {uncached:.2f} s: "
            f"{uncached / cached:.1f} x"
        )
        for kind in ("cached", "new"):
            rates = {
                int(name.split("_")[1]): rate
                for name, rate in result.items()
                if name.startswith(f"{kind}_")
            }
            line = ", ".join(
                f"{count}: {rate:.0f} ({rate / rates[1]:.2f} x)" for count, rate in rates.items()
            )
            print(f"{side}: tokens/s by number of requests, {kind} image: {line}")


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--side", choices=SIDES, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="length of an answer")
    parser.add_argument("--models", type=Path, help="folder to keep the models in for the next run")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        side, size, folder, tokens = args.run
        print(json.dumps(run_side(side, size, Path(folder), int(tokens))))
        return
    print(f"load {os.getloadavg()[0]:.1f}")
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size in args.size or SIZES:
            folder = (args.models or Path(scratch)) / size
            if not (folder / "q8_0").is_dir():
                write_model(folder, SIZES[size])
            measured = measure(args.side or SIDES, size, folder, args.rounds, args.tokens)
            print_results(size, measured)
            results[size] = measured
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
