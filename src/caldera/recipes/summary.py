"""What a recipe measured in, results.json and report.html out."""

import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import caldera
from caldera.evaluation.benchmark import Item, Score
from caldera.evaluation.report import (
    Column,
    Curve,
    GalleryItem,
    GalleryQuestion,
    Report,
    write_report,
)
from caldera.instructions.questions import SHORT_ANSWER
from caldera.recipes.measure import SceneScores
from caldera.recipes.scene_recipe import SceneRecipe
from caldera.storage import write_json
from caldera.training.record import read_metrics

_GALLERY_SIZE = 18
"""Images, or groups of images, in the gallery."""

_STAGES = {
    "pretrain": "stage 1: the projector learns, on captions",
    "finetune": "stage 2: projector and language model learn, on instructions",
    "without_pretraining": "stage 2 without stage 1",
}


def write_results(
    out: Path, recipe: SceneRecipe, measured: SceneScores, seconds: dict[str, float]
) -> None:
    """Write both files of a run.

    Raises:
        OutputError: They cannot be written.
    """
    results = as_results(measured, seconds)
    write_json(
        out / "results.json", {**results, "recipe": asdict(recipe), "machine": machine_info()}
    )
    write_report(out / "report.html", _report(out, recipe, measured, seconds))


def as_results(measured: SceneScores, seconds: dict[str, float]) -> dict[str, Any]:
    """Return the numbers of a run as results.json has them."""
    return {
        "accuracy": _flat(measured.accuracy),
        "majority_baseline": _flat(measured.majority_baseline),
        "shuffled_images": _flat(measured.shuffled_images),
        "without_pretraining": _flat(measured.without_pretraining),
        "caption_cider": round(measured.caption_cider, 4),
        "questions": {"overall": len(measured.benchmark.items), **measured.accuracy.counts},
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    }


def _flat(score: Score) -> dict[str, float]:
    """Return a score as one level of names."""
    flat = {"overall": score.overall, **score.by_kind}
    return {name: round(value, 4) for name, value in flat.items()}


def machine_info() -> dict[str, str]:
    """Say what a run was made with."""
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return {
        "caldera": caldera.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{threads} threads, {capability}",
    }


def _report(
    out: Path, recipe: SceneRecipe, measured: SceneScores, seconds: dict[str, float]
) -> Report:
    """Put together what the report shows."""
    columns = (
        Column("assistant", "its answers.", _flat(measured.accuracy)),
        Column("majority_baseline", "the commonest training answer to that form of question, without looking.",
               _flat(measured.majority_baseline)),
        Column("other image", "the same questions to the same assistant, with other images shown.",
               _flat(measured.shuffled_images)),
        Column("without stage 1", "an assistant that had the same stage 2, but no stage 1.",
               _flat(measured.without_pretraining)),
    )  # fmt: skip
    return Report(
        title=f"caldera: {recipe.name}",
        summary=f"{recipe.scenes.train} scenes to learn from, {recipe.scenes.held_out} held out; vision tower "
        f"{recipe.vision}, language model {recipe.language}, projector {recipe.projector}.",
        columns=columns,
        counts={"overall": len(measured.benchmark.items), **measured.accuracy.counts},
        figures={
            "captions of held-out images, CIDEr-D against five captions (0 to 10)": f"{measured.caption_cider:.2f}"
        },
        curves=[_curve(out, name, title) for name, title in _STAGES.items()],
        exhibits=_gallery(out, measured),
        seconds=seconds,
        facts=machine_info(),
    )


def _curve(out: Path, name: str, title: str) -> Curve:
    """Read a stage's losses."""
    events = read_metrics(out / name / "metrics.jsonl")
    return Curve(
        title,
        [(event["step"], event["loss"]) for event in events if "loss" in event],
        [
            (event["step"], event["validation_loss"])
            for event in events
            if "validation_loss" in event
        ],
    )


def _gallery(out: Path, measured: SceneScores) -> list[GalleryItem]:
    """Choose images for the gallery, evenly from the held-out ones, some of them several together."""
    right = measured.benchmark.right(measured.answers)
    groups: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in measured.benchmark.items:
        groups[item.conversation.images].append(item)
    single = [images for images in groups if len(images) == 1]
    several = [images for images in groups if len(images) > 1]
    third = _GALLERY_SIZE // 3
    chosen = [*_every_nth(single, 2 * third), *_every_nth(several, third)]
    return [
        GalleryItem(
            tuple(out / path for path in images),
            [_asked(item, measured.answers[item.id], right[item.id]) for item in groups[images]],
        )
        for images in chosen
    ]


def _every_nth(groups: Sequence[tuple[str, ...]], count: int) -> Sequence[tuple[str, ...]]:
    """Take `count` groups at even distances."""
    step = max(1, len(groups) // count)
    return groups[::step][:count]


def _asked(item: Item, answer: str, right: bool) -> GalleryQuestion:
    """Return an item as the gallery shows it."""
    question = item.conversation.turns[-1].text.removesuffix(SHORT_ANSWER).strip()
    lines = [line for line in question.splitlines() if not line.startswith("Picture ")]
    return GalleryQuestion(item.category, " ".join(lines), answer, item.references[0], right)
