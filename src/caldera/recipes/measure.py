"""Two assistants and held-out scenes in, scores out: beside a prior, beside other images, beside no stage 1."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.batches.image_sources import ImageSource
from caldera.evaluation.ask import ask
from caldera.evaluation.benchmark import Benchmark, Item, Score
from caldera.evaluation.captions import build_caption_task
from caldera.evaluation.exact_match import (
    ExactMatch,
    build_questions,
    majority_answers,
    with_shuffled_images,
)
from caldera.inference.generate import BatchGenerator
from caldera.model.folder import LlavaBundle
from caldera.model.weights import digest_weights
from caldera.recipes.scene_recipe import QuestionCounts
from caldera.storage import write_json
from caldera.training.devices import Runtime
from caldera.training.features import cached_tower_features, raise_image_error


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
            beside=out,
        )
        some = AnnotationSet(held_out.images[: questions.captioned], held_out.categories)
        self._captions = build_caption_task(some, name="captions", beside=out)

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
        with self._means.compute.autocast():
            answers = ask(
                BatchGenerator(assistant, self._features(assistant)),
                items,
                folder=self._out,
                max_new_tokens=benchmark.max_new_tokens,
                progress=self._means.progress,
                name=name,
            )
        write_json(file, {"asked": asked, "answers": answers})
        return answers

    def _features(self, assistant: LlavaBundle) -> ImageSource:
        """Compute the held-out images' features, which all conditions share."""
        return cached_tower_features(
            assistant,
            self._out / "features",
            self._paths,
            means=self._means,
            on_fault=raise_image_error,
        )


def _identity(assistant: LlavaBundle, items: Sequence[Item]) -> str:
    """Return a digest of who was asked and what: the run, its weights, and every item."""
    run, weights = (
        assistant.card.source_digests["run"],
        digest_weights(assistant.model.state_dict()),
    )
    return hashlib.sha256(repr((run, weights, list(items))).encode()).hexdigest()
