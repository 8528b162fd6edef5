"""Memory and time of importing and running a model of LLaVA-1.5-7B's size: `python benchmarks/large_folder.py`.

Writes an original folder of random bf16 weights, tensor by tensor, and a vision tower; then runs `caldera import` and
`caldera chat` on them, each in its own process, and prints time and memory.

Peak memory is the kernel's (ru_maxrss): the maximal resident memory, pages of mapped files included. The largest
RssAnon in /proc is printed too: memory without those pages, which the system can drop.
At --scale 1 it needs 30 GB of disk; 0.25 shows the same with 0.7 GB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from caldera.formats.safetensors_files import LazyWeight, write_weights
from caldera.scenes.backbones import BACKBONES

VOCABULARY = 32000
PROJECTOR = "model.mm_projector."


def language_config(scale: float) -> LlamaConfig:
    """Return Vicuna-7B's sizes (spec 1.9), scaled."""
    heads = max(2, round(32 * scale))
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128 * heads,
        intermediate_size=round(11008 * scale / 64) * 64,
        num_hidden_layers=max(2, round(32 * scale)),
        num_attention_heads=heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
    )


def vision_config(scale: float) -> CLIPVisionConfig:
    """Return CLIP ViT-L/14-336's sizes (spec 1.2), scaled; 24 x 24 patches at any scale."""
    heads = max(2, round(16 * scale))
    return CLIPVisionConfig(
        hidden_size=64 * heads,
        intermediate_size=256 * heads,
        num_hidden_layers=max(3, round(24 * scale)),
        num_attention_heads=heads,
        patch_size=14,
        image_size=336,
        projection_dim=768,
        hidden_act="quick_gelu",
    )


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, LazyWeight]:
    """Return random bf16 weights that are created when they are written."""
    return {
        name: LazyWeight(shape, torch.bfloat16, partial(_create_weight, name, shape))
        for name, shape in shapes.items()
    }


def _create_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a random weight, or ones for a norm."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)


def shapes_of(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights by name."""
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def write_model(folder: Path, tower: Path, scale: float) -> int:
    """Write the original folder and its vision tower, and return the bytes of their weights."""
    language, vision = language_config(scale), vision_config(scale)
    with torch.device("meta"):
        language_shapes = shapes_of(AutoModelForCausalLM.from_config(language))
        vision_shapes = shapes_of(CLIPVisionModel(vision))
    width, vision_width = language.hidden_size, vision.hidden_size
    assert width is not None
    assert vision_width is not None
    projector_shapes: dict[str, tuple[int, ...]] = {
        f"{PROJECTOR}0.weight": (width, vision_width),
        f"{PROJECTOR}0.bias": (width,),
        f"{PROJECTOR}2.weight": (width, width),
        f"{PROJECTOR}2.bias": (width,),
    }
    weights = random_weights({**language_shapes, **projector_shapes})
    folder.mkdir()
    write_weights(folder, weights)
    write_config(folder, language, vision)
    write_tokenizer(folder)
    tower.mkdir()
    vision_weights = random_weights(
        {
            f"vision_model.{name.removeprefix('vision_model.')}": shape
            for name, shape in vision_shapes.items()
        }
    )
    write_weights(tower, vision_weights)
    (tower / "config.json").write_text(vision.to_json_string(use_diff=False))
    CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    ).save_pretrained(tower)
    return sum(2 * prod(weight.shape) for weight in (*weights.values(), *vision_weights.values()))


def write_config(folder: Path, language: PretrainedConfig, vision: PretrainedConfig) -> None:
    """Write LLaVA-1.5's config."""
    settings = {
        **language.to_dict(),
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": "bfloat16",
        "image_aspect_ratio": "pad",
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "random/clip",
    }
    (folder / "config.json").write_text(json.dumps(settings))


def write_tokenizer(folder: Path) -> None:
    """Write the shipped language model's tokenizer, with unused tokens up to Vicuna's vocabulary size."""
    source = BACKBONES["scenes-llama"]
    shutil.copy(source / "tokenizer_config.json", folder)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    used = {*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    vocabulary.update(
        {f"unused{number}": number for number in range(VOCABULARY) if number not in used}
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@dataclass(frozen=True)
class ProcessUsage:
    """Time, memory and output of a process."""

    seconds: float
    peak: float
    """Maximal resident memory in GiB, mapped files included."""

    anonymous: float
    """Maximal resident memory in GiB without mapped files."""

    output: str


def run(*arguments: str | Path) -> ProcessUsage:
    """Run a caldera command and measure it."""
    command = [sys.executable, "-m", "caldera", *map(str, arguments)]
    start_time = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        anonymous = 0
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            anonymous = max(anonymous, _anonymous(process.pid))
            time.sleep(0.05)
        output.seek(0)
        text = output.read()
    if status:
        raise SystemExit(f"{' '.join(command[2:])} failed")
    seconds = time.monotonic() - start_time
    return ProcessUsage(seconds, usage.ru_maxrss / 2**20, anonymous / 2**20, text)


def _anonymous(process: int) -> int:
    """Return a process's RssAnon in KiB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    """Write a model, import it, chat with it, and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="scale of widths and depths; 1 is 7B"
    )
    parser.add_argument("--work", type=Path, help="parent of the temporary folder")
    parser.add_argument("--tokens", type=int, default=8, help="tokens to generate")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work, prefix="large_folder.") as folder:
        work = Path(folder)
        start_time = time.monotonic()
        nbytes = write_model(work / "original", work / "tower", args.scale)
        print(
            f"written  {nbytes / 1e9:.2f} GB of random bf16 in {time.monotonic() - start_time:.0f} s"
        )
        pixels = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(work / "image.png")
        imported = run(
            "import", work / "original", "--vision", work / "tower", "--template", "vicuna_v1",
            "--out", work / "model",
        )  # fmt: skip
        shutil.rmtree(work / "original")
        chat = run(
            "chat", work / "model", "--image", work / "image.png", "--prompt", "What is there?",
            "--max-new-tokens", str(args.tokens),
        )  # fmt: skip
    size = nbytes / 2**30
    print(f"weights  {size:.2f} GiB")
    for name, usage in {"import": imported, f"chat, {args.tokens} tokens": chat}.items():
        print(
            f"{name:<16} {usage.seconds:6.1f} s  peak {usage.peak:6.2f} GiB = {usage.peak / size:.2f} x weights, "
            f"{usage.anonymous:.2f} GiB of it anonymous"
        )
    print(f"answer   {chat.output.strip()!r}")


if __name__ == "__main__":
    main()
