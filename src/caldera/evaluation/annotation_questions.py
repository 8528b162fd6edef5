"""Questions from annotations, exact match."""

import os
import random
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet
from caldera.conversation import Conversation, ImageRef, Turn, label_images
from caldera.errors import InputError
from caldera.evaluation.benchmark import Item, Score, check_answers
from caldera.evaluation.caption_metrics import cider_d
from caldera.instructions.dialogues import RelatedImages
from caldera.instructions.facts import Facts, derive_facts
from caldera.instructions.multi_image_questions import questions_about_all
from caldera.instructions.questions import Question, questions_about, yes_no_pairs
from caldera.instructions.request_phrases import CAPTION_REQUESTS, SHORT_ANSWER


@dataclass(frozen=True, slots=True)
class CaptionTask:
    """Items that ask for a caption."""

    name: str
    items: Sequence[Item]
    max_new_tokens: int = 40

    def score(self, answers: Mapping[str, str]) -> Score:
        """Return CIDEr-D, between 0 and 10, as the overall score.

        Raises:
            InputError: Answers are missing, or belong to no item.
        """
        check_answers(self.items, answers)
        return Score(cider_d(answers, {item.id: item.references for item in self.items}))


def build_caption_task(annotations: AnnotationSet, *, name: str, beside: Path) -> CaptionTask:
    """Ask for a caption of each image, always in the same words; image paths will start from `beside`."""
    return CaptionTask(
        name,
        tuple(
            Item(
                image.id,
                "caption",
                "caption",
                Conversation(
                    image.id,
                    (
                        Turn(
                            "user",
                            (
                                ImageRef(os.path.relpath(image.path, beside)),
                                f"\n{CAPTION_REQUESTS[0]}",
                            ),
                        ),
                    ),
                ),
                image.captions,
            )
            for image in annotations.images
        ),
    )


def normalized(text: str) -> str:
    """Return an answer in lower case without punctuation at its ends, so that 'Yes.' equals 'yes'."""
    return " ".join(text.lower().split()).strip(string.punctuation + " ")


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Items with one reference each; an answer is right if it says the same."""

    name: str
    items: Sequence[Item]
    max_new_tokens: int = 8

    def right(self, answers: Mapping[str, str]) -> dict[str, bool]:
        """Tell for each item whether its answer is right.

        Raises:
            InputError: Answers are missing, or belong to no item.
        """
        check_answers(self.items, answers)
        return {
            item.id: normalized(answers[item.id]) == normalized(item.references[0])
            for item in self.items
        }

    def score(self, answers: Mapping[str, str]) -> Score:
        """Return the share of right answers, over all and by kind."""
        right = self.right(answers)
        by_category: dict[str, list[bool]] = defaultdict(list)
        for item in self.items:
            by_category[item.category].append(right[item.id])
        overall = sum(right.values()) / len(right)
        return Score(
            overall,
            {kind: sum(marks) / len(marks) for kind, marks in by_category.items()},
            {kind: len(marks) for kind, marks in by_category.items()},
            metrics={"accuracy": round(100 * overall, 2)},
            item_scores={name: float(mark) for name, mark in right.items()},
            parsed_answers={item.id: normalized(answers[item.id]) for item in self.items},
        )


def build_questions(
    annotations: AnnotationSet,
    *,
    name: str,
    per_image: int,
    context_per_image: int,
    seed: int,
    beside: Path,
) -> ExactMatch:
    """Write questions about annotated images, each to be asked alone.

    Args:
        annotations: Images that the assistant did not learn from.
        name: Of the benchmark.
        per_image: Questions about each image, at most; yes and no stay balanced.
        context_per_image: Questions about it together with others, at most.
        seed: Of the choice and wording.
        beside: Folder that image paths will start from.

    Raises:
        InputError: The annotations allow no question.
    """
    facts = {
        image.path: derive_facts(image, annotations.categories) for image in annotations.images
    }
    companions = RelatedImages(annotations.images)
    items: list[Item] = []
    use_counts: Counter[str] = Counter()
    for image in annotations.images:
        rng = random.Random(f"questions {seed} {image.id}")
        for number, asked in enumerate(
            _choose(questions_about(facts[image.path], rng), per_image, rng)
        ):
            items.append(_item(f"{image.id}-{number}", asked, (image,), beside))
        several = companions.group_with(image, rng)
        if len(several) > 1:
            context = questions_about_all([facts[one.path] for one in several], rng)
            chosen = _choose_least_used(context, context_per_image, rng, use_counts)
            for number, asked in enumerate(chosen):
                items.append(_item(f"{image.id}-context-{number}", asked, several, beside))
    if not items:
        raise InputError("the annotations allow no question with a definite answer")
    return ExactMatch(name, tuple(items))


def _choose(asked: list[Question], most: int, rng: random.Random) -> list[Question]:
    """Choose questions evenly over their kinds, with yes and no in pairs."""
    units: dict[str, list[list[Question]]] = defaultdict(list)
    for unit in yes_no_pairs(asked):
        units[unit[0].kind].append(unit)
    for kind in units.values():
        rng.shuffle(kind)
    chosen: list[Question] = []
    while any(units.values()):
        for kind in [kind for kind in units.values() if kind]:
            unit = kind.pop()
            if len(chosen) + len(unit) <= most:
                chosen += unit
        if len(chosen) >= most:
            break
    return chosen


def _choose_least_used(
    asked: list[Question], most: int, rng: random.Random, use_counts: Counter[str]
) -> list[Question]:
    """Choose questions of the forms that were `met` least, and count them there, with yes and no in pairs."""
    units = yes_no_pairs(asked)
    rng.shuffle(units)
    chosen: list[Question] = []
    for unit in sorted(units, key=lambda unit: use_counts[unit[0].form]):
        if len(chosen) + len(unit) <= most:
            chosen += unit
    use_counts.update(question.form for question in chosen)
    return chosen


def _item(name: str, asked: Question, images: Sequence[AnnotatedImage], beside: Path) -> Item:
    """Make an item of a question about one or several images."""
    references = [ImageRef(os.path.relpath(image.path, beside)) for image in images]
    question = f"{asked.text}\n{SHORT_ANSWER}"
    parts = (
        (*label_images(references), question)
        if len(references) > 1
        else (references[0], f"\n{question}")
    )
    conversation = Conversation(name, (Turn("user", parts),))
    return Item(name, asked.kind, asked.form, conversation, (asked.short,))


def majority_answers(items: Iterable[Item], training: AnnotationSet, seed: int) -> dict[str, str]:
    """Answer each item with the commonest training answer to that form of question, without looking.

    Args:
        items: What is asked.
        training: The annotations that training data was written from.
        seed: Of the questions that are counted.
    """
    rng = random.Random(f"prior {seed}")
    facts = [derive_facts(image, training.categories) for image in training.images]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in facts:
        for asked in questions_about(one, rng):
            counts[asked.form][asked.short] += 1
    for asked in _context_sample(training, facts, rng):
        counts[asked.form][asked.short] += 1
    commonest = {form: answers.most_common(1)[0][0] for form, answers in counts.items()}
    return {item.id: commonest.get(item.question_type, "") for item in items}


def _context_sample(
    training: AnnotationSet, facts: Sequence[Facts], rng: random.Random
) -> list[Question]:
    """Write the questions about several images that training images allow."""
    facts_by_path = {image.path: one for image, one in zip(training.images, facts, strict=True)}
    companions = RelatedImages(training.images)
    return [
        asked
        for image in training.images
        for asked in questions_about_all(
            [facts_by_path[one.path] for one in companions.group_with(image, rng)], rng
        )
    ]


def with_shuffled_images(items: Sequence[Item]) -> list[Item]:
    """Return the same questions about other images, so that only what is seen can make a difference."""
    paths = sorted({path for item in items for path in item.conversation.images})
    shift = len(paths) // 2
    other = {path: paths[(at + shift) % len(paths)] for at, path in enumerate(paths)}
    return [
        Item(
            item.id,
            item.category,
            item.question_type,
            _replace_images(item.conversation, other),
            item.references,
        )
        for item in items
    ]


def _replace_images(conversation: Conversation, other: Mapping[str, str]) -> Conversation:
    """Show another image in each image's place."""
    turns = tuple(
        Turn(
            turn.role,
            tuple(
                ImageRef(other[part.path]) if isinstance(part, ImageRef) else part
                for part in turn.parts
            ),
        )
        for turn in conversation.turns
    )
    return Conversation(conversation.id, turns)
