"""Memory and time of importing and asking a model of LLaVA-1.5-7B's shape: `python benchmarks/large_folder.py`.

Writes an original folder of random bf16 weights, tensor by tensor, and a vision tower beside it; then runs
`caldera import` and `caldera chat` on them as a user would, each in a process of its own, and prints what they took.

Peak memory is the kernel's own (ru_maxrss): what the process held in memory at once, pages of mapped files included.
Beside it stands the largest RssAnon that was seen in /proc: memory without those pages, which the system can drop.
At --scale 1 it needs 30 GB of disk; 0.25 shows the same on 0.7 GB.
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

WORDS = 32000
PROJECTOR = "model.mm_projector."


def language_config(scale: float) -> LlamaConfig:
    """Return Vicuna-7B's sizes (spec 1.9), scaled."""
    heads = max(2, round(32 * scale))
    return LlamaConfig(
        vocab_size=WORDS,
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
    """Return random bf16 weights that are made when they are written."""
    return {
        name: LazyWeight(shape, torch.bfloat16, partial(_draw, name, shape))
        for name, shape in shapes.items()
    }


def _draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw a weight; norms are one."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)


def shapes_of(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights by name."""
    return {name: tuple(each.shape) for name, each in model.state_dict().items()}


def write_model(folder: Path, tower: Path, scale: float) -> int:
    """Write the original folder and its vision tower; return their bytes of weights."""
    language, vision = language_config(scale), vision_config(scale)
    with torch.device("meta"):
        words = shapes_of(AutoModelForCausalLM.from_config(language))
        sight = shapes_of(CLIPVisionModel(vision))
    wide, deep = language.hidden_size, vision.hidden_size
    assert wide is not None
    assert deep is not None
    bridge = {
        "0.weight": (wide, deep),
        "0.bias": (wide,),
        "2.weight": (wide, wide),
        "2.bias": (wide,),
    }
    both = random_weights({**words, **{PROJECTOR + name: shape for name, shape in bridge.items()}})
    folder.mkdir()
    write_weights(folder, both)
    write_config(folder, language, vision)
    write_words(folder)
    tower.mkdir()
    seen = random_weights(
        {f"vision_model.{n.removeprefix('vision_model.')}": s for n, s in sight.items()}
    )
    write_weights(tower, seen)
    (tower / "config.json").write_text(vision.to_json_string(use_diff=False))
    CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    ).save_pretrained(tower)
    return sum(2 * prod(each.shape) for each in (*both.values(), *seen.values()))


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


def write_words(folder: Path) -> None:
    """Write the shipped tiny language model's tokenizer, with unused words up to Vicuna's number."""
    source = BACKBONES["scenes-llama"]
    shutil.copy(source / "tokenizer_config.json", folder)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    used = {*vocabulary.values(), *(each["id"] for each in tokenizer["added_tokens"])}
    vocabulary.update({f"unused{number}": number for number in range(WORDS) if number not in used})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@dataclass(frozen=True)
class Took:
    """What a process took."""

    seconds: float
    peak: float
    """GiB in memory at once, mapped files included."""

    anonymous: float
    """GiB of it that are no file's."""

    said: str


def run(*words: str | Path) -> Took:
    """Run a caldera command and measure it.

    Raises:
        SystemExit: It failed.
    """
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-m", "caldera", *map(str, words)], stdout=said)
        anonymous = 0
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            anonymous = max(anonymous, _anonymous(process.pid))
            time.sleep(0.05)
        said.seek(0)
        text = said.read()
    if status:
        raise SystemExit(f"caldera {' '.join(map(str, words))} failed")
    seconds = time.monotonic() - begun
    return Took(seconds, usage.ru_maxrss / 2**20, anonymous / 2**20, text)


def _anonymous(process: int) -> int:
    """Return a process's RssAnon in KiB, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    """Write, import, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scale", type=float, default=1.0, help="of widths and depths; 1 is 7B")
    parser.add_argument("--work", type=Path, help="where folders are made; a temporary one if left")
    parser.add_argument("--tokens", type=int, default=8, help="tokens that are asked for")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=wanted.work, prefix="large_folder.") as made:
        work = Path(made)
        begun = time.monotonic()
        nbytes = write_model(work / "original", work / "tower", wanted.scale)
        print(f"written  {nbytes / 1e9:.2f} GB of random bf16 in {time.monotonic() - begun:.0f} s")
        pixels = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(work / "image.png")
        brought = run(
            "import", work / "original", "--vision", work / "tower", "--template", "vicuna_v1",
            "--out", work / "model",
        )  # fmt: skip
        shutil.rmtree(work / "original")
        asked = run(
            "chat", work / "model", "--image", work / "image.png", "--prompt", "What is there?",
            "--max-new-tokens", str(wanted.tokens),
        )  # fmt: skip
    whole = nbytes / 2**30
    print(f"weights  {whole:.2f} GiB")
    for name, took in {"import": brought, f"chat, {wanted.tokens} tokens": asked}.items():
        print(
            f"{name:<16} {took.seconds:6.1f} s  peak {took.peak:6.2f} GiB = {took.peak / whole:.2f} x weights, "
            f"of it {took.anonymous:.2f} GiB no file's"
        )
    print(f"answer   {asked.said.strip()!r}")


if __name__ == "__main__":
    main()
