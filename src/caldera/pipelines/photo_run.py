"""Run of a photo recipe: import labeled photos, train both stages, evaluate on photos that were held out.

```
OUT/
  recipe.json  timings.json      settings, and the seconds of each step
  data/                          pretrain.json and finetune.json, and the questions about photos that are held out
  towers/                        converted tower and language model
  features/                      the frozen tower's features
  pretrain/  finetune/           run folders of the stages
  answers/                       answers to each question, and to the same questions with another photo
  results.json  report.html      the scores
  model/                         the assistant
```

The data are imported again by each start, which is deterministic; every other step is skipped if its result exists.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from caldera.annotations.labeled_images import usual_splits
from caldera.datasets.importer import ImportOptions
from caldera.datasets.registry import ImportReport, import_dataset
from caldera.devices import Runtime
from caldera.evaluation.annotation_questions import with_shuffled_images
from caldera.evaluation.benchmark import Benchmark, Item, Score, Sources
from caldera.evaluation.benchmarks.custom import load_questions
from caldera.evaluation.report import Column, GalleryItem, Report, write_report
from caldera.files.atomic import lock_folder, write_json
from caldera.formats.model_folder import save_model_folder
from caldera.pipelines.run_report import (
    every_nth,
    flatten_score,
    gallery_question,
    machine_info,
    stage_curve,
)
from caldera.pipelines.run_steps import RunSteps, StepTimer
from caldera.recipes.recipe import PhotoRecipe, check_recipe, write_recipe

log = logging.getLogger(__name__)

_HELD_OUT = "300"
"""Photos that are held out where there is no test split."""

_MAX_NEW_TOKENS = 32
"""Maximum length of an answer; the names of classes are shorter."""

_GALLERY_SIZE = 20
"""Photos in the report; half of them have a wrong answer, if as many have."""

_STAGE_TITLES = {
    "pretrain": "stage 1: train the projector, on captions",
    "finetune": "stage 2: train projector and language model, on questions",
}


@dataclass(frozen=True, slots=True)
class PhotoScores:
    """Scores of a photo run; accuracies are fractions."""

    benchmark: Benchmark
    answers: dict[str, str]
    """Answers of the assistant by item id."""

    accuracy: Score
    shuffled_images: Score
    """Score of the assistant's answers about other photos."""

    most_common_class: float
    """Fraction of the held-out photos that show the most frequent class."""

    num_training: int
    num_held_out: int

    example: Path
    """A photo that was held out."""


def run_photo_recipe(
    recipe: PhotoRecipe, photos: Path, out: Path, runtime: Runtime, max_bad_fraction: float = 0.0
) -> PhotoScores:
    """Run a recipe in a folder, or resume it there.

    Args:
        recipe: The recipe.
        photos: Class folders, or a table of images and labels.
        out: Folder of the run.
        runtime: Device and progress.
        max_bad_fraction: Fraction of the photos that may be skipped.

    Raises:
        CalderaError: The folder is in use or holds another run, photos cannot be used, or a step failed.
    """
    with lock_folder(out):
        check_recipe(out, recipe)
        steps, timer = RunSteps(out, runtime), StepTimer(out / "timings.json")
        with timer("import photos"):
            report = _import(recipe, photos, out / "data", max_bad_fraction)
        with timer("pretrain"):
            log.info("%s", _STAGE_TITLES["pretrain"])
            start = steps.new_model(recipe)
            # Not before the photos and the towers are known to be usable.
            write_recipe(out, recipe)
            pretrained = steps.train(recipe.pretrain, start)
        with timer("finetune"):
            log.info("%s", _STAGE_TITLES["finetune"])
            assistant = steps.train(recipe.finetune, pretrained)
        with timer("evaluate"):
            benchmark = load_questions(Sources(questions=report.held_out))
            items = benchmark.items
            folder = out / "data"
            answers, of_others = (
                steps.answer(
                    assistant, questions, name, folder=folder, max_new_tokens=_MAX_NEW_TOKENS
                )
                for questions, name in (
                    (items, "held-out questions"),
                    (with_shuffled_images(items, recipe.seed), "the same, other photos"),
                )
            )
        classes = Counter(item.references[0] for item in items if item.category == "naming")
        scores = PhotoScores(
            benchmark=benchmark,
            answers=answers,
            accuracy=benchmark.score(answers),
            shuffled_images=benchmark.score(of_others),
            most_common_class=max(classes.values()) / classes.total(),
            num_training=report.images,
            num_held_out=report.held_out_images,
            example=folder / items[0].conversation.images[0],
        )
        save_model_folder(out / "model", assistant)
        _write_results(out, recipe, scores, timer.seconds)
        return scores


def _import(
    recipe: PhotoRecipe, photos: Path, folder: Path, max_bad_fraction: float
) -> ImportReport:
    """Write the data of both stages, and the questions about the photos that are held out; log what is held out."""
    training_split, test_split = usual_splits(photos) or (None, None)
    options = ImportOptions(
        split=recipe.split or training_split,
        hold_out=recipe.hold_out or test_split or _HELD_OUT,
        hold_out_option="--set hold_out=",
        phrases=None if recipe.phrases is None else Path(recipe.phrases),
        seed=recipe.seed,
    )
    for stage, kinds in (("pretrain", "caption"), ("finetune", recipe.finetune_kinds)):
        file = folder / f"{stage}.json"
        chosen = replace(options, kinds=kinds)
        report = import_dataset("folders", photos, file, chosen, max_bad_fraction)
    log.info(
        "%d photos%s to train on, %d others%s held out; classes: %s",
        *(report.images, f" of {options.split}" if options.split else ""),
        *(report.held_out_images, f" of {options.hold_out}" if test_split else ""),
        ", ".join(f"{label} {count}" for label, count in report.classes.most_common()),
    )
    return report


def _write_results(
    out: Path, recipe: PhotoRecipe, scores: PhotoScores, seconds: dict[str, float]
) -> None:
    """Write `results.json` and `report.html`."""
    results: dict[str, Any] = {
        "accuracy": flatten_score(scores.accuracy),
        "shuffled_images": flatten_score(scores.shuffled_images),
        "most_common_class": round(scores.most_common_class, 4),
        "questions": _question_counts(scores),
        "photos": {"training": scores.num_training, "held out": scores.num_held_out},
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    }
    write_json(
        out / "results.json", {**results, "recipe": asdict(recipe), "machine": machine_info()}
    )
    write_report(out / "report.html", _report(out, recipe, scores, seconds))


def _question_counts(scores: PhotoScores) -> dict[str, int]:
    """Return the number of questions by category, with "overall"."""
    return {"overall": len(scores.benchmark.items), **scores.accuracy.counts}


def _report(
    out: Path, recipe: PhotoRecipe, scores: PhotoScores, seconds: dict[str, float]
) -> Report:
    """Return the content of the report."""
    return Report(
        title=f"caldera: {recipe.name}",
        summary=f"{scores.num_training} photos to train on, {scores.num_held_out} held out; vision tower "
        f"{recipe.vision}, language model {recipe.language}, projector {recipe.projector}.",
        columns=(
            Column("assistant", "its answers.", flatten_score(scores.accuracy)),
            Column(
                "another photo",
                "the same questions to the same assistant, about another of these photos.",
                flatten_score(scores.shuffled_images),
            ),
        ),
        counts=_question_counts(scores),
        metrics={
            "naming, always the most frequent class": f"{100 * scores.most_common_class:.1f} %",
            "presence, always the same answer": "50.0 %",
        },
        curves=[stage_curve(out, name, title) for name, title in _STAGE_TITLES.items()],
        gallery=_gallery(out / "data", scores),
        seconds=seconds,
        facts=machine_info(),
    )


def _gallery(folder: Path, scores: PhotoScores) -> list[GalleryItem]:
    """Select photos of both kinds at even distances: with a wrong answer, and with right ones alone."""
    item_scores = scores.accuracy.item_scores
    by_image: dict[str, list[Item]] = {}
    for item in scores.benchmark.items:
        by_image.setdefault(item.conversation.images[0], []).append(item)

    def has_error(image: str) -> bool:
        return any(item_scores[item.id] < 1 for item in by_image[image])

    wrong = every_nth([image for image in by_image if has_error(image)], _GALLERY_SIZE // 2)
    right = [image for image in by_image if not has_error(image)]
    chosen: Sequence[str] = [*wrong, *every_nth(right, _GALLERY_SIZE - len(wrong))]
    return [
        GalleryItem(
            (folder / image,),
            [
                gallery_question(item, scores.answers[item.id], right=item_scores[item.id] == 1)
                for item in by_image[image]
            ],
        )
        for image in sorted(chosen)
    ]
