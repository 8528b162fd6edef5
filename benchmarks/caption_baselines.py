"""Baselines of captions: `python benchmarks/caption_baselines.py captions.csv --out runs/captions`.

The first run holds out some images of a table of images and captions: OUT/train.csv and OUT/held_out.csv. Each run
prints CIDEr-D (0 to 10) on the images that are held out, of

- the caption of the nearest training image, by the cosine of a vision tower's pooled features
- the most frequent training caption; of equally frequent ones the one whose words are most frequent
- with `--model`, a model folder or run: its captions, and its captions of other images, so the language model blind
"""

import argparse
import csv
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet
from caldera.annotations.caption_pairs import read_pairs
from caldera.devices import Runtime, choose_device
from caldera.evaluation.annotation_questions import build_caption_questions, with_shuffled_images
from caldera.evaluation.caption_metrics import cider_d, ptb_tokenize
from caldera.files.skipped_items import SkippedItems
from caldera.formats.image_processor import load_processor
from caldera.formats.open_model import load_model
from caldera.images.decoding import open_image
from caldera.model.vision_tower import VisionTower
from caldera.pipelines.run_steps import RunSteps
from caldera.progress import default_progress
from caldera.recipes.towers import resolve_tower

BATCH = 32
"""Images that the tower encodes together."""


def split_table(captions: Path, images: Path | None, out: Path, count: int) -> None:
    """Write the tables of the images to train on and of `count` others, unless they exist."""
    if (out / "held_out.csv").exists():
        return
    pairs = list(read_pairs(captions, SkippedItems(), images).images)
    random.Random(0).shuffle(pairs)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("held_out", pairs[:count]), ("train", pairs[count:])):
        with (out / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "caption"))
            for image in part:
                path = os.path.relpath(image.path, out)
                writer.writerows((path, caption) for caption in image.captions)


@torch.no_grad()
def pooled_features(images: Sequence[AnnotatedImage], vision: str, out: Path) -> Tensor:
    """Return a tower's pooled features of images, centered and of length 1, (images, width)."""
    folder = resolve_tower(vision, out / "towers")
    processor = load_processor(folder).with_aspect("pad")
    tower = VisionTower(AutoModel.from_pretrained(folder).eval(), processor.side)
    pooled = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        pixels = torch.cat([processor(open_image(image.path)) for image in batch])
        pooled.append(tower(pixels).mean(dim=1))
    features = torch.cat(pooled)
    return normalize(features - features.mean(dim=0), dim=1)


def nearest_captions(
    training: AnnotationSet, held_out: AnnotationSet, vision: str, out: Path
) -> dict[str, str]:
    """Return the first caption of the training image that is nearest to each image, by image id."""
    features = pooled_features((*training.images, *held_out.images), vision, out)
    trained, queries = features.split([len(training.images), len(held_out.images)])
    nearest = (queries @ trained.T).argmax(dim=1)
    return {
        image.id: training.images[int(index)].captions[0]
        for image, index in zip(held_out.images, nearest, strict=True)
    }


def most_frequent_caption(training: AnnotationSet) -> str:
    """Return the most frequent caption, without regard to case and punctuation."""
    captions = [caption for image in training.images for caption in image.captions]
    counts = Counter(" ".join(ptb_tokenize(caption)) for caption in captions)
    highest = max(counts.values())
    words = Counter(word for text in counts for word in set(text.split()))

    def commonness(text: str) -> float:
        tokens = text.split()
        return sum(words[word] for word in set(tokens)) / max(1, len(tokens))

    return max((text for text, count in counts.items() if count == highest), key=commonness)


def model_scores(model: str, held_out: AnnotationSet, out: Path) -> dict[str, float]:
    """Return CIDEr-D of a model's captions, and of those that it writes about other images."""
    assistant = load_model(model)
    benchmark = build_caption_questions(held_out, name="captions", relative_to=out)
    steps = RunSteps(out, Runtime(choose_device(), default_progress()))
    questions = {
        "the model": benchmark.items,
        "the model, about another image": with_shuffled_images(benchmark.items, seed=0),
    }
    return {
        name: benchmark.score(
            steps.answer(
                assistant, items, name, folder=out, max_new_tokens=benchmark.max_new_tokens
            )
        ).overall
        for name, items in questions.items()
    }


def main() -> None:
    """Print a row for each baseline, and for the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("captions", type=Path, help="table of images and captions")
    parser.add_argument("--images", type=Path, help="folder of the images")
    parser.add_argument("--out", type=Path, default=Path("runs/captions"))
    parser.add_argument("--hold-out", type=int, default=200, help="images to hold out")
    parser.add_argument("--vision", default="efficientnet-lite0", help="tower of the baseline")
    parser.add_argument("--model", help="model folder or run to compare")
    options = parser.parse_args()
    split_table(options.captions, options.images, options.out, options.hold_out)
    training, held_out = (
        read_pairs(options.out / f"{name}.csv", SkippedItems()) for name in ("train", "held_out")
    )
    references = {image.id: image.captions for image in held_out.images}
    frequent = most_frequent_caption(training)
    scores = {
        "nearest training image": cider_d(
            nearest_captions(training, held_out, options.vision, options.out), references
        ),
        f"always {frequent!r}": cider_d(dict.fromkeys(references, frequent), references),
    }
    if options.model:
        scores |= model_scores(options.model, held_out, options.out)
    print(f"CIDEr-D of {len(references)} images ({len(training.images)} to learn from)")
    for name, score in scores.items():
        print(f"{score:6.3f}  {name}")


if __name__ == "__main__":
    main()
