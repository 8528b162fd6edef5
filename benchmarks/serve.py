"""Answering, caldera's engine beside transformers and llama.cpp in one run: `python benchmarks/serve.py [--json FILE]`.

Random weights of the shapes in SIZES, the same on all sides; greedy answers of a fixed length about images of noise.

- transformers: LlavaForConditionalGeneration.generate in bf16, as its users call it
- caldera, caldera int8: the engine in bf16, and with its language model in int8
- llama.cpp f16, llama.cpp q8_0: by llama-cpp-python, from the files that `caldera export --to gguf` writes

Every side is a process of its own; sides take turns, and the median of the rounds counts. Measured are the time from a
decoded image and a question to the first token; tokens a second from there on; for caldera also the first token of a
next turn beside that of the same two turns about an image it has not seen, and the tokens a second of several requests
at a time, about one image that was seen before and about a new image each.
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
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.formats.assemble import assemble
from caldera.formats.gguf.export import gguf_files, write_gguf_files
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.inference.engine import Engine, EngineConfig, Request, SamplingParams
from caldera.inference.packed_linear import Quantization
from caldera.inference.prompts import Prompt, PromptBuilder, process_image
from caldera.progress import NoProgress
from caldera.scenes.backbones import find_backbone
from caldera.templates.template import VICUNA_SYSTEM

SIDES = ("transformers", "caldera", "caldera int8", "llama.cpp f16", "llama.cpp q8_0")
CONCURRENT = (1, 2, 4, 8, 16)
QUESTION = (
    "What do you see in the image? Describe all things, their colours, and where they are. " * 2
)


@dataclass(frozen=True)
class Size:
    """Two towers."""

    side: int
    patch: int
    vision: tuple[int, int, int]
    """Width, layers and heads."""

    language: tuple[int, int, int, int]
    """Width, layers, heads and key heads."""

    inner: int
    """Width within the language model's MLP."""

    vocabulary: int


SIZES = {
    "1.1b": Size(336, 14, (1024, 24, 16), (2048, 22, 32, 4), 5632, 32_064),
    "26m": Size(112, 16, (384, 6, 6), (384, 8, 6, 2), 1024, 8_192),
}


def write_model(folder: Path, size: Size) -> None:
    """Join two random towers of a size into a model folder in bf16, and write its GGUF files."""
    torch.manual_seed(0)
    width, layers, heads = size.vision
    tower = CLIPVisionConfig(
        image_size=size.side, patch_size=size.patch, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=4 * width, projection_dim=width,
    )  # fmt: skip
    CLIPVisionModel(tower).save_pretrained(folder / "vision")
    square = {"height": size.side, "width": size.side}
    CLIPImageProcessorPil(size={"shortest_edge": size.side}, crop_size=square).save_pretrained(
        folder / "vision"
    )
    width, layers, heads, key_heads = size.language
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, intermediate_size=size.inner, max_position_embeddings=4096,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "language")
    words = AutoTokenizer.from_pretrained(find_backbone("scenes-llama"))
    words.model_max_length = 4096
    words.save_pretrained(folder / "language")
    assistant = assemble(folder / "vision", folder / "language")
    assistant.model.bfloat16()
    save_model_folder(folder / "model", assistant)
    write_gguf_files(folder / "model", folder / "f16", "f16", NoProgress())
    write_gguf_files(folder / "model", folder / "q8_0", "q8_0", NoProgress())


def noise(number: int, side: int) -> Image.Image:
    """Return an image that is like no other."""
    values = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


def conversation(*said: str) -> Conversation:
    """Return a talk about one image: questions and answers in turn."""
    turns = [Turn("user", (ImageRef("image"), f"\n{said[0]}"))]
    for number, text in enumerate(said[1:]):
        turns.append(Turn("user" if number % 2 else "assistant", (text,)))
    return Conversation("benchmark", tuple(turns))


@dataclass(frozen=True)
class Timed:
    """One answer."""

    first: float
    """Seconds to its first token."""

    rate: float
    """Tokens a second from there on."""


def timed(begun: float, moments: Sequence[float]) -> Timed:
    """Say how fast an answer was whose tokens came at these moments."""
    span = moments[-1] - moments[0]
    return Timed(moments[0] - begun, (len(moments) - 1) / span if span else 0.0)


Ask = Callable[[Image.Image, int], Timed]
"""Answers about an image with so many tokens."""


def transformers_side(folder: Path) -> Ask:
    """Answer as users of transformers do."""
    peer: Any = LlavaForConditionalGeneration.from_pretrained(
        folder / "model", dtype=torch.bfloat16
    )
    assistant = load_model_folder(folder / "model", torch.bfloat16)
    prompter = PromptBuilder(assistant)

    class Clock:
        """Hears of each token."""

        def __init__(self) -> None:
            self.moments: list[float] = []

        def put(self, value: object) -> None:
            self.moments.append(time.perf_counter())

        def end(self) -> None:
            pass

    def ask(image: Image.Image, tokens: int) -> Timed:
        begun, clock = time.perf_counter(), Clock()
        prepared = process_image(image, assistant.processor)
        prompt = prompter.from_images(conversation(QUESTION), [prepared])
        peer.generate(
            input_ids=torch.tensor([prompt.ids]), pixel_values=prepared.pixels.bfloat16(), max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False, streamer=clock, pad_token_id=0,
        )  # fmt: skip
        return timed(begun, clock.moments[1:])  # the prompt is the first that it hears of

    return ask


class CalderaSide:
    """Answers by the engine."""

    def __init__(self, folder: Path, bits: Quantization) -> None:
        """Start it."""
        assistant = load_model_folder(folder / "model", torch.bfloat16)
        self.engine = Engine(assistant, EngineConfig(quantization=bits, slots=max(CONCURRENT)))
        self.side = assistant.processor.side
        self._number = 1000

    def fresh(self) -> Image.Image:
        """Return an image that was not seen before."""
        self._number += 1
        return noise(self._number, self.side)

    def prompt(self, image: Image.Image, *said: str) -> Prompt:
        """Render a talk about an image."""
        return self.engine.build_prompt(conversation(*said), [self.engine.prepare_image(image)])

    def ask(self, image: Image.Image, tokens: int) -> Timed:
        """Answer one question."""
        return self.answer(image, tokens, QUESTION)[0]

    def answer(self, image: Image.Image, tokens: int, *said: str) -> tuple[Timed, str]:
        """Answer after a talk; return the text, too."""
        begun = time.perf_counter()
        request = Request(
            self.prompt(image, *said), SamplingParams(max_new_tokens=tokens, logprobs=False)
        )
        moments, text = [], ""
        answering = self.engine.submit(request)
        for piece in answering:
            moments += [time.perf_counter()] * len(piece.tokens)
            text += piece.text
        return timed(begun, moments), text

    def next_turn(self) -> dict[str, float]:
        """Measure the first token of a next turn, and of the same talk about an image that was not seen."""
        seen, other = self.fresh(), self.fresh()
        _, text = self.answer(seen, 16, QUESTION)
        again, _ = self.answer(seen, 2, QUESTION, text, "And what else?")
        anew, _ = self.answer(other, 2, QUESTION, text, "And what else?")
        return {"next_turn_seconds": again.first, "both_turns_anew_seconds": anew.first}

    def throughput(self, count: int, tokens: int, *, new: bool) -> float:
        """Return the tokens a second of requests that are all asked at once."""
        one = self.fresh()
        self.answer(one, 2, QUESTION)
        images = [self.fresh() if new else one for _ in range(count)]
        begun = time.perf_counter()
        asked = [
            self.engine.submit(
                Request(
                    self.prompt(image, f"{QUESTION} In {number} words?"),
                    SamplingParams(max_new_tokens=tokens),
                )
            )
            for number, image in enumerate(images)
        ]
        for answering in asked:
            answering.read_all()
        told = sum(answering.usage.completion_tokens for answering in asked)
        return told / (time.perf_counter() - begun)


class LlamaCppSide:
    """Answers by llama.cpp."""

    def __init__(self, folder: Path, kind: str) -> None:
        """Load the two files of a kind."""
        self._api, self._sight = import_module("llama_cpp"), import_module("llama_cpp.mtmd_cpp")
        self._quiet = self._api.llama_log_callback(lambda level, text, data: None)
        self._sight.mtmd_log_set(self._quiet, None)
        self._sight.mtmd_helper_log_set(self._quiet, None)
        files, threads = gguf_files(folder / kind), torch.get_num_threads()
        self._model = self._api.Llama(
            str(files.language), n_ctx=2048, n_batch=1024, n_ubatch=1024, n_threads=threads, n_threads_batch=threads,
            verbose=False,
        )  # fmt: skip
        settings = self._sight.mtmd_context_params_default()
        settings.use_gpu, settings.n_threads, settings.print_timings = False, threads, False
        self._tower = self._sight.mtmd_init_from_file(
            str(files.vision).encode(), self._model.model, settings
        )

    def ask(self, image: Image.Image, tokens: int) -> Timed:
        """Answer one question."""
        begun = time.perf_counter()
        place = self._read(image)
        moments = []
        batch = self._api.llama_batch_init(1, 0, 1)
        for at in range(place, place + tokens):
            rows = self._api.llama_get_logits_ith(self._model.ctx, -1)
            token = int(np.ctypeslib.as_array(rows, (self._model.n_vocab(),)).argmax())
            moments.append(time.perf_counter())
            batch.n_tokens, batch.token[0], batch.pos[0] = 1, token, at
            batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, 1
            assert self._api.llama_decode(self._model.ctx, batch) == 0
        self._api.llama_batch_free(batch)
        return timed(begun, moments)

    def _read(self, image: Image.Image) -> int:
        """Read image and question; return how many places they take."""
        api, sight = self._api, self._sight
        api.llama_memory_clear(api.llama_get_memory(self._model.ctx), True)
        values = np.ascontiguousarray(np.asarray(image))
        data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = sight.mtmd_bitmap_init(image.width, image.height, data)
        text = (
            f"{VICUNA_SYSTEM} USER: {sight.mtmd_default_marker().decode()}\n{QUESTION} ASSISTANT:"
        )
        given = sight.mtmd_input_text()
        given.text, given.text_len = text.encode(), len(text.encode())
        given.add_special = given.parse_special = True
        chunks = sight.mtmd_input_chunks_init()
        bitmaps = (sight.mtmd_bitmap_p_ctypes * 1)(bitmap)
        assert sight.mtmd_tokenize(self._tower, chunks, ctypes.byref(given), bitmaps, 1) == 0
        place = api.llama_pos(0)
        code = sight.mtmd_helper_eval_chunks(
            self._tower, self._model.ctx, chunks, 0, 0, 1024, True, ctypes.byref(place)
        )
        assert code == 0, f"llama.cpp says {code}"
        sight.mtmd_input_chunks_free(chunks)
        sight.mtmd_bitmap_free(bitmap)
        return int(place.value)


def peak_bytes() -> int:
    """Return the most memory this process had, mapped files among it; getrusage would tell its parent's, too."""
    [line] = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


def run_side(side: str, size: str, folder: Path, tokens: int) -> dict[str, float]:
    """Measure one side."""
    told: dict[str, float] = {}
    engine: CalderaSide | None = None
    ask: Ask
    if side == "transformers":
        ask = transformers_side(folder)
    elif side.startswith("caldera"):
        engine = CalderaSide(folder, "int8" if side.endswith("int8") else "as stored")
        ask = engine.ask
    else:
        ask = LlamaCppSide(folder, side.split()[1]).ask
    ask(noise(0, SIZES[size].side), 4)  # what comes first is slow
    answers = [ask(noise(number, SIZES[size].side), tokens) for number in (1, 2)]
    told["first_token_seconds"] = min(answer.first for answer in answers)
    told["tokens_per_second"] = max(answer.rate for answer in answers)
    if engine is not None:
        told |= engine.next_turn()
        for count in CONCURRENT:
            told[f"seen_{count}"] = engine.throughput(count, tokens, new=False)
        for count in (1, 8):
            told[f"new_{count}"] = engine.throughput(count, tokens, new=True)
        engine.engine.close()
    told["peak_bytes"] = peak_bytes()
    return told


def measure(
    sides: Sequence[str], size: str, folder: Path, rounds: int, tokens: int
) -> dict[str, dict[str, float]]:
    """Let the sides take turns, each in a process of its own, and return each one's median."""
    heard: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            words = [sys.executable, __file__, "--run", side, size, str(folder), str(tokens)]
            told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            heard[side].append(json.loads(told.splitlines()[-1]))
    return {
        side: {name: statistics.median(one[name] for one in told) for name in told[0]}
        for side, told in heard.items()
    }


def show(size: str, measured: dict[str, dict[str, float]]) -> None:
    """Print the sides, and caldera's ratios to the others."""
    print(f"\n{size}\n{'':16}{'first token, s':>15}{'tokens/s':>10}{'peak GB':>9}")
    for side, told in measured.items():
        print(
            f"{side:16}{told['first_token_seconds']:15.2f}{told['tokens_per_second']:10.1f}"
            f"{told['peak_bytes'] / 1e9:9.2f}"
        )
    for mine in (side for side in measured if side.startswith("caldera")):
        told = measured[mine]
        for other in (side for side in measured if not side.startswith("caldera")):
            first = measured[other]["first_token_seconds"] / told["first_token_seconds"]
            rate = told["tokens_per_second"] / measured[other]["tokens_per_second"]
            print(f"{mine} beside {other}: first token {first:.2f} x, tokens/s {rate:.2f} x")
        again, anew = told["next_turn_seconds"], told["both_turns_anew_seconds"]
        print(
            f"{mine}: next turn's first token {again:.3f} s, anew {anew:.2f} s: {anew / again:.1f} x"
        )
        for kind in ("seen", "new"):
            rates = {
                int(name.split("_")[1]): rate
                for name, rate in told.items()
                if name.startswith(f"{kind}_")
            }
            line = ", ".join(
                f"{count}: {rate:.0f} ({rate / rates[1]:.2f} x)" for count, rate in rates.items()
            )
            print(f"{mine}: tokens/s of requests at a time, image {kind}: {line}")


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--side", choices=SIDES, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--models", type=Path, help="folder that keeps the models for the next run")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        side, size, folder, tokens = given.run
        print(json.dumps(run_side(side, size, Path(folder), int(tokens))))
        return
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size in given.size or SIZES:
            folder = (given.models or Path(scratch)) / size
            if not (folder / "q8_0").is_dir():
                write_model(folder, SIZES[size])
            measured = measure(given.side or SIDES, size, folder, given.rounds, given.tokens)
            show(size, measured)
            results[size] = measured
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
