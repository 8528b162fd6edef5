"""Questions built from annotations, scored by exact match or CIDEr-D."""

import os
import random
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet
from caldera.conversation import Conversation, ImageRef, Turn, label_images
from caldera.errors import InputError
from caldera.evaluation.benchmark import Item, Score, ScoredItems, check_answers, mean
from caldera.evaluation.caption_metrics import cider_d
from caldera.instructions.dialogues import RelatedImages
from caldera.instructions.facts import Facts, derive_facts
from caldera.instructions.multi_image_questions import questions_about_all
from caldera.instructions.questions import Question, questions_about, yes_no_pairs
from caldera.instructions.request_phrases import CAPTION_REQUESTS, SHORT_ANSWER


def _score_captions(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Return CIDEr-D, between 0 and 10, as the overall score."""
    return Score(cider_d(answers, {item.id: item.references for item in items}))


def build_caption_questions(
    annotations: AnnotationSet, *, name: str, relative_to: Path
) -> ScoredItems:
    """Return a request for a caption of each image, always worded equally; image paths start from `relative_to`."""
    items: list[Item] = []
    for image in annotations.images:
        image_ref = ImageRef(os.path.relpath(image.path, relative_to))
        turn = Turn("user", (image_ref, f"\n{CAPTION_REQUESTS[0]}"))
        conversation = Conversation(image.id, (turn,))
        items.append(Item(image.id, "caption", "caption", conversation, image.captions))
    return ScoredItems(name, items, _score_captions, max_new_tokens=40)


def normalized(text: str) -> str:
    """Return an answer in lower case without punctuation at its ends, so that 'Yes.' equals 'yes'."""
    return " ".join(text.lower().split()).strip(string.punctuation + " ")


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Items with one reference each; an answer must equal it, without case and outer punctuation."""

    name: str
    items: Sequence[Item]
    max_new_tokens: int = 8

    def score(self, answers: Mapping[str, str]) -> Score:
        """Return the fraction of correct answers, overall and by category."""
        check_answers(self.items, answers)
        parsed = {item.id: normalized(answers[item.id]) for item in self.items}
        by_category: dict[str, list[float]] = defaultdict(list)
        scores: dict[str, float] = {}
        for item in self.items:
            scores[item.id] = float(parsed[item.id] == normalized(item.references[0]))
            by_category[item.category].append(scores[item.id])
        overall = mean(scores.values())
        return Score(
            overall,
            {category: mean(group) for category, group in by_category.items()},
            {category: len(group) for category, group in by_category.items()},
            metrics={"accuracy": round(100 * overall, 2)},
            item_scores=scores,
            parsed_answers=parsed,
        )


def build_questions(
    annotations: AnnotationSet,
    *,
    name: str,
    per_image: int,
    context_per_image: int,
    seed: int,
    relative_to: Path,
) -> ExactMatch:
    """Build questions about annotated images, each of which is a conversation of its own.

    Args:
        annotations: Images that are not in the training data.
        name: Name of the benchmark.
        per_image: Maximum number of questions about each image; yes and no stay balanced.
        context_per_image: Maximum number of questions about it together with other images.
        seed: Random seed of the selection and wording.
        relative_to: Folder that image paths start from.
    """
    facts = {
        image.path: derive_facts(image, annotations.categories) for image in annotations.images
    }
    # Without boxes it is unknown what is absent; groups are sampled from all images all the same.
    images = [
        image for image in annotations.images if image.instances or not annotations.categories
    ]
    related_images = RelatedImages(images, annotations.listed or annotations.images)
    items: list[Item] = []
    use_counts: Counter[str] = Counter()
    for image in images:
        rng = random.Random(f"questions {seed} {image.id}")
        questions = _choose_balanced(questions_about(facts[image.path], rng), per_image, rng)
        for number, question in enumerate(questions):
            items.append(_to_item(f"{image.id}-{number}", question, (image,), relative_to))
        group = related_images.group_with(image, rng)
        if len(group) > 1:
            context = questions_about_all([facts[member.path] for member in group], rng)
            questions = _choose_least_used(context, context_per_image, rng, use_counts)
            for number, question in enumerate(questions):
                items.append(_to_item(f"{image.id}-context-{number}", question, group, relative_to))
    if not items:
        raise InputError("the annotations allow no question with a definite answer")
    return ExactMatch(name, tuple(items))


def _choose_balanced(
    questions: Sequence[Question], max_questions: int, rng: random.Random
) -> list[Question]:
    """Choose questions evenly over their kinds, with yes and no in pairs."""
    units: dict[str, list[list[Question]]] = defaultdict(list)
    for unit in yes_no_pairs(questions):
        units[unit[0].kind].append(unit)
    for kind_units in units.values():
        rng.shuffle(kind_units)
    chosen: list[Question] = []
    while any(units.values()):
        for kind_units in filter(None, units.values()):
            unit = kind_units.pop()
            if len(chosen) + len(unit) <= max_questions:
                chosen += unit
        if len(chosen) >= max_questions:
            break
    return chosen


def _choose_least_used(
    questions: Sequence[Question],
    max_questions: int,
    rng: random.Random,
    use_counts: Counter[str],
) -> list[Question]:
    """Choose questions of the least used forms, with yes and no in pairs, and update the counts."""
    units = yes_no_pairs(questions)
    rng.shuffle(units)
    chosen: list[Question] = []
    for unit in sorted(units, key=lambda unit: use_counts[unit[0].form]):
        if len(chosen) + len(unit) <= max_questions:
            chosen += unit
    use_counts.update(question.form for question in chosen)
    return chosen


def _to_item(
    name: str, question: Question, images: Sequence[AnnotatedImage], relative_to: Path
) -> Item:
    """Return the item of a question about one or several images."""
    image_refs = [ImageRef(os.path.relpath(image.path, relative_to)) for image in images]
    text = f"{question.text}\n{SHORT_ANSWER}"
    is_single = len(image_refs) == 1
    parts = (image_refs[0], f"\n{text}") if is_single else (*label_images(image_refs), text)
    conversation = Conversation(name, (Turn("user", parts),))
    return Item(name, question.kind, question.form, conversation, (question.short,))


def majority_answers(items: Iterable[Item], training: AnnotationSet, seed: int) -> dict[str, str]:
    """Answer each item, blindly, with the most common training answer to its form of question."""
    rng = random.Random(f"prior {seed}")
    facts = [derive_facts(image, training.categories) for image in training.images]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for image_facts in facts:
        for question in questions_about(image_facts, rng):
            counts[question.form][question.short] += 1
    for question in _context_questions(training, facts, rng):
        counts[question.form][question.short] += 1
    most_common = {form: answers.most_common(1)[0][0] for form, answers in counts.items()}
    return {item.id: most_common.get(item.question_type, "") for item in items}


def _context_questions(
    training: AnnotationSet, facts: Sequence[Facts], rng: random.Random
) -> list[Question]:
    """Return the questions about several images that training images allow."""
    facts_by_path = dict(zip((image.path for image in training.images), facts, strict=True))
    related_images = RelatedImages(training.images)
    return [
        question
        for image in training.images
        for question in questions_about_all(
            [facts_by_path[member.path] for member in related_images.group_with(image, rng)], rng
        )
    ]


def with_shuffled_images(items: Sequence[Item], seed: int | None = None) -> list[Item]:
    """Return the same questions about other images, to measure the effect of the image content alone.

    Args:
        items: Questions about at least two images.
        seed: Seed of the order of the images; None sorts them by name, which puts images of a class next to each other
            where the names of their folders are classes.
    """
    paths = sorted({path for item in items for path in item.conversation.images})
    if seed is not None:
        random.Random(seed).shuffle(paths)
    shift = len(paths) // 2
    replacements = {path: paths[(index + shift) % len(paths)] for index, path in enumerate(paths)}
    return [
        replace(item, conversation=_replace_images(item.conversation, replacements))
        for item in items
    ]


def _replace_images(conversation: Conversation, replacements: Mapping[str, str]) -> Conversation:
    turns: list[Turn] = []
    for turn in conversation.turns:
        parts = (
            ImageRef(replacements[part.path]) if isinstance(part, ImageRef) else part
            for part in turn.parts
        )
        turns.append(Turn(turn.role, tuple(parts)))
    return Conversation(conversation.id, tuple(turns))
