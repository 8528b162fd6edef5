"""Scores of a model for its card: evaluations whose files show that they are of exactly its weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from caldera.errors import InputError
from caldera.evaluation.answerers.local_model import digest_model_folder
from caldera.evaluation.runs.results import with_current_keys
from caldera.export.model_card import CARD_FILE, CardEvaluation

_NEAR = ("results.json", "*/results.json", "*/*/results.json")
"""Results below a folder of evaluations: a run, or runs by benchmark and model."""

_DEFAULT_RUNS = Path("runs/evaluate")
_DEMO_COLUMNS = {
    "accuracy": "accuracy",
    "majority_baseline": "most frequent answer instead",
    "shuffled_images": "other images shown",
    "without_pretraining": "without stage 1",
}
"""Titles of the scores of a demo, by their keys."""

_TASK = "image-text-to-text"


def find_evaluations(folder: Path, results: Sequence[Path]) -> tuple[CardEvaluation, ...]:
    """Return the evaluations of a model folder.

    Args:
        folder: The model folder.
        results: Run folders, or folders of them, all of which must be of this model. If there are none, the runs of
            this model in `runs/evaluate` and next to its folder.

    Raises:
        InputError: Given results are missing, of another model, or invalid.
    """
    folders = results or (_DEFAULT_RUNS, folder.parent, folder.parent.parent)
    digests = _model_digests(folder)
    evaluations: dict[str, CardEvaluation] = {}
    for runs in folders:
        files = dict.fromkeys(file for pattern in _NEAR for file in sorted(runs.glob(pattern)))
        if results and not files:
            raise InputError(f"{runs} holds no results.json of an evaluation; check --results")
        for file in files:
            content = _read_results(file)
            reason = _why_not(content, digests)
            if reason and results:
                raise InputError(f"{file} {reason}; give --results of this model only")
            if not reason:
                evaluations.setdefault(_identity(content), _card_evaluation(content))
    if not results and (scores := _demo_scores(folder.parent)):
        evaluations["demo"] = scores
    return tuple(evaluations.values())


def _model_digests(folder: Path) -> frozenset[str]:
    """Return the digests by which evaluations name a model folder: with a card, which may be newer, and without."""
    digests = {digest_model_folder(folder)}
    if (folder / CARD_FILE).exists():
        digests.add(digest_model_folder(folder, {CARD_FILE}))
    return frozenset(digests)


def _read_results(file: Path) -> dict[str, Any]:
    """Return the content of a results.json; empty if it cannot be read."""
    try:
        results = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return with_current_keys(results) if isinstance(results, dict) else {}


def _why_not(results: Mapping[str, Any], digests: frozenset[str]) -> str:
    """Return why results are not of a model; empty if they are."""
    if not {"provenance", "headline", "overall", "kinds", "counts"} <= results.keys():
        return "is not the result of `caldera evaluate`"
    if results["provenance"]["model"].get("model") not in digests:
        return "has no scores of these weights: another model, a server, or other files in the folder answered"
    return "" if results["valid"] else "is not valid, as too many items failed"


def _identity(results: Mapping[str, Any]) -> str:
    """Return task and data, which differ between the evaluations of a model."""
    return f"{results['task']} {results['provenance']['data']['digest']}"


def _card_evaluation(results: Mapping[str, Any]) -> CardEvaluation:
    """Return the results of a run as a card shows them."""
    headline, counts, data = results["headline"], results["counts"], results["provenance"]["data"]
    title = " ".join(Path(word).name if "/" in word else word for word in results["title"].split())
    chance = "" if headline["chance"] is None else f" Guessing gives {headline['chance']:g}."
    description = (
        f"{results['measures']} {data['items']} of {data['split']} items of the split, SHA-256 {data['digest']}; "
        f"{counts['failed']} failed.{chance}"
    )
    value = f"{headline['value']:.2f}"
    rows = [(headline["figure"], value, _interval(headline, 2), str(counts["answered"]))]
    groups = {**results["kinds"], **results["slices"]}
    rows += [
        (name, f"{group['value']:.3f}", _interval(group, 3), str(group["n"]))
        for name, group in (groups if len(groups) > 1 else {}).items()
        if group["value"] is not None
    ]
    args = {key: headline[key] for key in ("low", "high", "method") if headline[key] is not None}
    result = EvalResult(
        task_type=_TASK,
        dataset_type=results["task"],
        dataset_name=title,
        metric_type=headline["figure"],
        metric_value=round(headline["value"], 2),
        metric_args={**args, "items": counts["answered"]},
    )
    columns = ("score", "95 % interval", "items")
    return CardEvaluation(
        title=title, description=description, columns=columns, rows=tuple(rows), results=(result,)
    )


def _interval(scores: Mapping[str, Any], digits: int) -> str:
    """Return an interval with its method; empty if there is none."""
    if scores["low"] is None:
        return ""
    return f"{scores['low']:.{digits}f} to {scores['high']:.{digits}f} ({scores['method']})"


def _demo_scores(run: Path) -> CardEvaluation | None:
    """Return the scores of a run of `caldera demo`, whose model lies in its folder; None if it is another run."""
    results = _read_results(run / "results.json")
    if not {"accuracy", "questions", "recipe"} <= results.keys():
        return None
    columns = {key: title for key, title in _DEMO_COLUMNS.items() if key in results}
    rows = tuple(
        (name, *(f"{results[key].get(name, 0):.3f}" for key in columns), str(count))
        for name, count in results["questions"].items()
    )
    cider = results.get("caption_cider")
    captions = "" if cider is None else f" CIDEr-D of captions: {cider:.2f} (0 to 10)."
    title = f"Held-out images of the recipe {results['recipe']['name']}"
    result = EvalResult(
        task_type=_TASK,
        dataset_type=f"held-out-{results['recipe']['name']}",
        dataset_name=title,
        metric_type="accuracy",
        metric_value=results["accuracy"]["overall"],
        metric_args={"items": results["questions"]["overall"]},
    )
    return CardEvaluation(
        title=title,
        description=(
            "Share of correct answers about images that were not trained on; the run stores no intervals."
            f"{captions}"
        ),
        columns=(*columns.values(), "questions"),
        rows=rows,
        results=(result,),
    )
