"""Parts of a run's results and report: flat scores, loss curves, questions of the gallery, and the machine."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

import caldera
from caldera.evaluation.benchmark import Item, Score
from caldera.evaluation.report import Curve, GalleryQuestion
from caldera.instructions.request_phrases import SHORT_ANSWER
from caldera.training.metrics_log import read_metrics

_Element = TypeVar("_Element")


def flatten_score(score: Score) -> dict[str, float]:
    """Return a score as one dict, with "overall"."""
    flat = {"overall": score.overall, **score.by_category}
    return {name: round(value, 4) for name, value in flat.items()}


def machine_info() -> dict[str, str]:
    """Return the versions and the processor of this machine."""
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return {
        "caldera": caldera.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{threads} threads, {capability}",
    }


def stage_curve(out: Path, name: str, title: str) -> Curve:
    """Read the losses of the stage in the folder `name` of a run."""
    events = read_metrics(out / name / "metrics.jsonl")

    def values(key: str) -> list[tuple[float, float]]:
        return [(event["step"], event[key]) for event in events if key in event]

    return Curve(title, values("loss"), values("validation_loss"))


def every_nth(elements: Sequence[_Element], count: int) -> Sequence[_Element]:
    """Select `count` elements at even distances."""
    step = max(1, len(elements) // count)
    return elements[::step][:count]


def gallery_question(item: Item, answer: str, *, right: bool) -> GalleryQuestion:
    """Return an item in the form of the gallery, without image labels and the short-answer prompt."""
    question = item.conversation.turns[-1].text.removesuffix(SHORT_ANSWER).strip()
    # The first word of the labels of several images.
    lines = [line for line in question.splitlines() if line.partition(" ")[0] != "Picture"]
    return GalleryQuestion(item.category, " ".join(lines), answer, item.references[0], right)
