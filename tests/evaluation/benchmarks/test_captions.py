"""Captions in COCO's layout and in a table, worked by hand and against pycocoevalcap."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.errors import InputError
from caldera.evaluation.answer_files import AnswerOptions
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.captions import CAPTIONS
from caldera.evaluation.files import read_rows

CAPTIONS_BY_IMAGE = {"7": ["a red dog"], "8": ["two cats sleep", "cats asleep"]}


def coco(folder: Path) -> Path:
    """Write a COCO file of captions."""
    path = folder / "captions_val2014.json"
    content = {
        "images": [{"id": int(name), "file_name": f"{name}.jpg"} for name in CAPTIONS_BY_IMAGE],
        "annotations": [
            {"id": number, "image_id": int(name), "caption": text}
            for number, (name, text) in enumerate(
                (n, t) for n, ts in CAPTIONS_BY_IMAGE.items() for t in ts
            )
        ],
    }
    path.write_text(json.dumps(content))
    return path


def table(folder: Path) -> Path:
    """Write a table of captions."""
    path = folder / "captions.csv"
    lines = [f"{name},{text}" for name, texts in CAPTIONS_BY_IMAGE.items() for text in texts]
    path.write_text("\n".join(["image,caption", *lines]))
    return path


@pytest.mark.parametrize("layout", [coco, table])
def test_metrics_worked_by_hand(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    """All words occur in references. CIDEr-D: equal 1- to 3-grams; equal 1- and 2-grams, and one of three."""
    answers = tmp_path / "answers.json"
    captions = [{"image_id": 7, "caption": "A red dog."}, {"image_id": 8, "caption": "cats asleep"}]
    answers.write_text(json.dumps(captions))
    score = CAPTIONS.score_answer_files(Sources(annotations=layout(tmp_path)), answers)
    assert score.metrics["Bleu_1"] == 100.0
    assert score.metrics["Bleu_2"] == 100.0
    assert score.metrics["ROUGE_L"] == 100.0
    assert score.metrics["images"] == 2
    cats = (2 + math.exp(-1 / 72) / math.sqrt(2 * 3)) / 2
    assert score.item_scores == pytest.approx({"7": 3 / 4, "8": cats / 4})
    assert score.overall == pytest.approx((3 / 4 + cats / 4) / 2)
    assert score.metrics["CIDEr"] == round(1000 * score.overall, 2)


def test_captions_of_another_image_score_zero(tmp_path: Path) -> None:
    """Swapped captions score 0; an empty one is listed."""
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps({"7": "two cats sleep", "8": ""}))
    sources = Sources(annotations=table(tmp_path), answer_options=AnswerOptions(allow_empty=True))
    score = CAPTIONS.score_answer_files(sources, answers)
    assert score.metrics["ROUGE_L"] == 0
    assert score.metrics["CIDEr"] == 0
    assert list(score.unparsed) == ["8"]
    assert score.metrics["parse_failures"] == 1


def test_an_image_without_a_caption_is_rejected(tmp_path: Path) -> None:
    """There is nothing to compare with."""
    path = coco(tmp_path)
    content = json.loads(path.read_text())
    content["images"].append({"id": 9, "file_name": "9.jpg"})
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="1 images have no caption"):
        CAPTIONS.load(Sources(annotations=path))


def test_human_captions_give_the_metrics_of_pycocoevalcap(
    third_party: Path, tmp_path: Path
) -> None:
    """On flickr8k, each first caption against four others, with its tokenizer."""
    rows = read_rows(third_party / "flickr8k" / "captions.csv")
    first: dict[str, str] = {}
    others: list[dict[str, str]] = []
    for _, row in rows:
        if row["image"] in first:
            others.append(row)
        first.setdefault(row["image"], row["caption"])
    references, answers = tmp_path / "references.csv", tmp_path / "answers.json"
    with references.open("w", newline="") as file:
        table = csv.DictWriter(file, ("image", "caption"))
        table.writeheader()
        table.writerows(others)
    answers.write_text(json.dumps([{"image_id": i, "caption": c} for i, c in first.items()]))
    assert CAPTIONS.score_answer_files(Sources(annotations=references), answers).metrics == {
        "Bleu_1": 64.68,
        "Bleu_2": 45.63,
        "Bleu_3": 31.72,
        "Bleu_4": 21.82,
        "ROUGE_L": 50.08,
        "CIDEr": 79.14,
        "images": 800,
        "parse_failures": 0,
    }
