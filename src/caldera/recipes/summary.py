"""Scores and seconds in, results.json and report.html out."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import caldera
from caldera.evaluation.benchmark import Score
from caldera.recipes.measure import Measured
from caldera.recipes.recipe import Recipe
from caldera.storage import write_json


def write_results(out: Path, recipe: Recipe, measured: Measured, seconds: dict[str, float]) -> None:
    """Write both files of a run."""
    results = as_results(measured, seconds)
    write_json(out / "results.json", {**results, "recipe": asdict(recipe), "machine": machine()})


def as_results(measured: Measured, seconds: dict[str, float]) -> dict[str, Any]:
    """Return the numbers of a run as results.json has them."""
    return {
        "accuracy": _flat(measured.accuracy),
        "prior": _flat(measured.prior),
        "other_picture": _flat(measured.other_picture),
        "without_pretrain": _flat(measured.without_pretrain),
        "caption_cider": round(measured.caption_cider, 4),
        "questions": {"overall": len(measured.benchmark.items), **measured.accuracy.counts},
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    }


def _flat(score: Score) -> dict[str, float]:
    """Return a score as one level of names."""
    return {
        name: round(value, 4) for name, value in {"overall": score.overall, **score.by_kind}.items()
    }


def machine() -> dict[str, str]:
    """Say what a run was made with."""
    return {
        "caldera": caldera.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
    }
