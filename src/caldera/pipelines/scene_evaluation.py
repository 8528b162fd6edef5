"""Evaluation of a scene run: answers about held-out scenes, baselines, scores and report."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caldera.annotations.annotated_image import AnnotationSet
from caldera.evaluation.annotation_questions import (
    ExactMatch,
    build_caption_questions,
    build_questions,
    majority_answers,
    with_shuffled_images,
)
from caldera.evaluation.benchmark import Benchmark, Item, Score
from caldera.evaluation.report import (
    Column,
    GalleryItem,
    Report,
    write_report,
)
from caldera.files.atomic import write_json
from caldera.model.bundle import LlavaBundle
from caldera.pipelines.run_report import (
    every_nth,
    flatten_score,
    gallery_question,
    machine_info,
    stage_curve,
)
from caldera.pipelines.run_steps import RunSteps
from caldera.recipes.recipe import QuestionCounts, SceneRecipe


@dataclass(frozen=True, slots=True)
class SceneScores:
    """Scores of a scene run; accuracies are fractions."""

    benchmark: ExactMatch
    answers: dict[str, str]
    """Answers of the assistant by item id."""

    accuracy: Score
    majority_baseline: Score
    """Score of the most frequent training answer to each form of question."""

    shuffled_images: Score
    """Score of the assistant's answers about other images."""

    without_pretraining: Score
    """Score of an assistant with the same stage 2 but no stage 1."""

    caption_cider: float
    """CIDEr-D, 0 to 10, with five reference captions."""


class SceneEvaluator:
    """Evaluation of assistants on held-out scenes, with their answers on disk."""

    def __init__(
        self,
        questions: QuestionCounts,
        training: AnnotationSet,
        held_out: AnnotationSet,
        *,
        steps: RunSteps,
        seed: int,
    ) -> None:
        """Write the questions about the held-out scenes; `steps` answers them."""
        self._training = training
        self._steps = steps
        self._seed = seed
        self._benchmark = build_questions(
            held_out,
            name="held-out scenes",
            per_image=questions.per_image,
            context_per_image=questions.context_per_image,
            seed=seed,
            relative_to=steps.out,
        )
        captioned = AnnotationSet(held_out.images[: questions.captioned], held_out.categories)
        self._captions = build_caption_questions(captioned, name="captions", relative_to=steps.out)

    def evaluate(self, assistant: LlavaBundle, not_pretrained: LlavaBundle) -> SceneScores:
        """Ask both assistants everything and score the answers."""
        benchmark, captions = self._benchmark, self._captions
        items, shuffled = benchmark.items, with_shuffled_images(benchmark.items)
        answers = self._answers(assistant, benchmark, items, "held-out questions")
        other_images = self._answers(assistant, benchmark, shuffled, "the same, other images")
        no_stage_1 = self._answers(not_pretrained, benchmark, items, "the same, no stage 1")
        captions_written = self._answers(assistant, captions, captions.items, "captions")
        return SceneScores(
            benchmark=benchmark,
            answers=answers,
            accuracy=benchmark.score(answers),
            majority_baseline=benchmark.score(majority_answers(items, self._training, self._seed)),
            shuffled_images=benchmark.score(other_images),
            without_pretraining=benchmark.score(no_stage_1),
            caption_cider=captions.score(captions_written).overall,
        )

    def _answers(
        self, assistant: LlavaBundle, benchmark: Benchmark, items: Sequence[Item], name: str
    ) -> dict[str, str]:
        """Return an assistant's answers."""
        return self._steps.answer(
            assistant,
            items,
            name,
            folder=self._steps.out,
            max_new_tokens=benchmark.max_new_tokens,
        )


_GALLERY_SIZE = 18
"""Images, or groups of images, in the gallery."""

STAGE_TITLES = {
    "pretrain": "stage 1: train the projector, on captions",
    "finetune": "stage 2: train projector and language model, on instructions",
    "without_pretraining": "stage 2 without stage 1, for comparison",
}
"""Titles of the stages, by the name of their folder."""


def write_results(
    out: Path, recipe: SceneRecipe, scores: SceneScores, seconds: dict[str, float]
) -> None:
    """Write `results.json` and `report.html` of a run.

    Raises:
        OutputError: They cannot be written.
    """
    results = as_results(scores, seconds)
    write_json(
        out / "results.json", {**results, "recipe": asdict(recipe), "machine": machine_info()}
    )
    write_report(out / "report.html", _report(out, recipe, scores, seconds))


def as_results(scores: SceneScores, seconds: dict[str, float]) -> dict[str, Any]:
    """Return the numbers of a run in the form of results.json."""
    return {
        "accuracy": flatten_score(scores.accuracy),
        "majority_baseline": flatten_score(scores.majority_baseline),
        "shuffled_images": flatten_score(scores.shuffled_images),
        "without_pretraining": flatten_score(scores.without_pretraining),
        "caption_cider": round(scores.caption_cider, 4),
        "questions": _question_counts(scores),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    }


def _question_counts(scores: SceneScores) -> dict[str, int]:
    """Return the number of questions by category, with "overall"."""
    return {"overall": len(scores.benchmark.items), **scores.accuracy.counts}


def _report(
    out: Path, recipe: SceneRecipe, scores: SceneScores, seconds: dict[str, float]
) -> Report:
    """Return the content of the report."""
    columns = (
        Column("assistant", "its answers.", flatten_score(scores.accuracy)),
        Column(
            "majority baseline",
            "the most frequent training answer to that form of question, without the image.",
            flatten_score(scores.majority_baseline),
        ),
        Column(
            "shuffled images",
            "the same questions to the same assistant, about other images.",
            flatten_score(scores.shuffled_images),
        ),
        Column(
            "without pretraining",
            "an assistant with the same stage 2, but no stage 1.",
            flatten_score(scores.without_pretraining),
        ),
    )
    cider = "captions of held-out images, CIDEr-D with five references (0 to 10)"
    return Report(
        title=f"caldera: {recipe.name}",
        summary=f"{recipe.scenes.train} training scenes, {recipe.scenes.held_out} held out; vision tower "
        f"{recipe.vision}, language model {recipe.language}, projector {recipe.projector}.",
        columns=columns,
        counts=_question_counts(scores),
        metrics={cider: f"{scores.caption_cider:.2f}"},
        curves=[stage_curve(out, name, title) for name, title in STAGE_TITLES.items()],
        gallery=_gallery(out, scores),
        seconds=seconds,
        facts=machine_info(),
    )


def _gallery(out: Path, scores: SceneScores) -> list[GalleryItem]:
    """Select held-out images for the gallery at even distances, two thirds single and one third groups."""
    item_scores = scores.accuracy.item_scores
    groups: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in scores.benchmark.items:
        groups[item.conversation.images].append(item)
    single = [images for images in groups if len(images) == 1]
    several = [images for images in groups if len(images) > 1]
    third = _GALLERY_SIZE // 3
    selected = [*every_nth(single, 2 * third), *every_nth(several, third)]
    return [
        GalleryItem(
            tuple(out / path for path in images),
            [
                gallery_question(item, scores.answers[item.id], right=item_scores[item.id] == 1)
                for item in groups[images]
            ],
        )
        for images in selected
    ]
