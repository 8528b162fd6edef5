"""Captions, scored as COCO's are: BLEU, ROUGE-L and CIDEr-D against what people wrote of each image.

What is right stands in a COCO file of captions (`captions_val2014.json`) or in a table of images and captions, such
as flickr8k's `captions.csv`. Answers are COCO's list of `image_id` and `caption`; of a table, the image's name is the
id. METEOR and SPICE need Java and models of their own and are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from caldera.datasets.vqa import validate
from caldera.errors import InputError
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Score, Sources, check_answers, mean
from caldera.evaluation.benchmarks.short_answers import question_turn
from caldera.evaluation.caption_metrics import bleu, cider_d_per_image, mean_rouge_l
from caldera.evaluation.files import read_answers, read_json, read_rows, require_fields

PROMPT = "Provide a one-sentence caption for the provided image."
"""What the mix of LLaVA-1.5 asks of TextCaps (P2, table 7)."""

_HIGHEST = 10.0
"""CIDEr-D of a caption that is all that people wrote."""

_FILE = "captions_SPLIT.json (COCO's), or a .csv of image,caption"


@dataclass(frozen=True, slots=True)
class Captions:
    """Images with what people wrote of each."""

    items: Sequence[Item]
    name: str = "captions"
    max_new_tokens: int = 128

    def score(self, answers: Mapping[str, str]) -> Score:
        """Return a tenth of CIDEr-D as overall score and as marks; figures have it times 100, as papers print it.

        Raises:
            InputError: Captions are missing, or belong to no image.
        """
        check_answers(self.items, answers)
        references = {item.id: item.references for item in self.items}
        cider = cider_d_per_image(answers, references)
        marks = {name: value / _HIGHEST for name, value in cider.items()}
        unread = {
            name: "the caption is empty; it shares no word with any" for name in references if not answers[name].strip()
        }  # fmt: skip
        figures: dict[str, Any] = {
            f"Bleu_{n}": round(100 * value, 2) for n, value in enumerate(bleu(answers, references), start=1)
        }  # fmt: skip
        figures["ROUGE_L"] = round(100 * mean_rouge_l(answers, references), 2)
        figures["CIDEr"] = round(100 * mean(cider.values()), 2)
        return Score(
            mean(marks.values()),
            {},
            {"caption": len(marks)},
            figures | {"pictures": len(marks), "parse_failures": len(unread)},
            marks,
            unread,
        )


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Image(_Wire):
    id: int
    file_name: str


class _Caption(_Wire):
    image_id: int
    caption: str


def load_questions(sources: Sources) -> Captions:
    """Read the images and what people wrote of them.

    Raises:
        UsageError: No file was given.
        InputError: It is missing or broken, or an image has no caption.
    """
    path = sources.annotations or sources.require_questions(_FILE)
    images, captions = (_from_table if path.suffix in (".csv", ".tsv") else _from_coco)(path)
    if bare := len(images.keys() - captions.keys()):
        raise InputError(f"{path}: {bare} images have no caption; remove them")
    return Captions(
        [
            Item(
                name, "caption", "caption", question_turn(name, file, PROMPT), tuple(captions[name])
            )
            for name, file in images.items()
        ]
    )


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score a list of captions by image.

    Raises:
        UsageError: No file of what people wrote was given.
        InputError: A file is missing or broken, or captions and images do not belong together.
    """
    return load_questions(sources).score(read_answers(answers))


def _from_coco(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return file names and captions by image id."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(
            f"{path} should hold an object with images and annotations, as COCO's captions_SPLIT.json does"
        )
    require_fields(content, ("images", "annotations"), str(path))
    images = [
        validate(_Image, entry, f"{path}: images.{at}")
        for at, entry in enumerate(content["images"])
    ]
    captions: dict[str, list[str]] = {}
    for at, entry in enumerate(content["annotations"]):
        one = validate(_Caption, entry, f"{path}: annotations.{at}")
        captions.setdefault(str(one.image_id), []).append(one.caption)
    return {str(image.id): image.file_name for image in images}, captions


def _from_table(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return file names and captions by file name."""
    captions: dict[str, list[str]] = {}
    for where, row in read_rows(path):
        require_fields(row, ("image", "caption"), where)
        captions.setdefault(row["image"], []).append(row["caption"])
    return {name: name for name in captions}, captions


CAPTIONS = BenchmarkSpec(
    name="captions",
    title="Captions",
    measures="how close captions come to what people write of a picture",
    description="any COCO file of captions: 5,000 pictures of the Karpathy test split, 40,504 of val2014 (cocodataset.org)",
    chance={},
    primary_metric="CIDEr",
    required_files=f"--truth {_FILE}",
    load=load_questions,
    score_answer_files=score_answer_files,
)
