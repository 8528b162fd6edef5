"""Captions, scored with COCO's metrics: BLEU, ROUGE-L and CIDEr-D against human captions.

The human captions are in a COCO file (`captions_val2014.json`) or in a table of images and captions, such as
flickr8k's `captions.csv`. Answers are COCO's list of `image_id` and `caption`; for a table, the image's name is the id.
METEOR and SPICE are omitted: they need Java and further models.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from caldera.datasets.vqa import validate
from caldera.errors import InputError
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Score, ScoredItems, Sources, mean
from caldera.evaluation.benchmarks.short_answers import question_turn
from caldera.evaluation.caption_metrics import bleu, cider_d_per_image, mean_rouge_l
from caldera.evaluation.files import read_object, read_rows, require_fields

PROMPT = "Provide a one-sentence caption for the provided image."
"""Prompt for TextCaps in the data mix of LLaVA-1.5 (P2, table 7)."""

_MAX_CIDER = 10.0
"""CIDEr-D of a caption that equals every human caption."""

_FILE = "captions_SPLIT.json (COCO's), or a .csv of image,caption"


def _score(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Return CIDEr-D over 10 as overall and item scores, and as a metric times 100, as papers print it."""
    references = {item.id: item.references for item in items}
    cider = cider_d_per_image(answers, references)
    scores = {name: value / _MAX_CIDER for name, value in cider.items()}
    unparsed = {
        name: "the caption is empty; it shares no word with any"
        for name in references
        if not answers[name].strip()
    }
    metrics: dict[str, Any] = {
        f"Bleu_{n}": round(100 * value, 2)
        for n, value in enumerate(bleu(answers, references), start=1)
    }
    metrics["ROUGE_L"] = round(100 * mean_rouge_l(answers, references), 2)
    metrics["CIDEr"] = round(100 * mean(cider.values()), 2)
    return Score(
        mean(scores.values()),
        {},
        {"caption": len(scores)},
        metrics | {"images": len(scores), "parse_failures": len(unparsed)},
        scores,
        unparsed,
    )


class _ImageSchema(BaseModel):
    id: int
    file_name: str


class _CaptionSchema(BaseModel):
    image_id: int
    caption: str


def load_questions(sources: Sources) -> ScoredItems:
    """Load the images and their human captions."""
    path = sources.annotations or sources.require_questions(_FILE)
    images, captions = (_from_table if path.suffix in (".csv", ".tsv") else _from_coco)(path)
    if num_missing := len(images.keys() - captions.keys()):
        raise InputError(f"{path}: {num_missing} images have no caption; remove them")
    items = [
        Item(name, "caption", "caption", question_turn(name, file, PROMPT), tuple(captions[name]))
        for name, file in images.items()
    ]
    return ScoredItems("captions", items, _score)


def _from_coco(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return file names and captions by image id."""
    content = read_object(path, "with images and annotations, as COCO's captions_SPLIT.json does")
    require_fields(content, ("images", "annotations"), str(path))
    images = [
        validate(_ImageSchema, entry, f"{path}: images.{index}")
        for index, entry in enumerate(content["images"])
    ]
    captions: dict[str, list[str]] = {}
    for index, entry in enumerate(content["annotations"]):
        annotation = validate(_CaptionSchema, entry, f"{path}: annotations.{index}")
        captions.setdefault(str(annotation.image_id), []).append(annotation.caption)
    return {str(image.id): image.file_name for image in images}, captions


def _from_table(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return file names and captions by file name."""
    captions: dict[str, list[str]] = {}
    for location, row in read_rows(path):
        require_fields(row, ("image", "caption"), location)
        captions.setdefault(row["image"], []).append(row["caption"])
    return {name: name for name in captions}, captions


CAPTIONS = BenchmarkSpec(
    name="captions",
    title="Captions",
    measures="similarity of captions to human captions of an image",
    description="any COCO caption file: 5,000 images of the Karpathy test split, 40,504 of val2014 (cocodataset.org)",
    chance={},
    primary_metric="CIDEr",
    required_files=f"--annotations {_FILE}",
    load=load_questions,
)
