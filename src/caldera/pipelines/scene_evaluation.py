"""Baselines, scores, report."""

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import caldera
from caldera.annotations.annotated_image import AnnotationSet
from caldera.batches.image_sources import ImageSource
from caldera.devices import Runtime
from caldera.evaluation.annotation_questions import (
    ExactMatch,
    build_caption_questions,
    build_questions,
    majority_answers,
    with_shuffled_images,
)
from caldera.evaluation.answerers.local_model import generate_answers
from caldera.evaluation.benchmark import Benchmark, Item, Score
from caldera.evaluation.report import (
    Column,
    Curve,
    GalleryItem,
    GalleryQuestion,
    Report,
    write_report,
)
from caldera.files.atomic import write_json
from caldera.formats.weight_names import digest_weights
from caldera.instructions.request_phrases import SHORT_ANSWER
from caldera.model.assistant import LlavaBundle
from caldera.recipes.recipe import QuestionCounts, SceneRecipe
from caldera.training.job import cached_tower_features
from caldera.training.metrics_log import read_metrics


@dataclass(frozen=True, slots=True)
class SceneScores:
    """What a recipe came to; accuracies are fractions."""

    benchmark: ExactMatch
    answers: dict[str, str]
    """The assistant's, by item id."""

    accuracy: Score
    majority_baseline: Score
    """Of the commonest training answer to each form of question."""

    shuffled_images: Score
    """Of the assistant's answers when another image is shown."""

    without_pretraining: Score
    """Of an assistant with the same stage 2 but no stage 1."""

    caption_cider: float
    """CIDEr-D, 0 to 10, against five captions."""


class SceneEvaluator:
    """Asks assistants about held-out scenes, and keeps their answers."""

    def __init__(
        self,
        questions: QuestionCounts,
        training: AnnotationSet,
        held_out: AnnotationSet,
        *,
        out: Path,
        seed: int,
        means: Runtime,
    ) -> None:
        self._training = training
        self._out = out
        self._seed = seed
        self._means = means
        self._paths = [image.path for image in held_out.images]
        self._benchmark = build_questions(
            held_out,
            name="held-out scenes",
            per_image=questions.per_image,
            context_per_image=questions.context_per_image,
            seed=seed,
            relative_to=out,
        )
        some = AnnotationSet(held_out.images[: questions.captioned], held_out.categories)
        self._captions = build_caption_questions(some, name="captions", relative_to=out)

    def measure(self, assistant: LlavaBundle, not_pretrained: LlavaBundle) -> SceneScores:
        """Ask everything and score it."""
        bench, captions = self._benchmark, self._captions
        answers = self._answers(assistant, bench, bench.items, "held-out questions")
        swapped = with_shuffled_images(bench.items)
        others = self._answers(assistant, bench, swapped, "the same, other images")
        without = self._answers(not_pretrained, bench, bench.items, "the same, no stage 1")
        told = self._answers(assistant, captions, captions.items, "captions")
        prior = majority_answers(bench.items, self._training, self._seed)
        return SceneScores(
            benchmark=bench,
            answers=answers,
            accuracy=bench.score(answers),
            majority_baseline=bench.score(prior),
            shuffled_images=bench.score(others),
            without_pretraining=bench.score(without),
            caption_cider=captions.score(told).overall,
        )

    def _answers(
        self, assistant: LlavaBundle, benchmark: Benchmark, items: Sequence[Item], name: str
    ) -> dict[str, str]:
        """Ask an assistant, unless its answers to these very items stand there from an earlier start."""
        file = self._out / "answers" / f"{name.replace(' ', '_').replace(',', '')}.json"
        asked = _identity(assistant, items)
        if file.is_file():
            found = json.loads(file.read_text())
            if found.get("asked") == asked:
                return dict(found["answers"])
        assistant.model.to(self._means.compute.device)  # one that stood there is on the CPU
        answers = generate_answers(
            assistant,
            items,
            self._features(assistant),
            folder=self._out,
            max_new_tokens=benchmark.max_new_tokens,
            runtime=self._means,
            name=name,
        )
        write_json(file, {"asked": asked, "answers": answers})
        return answers

    def _features(self, assistant: LlavaBundle) -> ImageSource:
        """Compute the held-out images' features, which all conditions share."""
        return cached_tower_features(
            assistant, self._out / "features", self._paths, runtime=self._means
        )


def _identity(assistant: LlavaBundle, items: Sequence[Item]) -> str:
    """Return a digest of who was asked and what: the run, its weights, and every item."""
    run, weights = (
        assistant.card.source_digests["run"],
        digest_weights(assistant.model.state_dict()),
    )
    return hashlib.sha256(repr((run, weights, list(items))).encode()).hexdigest()


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
    flat = {"overall": score.overall, **score.by_category}
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
        metrics={
            "captions of held-out images, CIDEr-D against five captions (0 to 10)": f"{measured.caption_cider:.2f}"
        },
        curves=[_curve(out, name, title) for name, title in _STAGES.items()],
        gallery=_gallery(out, measured),
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
    scores = measured.accuracy.item_scores
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
            [_asked(item, measured.answers[item.id], scores[item.id] == 1) for item in groups[images]],
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
