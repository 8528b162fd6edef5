"""Pretraining of a tiny CLIP vision tower on rendered scenes with captions.

Two losses: the contrastive loss of images and captions on the class token of the last layer (CLIP, arXiv 2103.00020),
and the classification of each patch's words by a linear layer on the second to last layer, the one LLaVA uses. The text
encoder and the linear layers are discarded.
"""

import json
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    log_softmax,
    normalize,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from backbones.optimization import (
    attention,
    autocast_matmul,
    build_adamw,
    cosine_schedule,
    optimizer_step,
    save_fp16,
)
from backbones.patch_words import GRID, WORDS, patch_labels
from caldera.scenes.captions import captions_of
from caldera.scenes.coco_folder import encode_jpeg
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import Scene, sample_scene

log = logging.getLogger(__name__)

SIDE = 112
PATCH = SIDE // GRID
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

_MAX_SCALE = math.log(50)
"""Maximum of the learned logit scale; CLIP's is log 100."""

_NUMBERS = {word: number for number, word in enumerate(WORDS)}


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionPretraining:
    """Settings of the vision tower's pretraining."""

    scenes: int = 60_000
    """Number of different scenes."""

    seed: int = 7001
    """Seed of the scenes; different from the demo's."""

    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 150
    width: int = 192
    layers: int = 6
    heads: int = 3


class RenderedScenes:
    """Training scenes: pixels in a memory-mapped file, the scenes themselves sampled again when needed."""

    def __init__(self, pixels: NDArray[np.uint8], seed: int) -> None:
        """Take pixels, (scenes, height, width, channels), and the seed of their scenes."""
        self._pixels = pixels
        self._seed = seed
        self._scenes: dict[int, Scene] = {}

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self._pixels)

    def scene(self, index: int) -> Scene:
        """Return scene number `index`."""
        if index not in self._scenes:
            shapes = glyph_shapes()
            self._scenes[index] = sample_scene(index, seed=self._seed, split="train", shapes=shapes)
        return self._scenes[index]

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """Return normalized pixels, (images, channels, height, width)."""
        values = torch.from_numpy(self._pixels[list(indices)]).permute(0, 3, 1, 2) / 255
        mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
        return (values - mean) / std


def _render_small(task: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the pixels of a scene as decoded from its JPEG file and resized."""
    index, seed = task
    scene = sample_scene(index, seed=seed, split="train", shapes=glyph_shapes())
    image = Image.open(BytesIO(encode_jpeg(scene)))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def render_scenes(file: Path, count: int, seed: int) -> RenderedScenes:
    """Render `count` scenes into `file`, unless it exists from an earlier run."""
    if not file.is_file():
        partial = file.with_suffix(".partial")
        pixels = open_memmap(partial, "w+", np.uint8, (count, SIDE, SIDE, 3))
        with get_context("spawn").Pool() as pool:
            tasks = ((index, seed) for index in range(count))
            for index, image in enumerate(pool.imap(_render_small, tasks, chunksize=100)):
                pixels[index] = image
        pixels.flush()
        partial.rename(file)
    return RenderedScenes(np.load(file, mmap_mode="r"), seed)


def word_targets(scenes: Sequence[Scene]) -> Tensor:
    """Return 1 for each word of a cell, else 0, (scenes, cells, words)."""
    indices = [
        (number, cell, _NUMBERS[word])
        for number, scene in enumerate(scenes)
        for cell, words in enumerate(patch_labels(scene))
        for word in words
    ]
    targets = torch.zeros(len(scenes), GRID**2, len(WORDS))
    targets[torch.tensor(indices).unbind(dim=1)] = 1
    return targets


class WordTokenizer:
    """A word-level tokenizer for the text encoder, built from captions."""

    def __init__(self, texts: Iterator[str]) -> None:
        """Assign an id to every word of the texts."""
        words = sorted({word for text in texts for word in self._split(text)})
        self._ids = {word: number for number, word in enumerate(words, start=1)}

    @property
    def end(self) -> int:
        """Id of the end token, the largest; 0 is padding."""
        return len(self._ids) + 1

    @staticmethod
    def _split(text: str) -> list[str]:
        return text.lower().replace(",", " ,").replace(".", " .").split()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return ids, (texts, words), padded to a multiple of eight."""
        rows = [[self._ids[word] for word in self._split(text)] + [self.end] for text in texts]
        width = -(-max(map(len, rows)) // 8) * 8
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])


class ContrastiveModel(nn.Module):
    """The tower with the parts that are discarded after training: a text encoder and two linear heads."""

    def __init__(self, settings: VisionPretraining, words: WordTokenizer) -> None:
        super().__init__()
        width = settings.width
        shape: dict[str, Any] = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": settings.heads,
            "projection_dim": width,
            "hidden_act": "gelu",
            "attn_implementation": attention(),
        }
        self.words = words
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(
                num_hidden_layers=settings.layers, image_size=SIDE, patch_size=PATCH, **shape
            )
        )
        self.text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=words.end + 1,
                num_hidden_layers=2,
                max_position_embeddings=72,
                eos_token_id=words.end,
                bos_token_id=0,
                pad_token_id=0,
                **shape,
            )
        )
        self.image_head = nn.Linear(width, width, bias=False)
        self.word_head = nn.Linear(width, len(WORDS))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors of texts, (texts, width)."""
        return normalize(self.text(input_ids=self.words(texts)).text_embeds.float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors of images, (images, width), and word logits of patches, (images, patches, words)."""
        output = self.tower(pixel_values=pixels, output_hidden_states=True)
        images = normalize(self.image_head(output.pooler_output).float(), dim=-1)
        return images, self.word_head(output.hidden_states[-2][:, 1:]).float()

    def losses(self, pixels: Tensor, scenes: Sequence[Scene], rng: random.Random) -> Tensor:
        """Return both losses, (2,): contrastive, and of the patches' words, summed over the words."""
        images, scores = self.encode_image(pixels)
        texts, targets = _deduplicate([rng.choice(captions_of(scene)) for scene in scenes])
        logits = self.scale.exp() * images @ self.encode_text(texts).T  # (images, texts)
        contrastive = (cross_entropy(logits, targets) + _logit_of_any(logits.T, targets)) / 2
        words = binary_cross_entropy_with_logits(scores, word_targets(scenes), reduction="none")
        return torch.stack([contrastive, words.sum(dim=-1).mean()])


def _deduplicate(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """Return the distinct texts, and the index of each text in them, so that equal texts are not negatives."""
    numbers: dict[str, int] = {}
    indices = [numbers.setdefault(text, len(numbers)) for text in texts]
    return list(numbers), torch.tensor(indices)


def _logit_of_any(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of texts to images, (texts, images), averaged over the images of each text."""
    positives = (targets.unsqueeze(0) == torch.arange(len(logits)).unsqueeze(1)).float()
    return -(log_softmax(logits, dim=-1) * positives).sum(dim=-1).div(positives.sum(dim=-1)).mean()


@torch.no_grad()
def evaluate_retrieval(
    model: ContrastiveModel, gallery: RenderedScenes, count: int
) -> dict[str, float]:
    """Evaluate a tower on held-out scenes.

    Returns:
        The accuracy of retrieving captions, and the fraction of patches on objects with exactly the right words.
    """
    model.eval()
    scenes = [gallery.scene(index) for index in range(count)]
    images, scores = model.encode_image(gallery.pixels(range(count)))
    texts, targets = _deduplicate([captions_of(scene)[0] for scene in scenes])
    retrieved = (images @ model.encode_text(texts).T).argmax(dim=-1) == targets
    words = word_targets(scenes).bool()
    on_object = words.sum(dim=-1) > 1  # (scenes, patches)
    exact = ((scores > 0) == words).all(dim=-1)[on_object]
    model.train()
    return {
        "captions_found": round(retrieved.float().mean().item(), 3),
        "objects_described": round(exact.float().mean().item(), 3),
    }


def pretrain_vision(out: Path, work: Path, settings: VisionPretraining) -> None:
    """Train a tower and save its folder; `work` is the folder of the rendered pixels."""
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    gallery = render_scenes(work / f"pixels-{settings.seed}.npy", settings.scenes, settings.seed)
    held_out = render_scenes(work / "pixels-unseen.npy", 500, settings.seed + 1)
    texts = (text for index in range(2000) for text in captions_of(gallery.scene(index)))
    model = ContrastiveModel(settings, WordTokenizer(texts))
    optimizer = build_adamw(model, settings.learning_rate, settings.weight_decay, betas=(0.9, 0.98))
    order = np.random.default_rng(settings.seed)
    start_time = time.monotonic()
    for step in range(settings.steps):
        indices = order.integers(len(gallery), size=settings.batch_size).tolist()
        scenes = [gallery.scene(index) for index in indices]
        with autocast_matmul():
            losses = model.losses(gallery.pixels(indices), scenes, rng)
        rate = settings.learning_rate * cosine_schedule(step, settings.steps, settings.warmup_steps)
        optimizer_step(losses.sum(), model, optimizer, rate)
        model.scale.data.clamp_(max=_MAX_SCALE)
        if step % 100 == 99 or step + 1 == settings.steps:
            image_loss, word_loss = losses.tolist()
            speed = (step + 1) * settings.batch_size / (time.monotonic() - start_time)
            log.info(
                "vision %5d  images %.3f  words %.3f  %.0f/s",
                step + 1,
                image_loss,
                word_loss,
                speed,
            )
        if step % 500 == 499 or step + 1 == settings.steps:
            log.info("vision %5d  %s", step + 1, evaluate_retrieval(model, held_out, 500))
            _save(model.tower, out)


def _save(tower: CLIPVisionModel, out: Path) -> None:
    """Save the tower in fp16 with its image processor config."""
    save_fp16(tower, out)
    preparation = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
        "image_mean": MEAN,
        "image_std": STD,
        "resample": Image.Resampling.BICUBIC,
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(preparation, indent=2) + "\n")
