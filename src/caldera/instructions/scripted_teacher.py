"""Deterministic offline teacher for drawn scenes, whose boxes and captions are complete."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from caldera.annotations.annotated_image import AnnotatedImage
from caldera.instructions.dialogues import Exchange, Kind, NothingToWrite
from caldera.instructions.facts import Facts, derive_facts
from caldera.instructions.multi_image_questions import questions_about_all
from caldera.instructions.questions import (
    Question,
    describe_image,
    presence_questions,
    questions_about,
    reasoning_questions,
    yes_no_pairs,
)
from caldera.instructions.request_phrases import CAPTION_REQUESTS, DETAIL_REQUESTS, SHORT_ANSWER

_Item = TypeVar("_Item")

_MAX_TURNS = 5
"""Maximum number of questions in a conversation."""

_MAX_VQA = 12
"""Maximum number of questions with short answers in one dialogue."""

_MAX_YES_NO_PAIRS = 4
"""Maximum number of pairs of a yes and a no among them."""


class ScriptedTeacher:
    """Teacher that writes every kind from the facts of annotations, in varied wording."""

    def __init__(self, categories: Sequence[str], seed: int = 0) -> None:
        """Set all categories that the annotators labeled, and a seed for the choice of words."""
        self._categories = tuple(categories)
        self._seed = seed
        self._cached_facts: dict[Path, Facts] = {}

    def write(self, kind: Kind, images: Sequence[AnnotatedImage]) -> list[Exchange]:
        """Write one dialogue, always the same for the same images and seed."""
        rng = random.Random(f"{self._seed} {kind} {' '.join(image.id for image in images)}")
        writers = {
            "caption": self._caption,
            "conversation": self._conversation,
            "detail": self._detail,
            "reasoning": self._reasoning,
            "vqa": self._vqa,
            "context": self._context,
        }
        exchanges = writers[kind](images, rng)
        if not exchanges:
            raise NothingToWrite("the annotations contain no certain fact to ask about")
        return exchanges

    def _facts(self, image: AnnotatedImage) -> Facts:
        """Return the facts about an image, cached."""
        if self._categories and not image.instances:
            raise NothingToWrite("an image has no boxes")
        if image.path not in self._cached_facts:
            self._cached_facts[image.path] = derive_facts(image, self._categories)
        return self._cached_facts[image.path]

    def _caption(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask for a caption and answer with one of the annotations."""
        if not images[0].captions:
            raise NothingToWrite("the image has no caption")
        return [Exchange(rng.choice(CAPTION_REQUESTS), rng.choice(images[0].captions))]

    def _conversation(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask several questions with answers in sentences; as many are answered yes as no."""
        facts = self._facts(images[0])
        yes_no_pair = presence_questions(facts, rng)[:2]
        units = shuffled(yes_no_pairs(questions_about(facts, rng)), rng)
        single = [unit[0] for unit in units if len(unit) == 1]
        questions = [*yes_no_pair, *single[: _MAX_TURNS - len(yes_no_pair)]]
        return sentence_answers(shuffled(questions, rng))

    def _detail(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask for a detailed description."""
        description = describe_image(self._facts(images[0]), rng)
        return [Exchange(rng.choice(DETAIL_REQUESTS), description)] if description else []

    def _reasoning(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask one question about the purpose of objects."""
        questions = reasoning_questions(self._facts(images[0]), rng)
        return sentence_answers(shuffled(questions, rng)[:1])

    def _vqa(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask questions with short answers, some of them in pairs of a yes and a no."""
        units = shuffled(yes_no_pairs(questions_about(self._facts(images[0]), rng)), rng)
        pairs = [unit for unit in units if len(unit) == 2]
        paired = [question for pair in pairs[:_MAX_YES_NO_PAIRS] for question in pair]
        single = [unit[0] for unit in units if len(unit) == 1]
        return short_answers(shuffled([*paired, *single[: _MAX_VQA - len(paired)]], rng))

    def _context(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask questions that need all images, with short answers or in sentences."""
        if len(images) < 2:
            raise NothingToWrite("a question about several images needs at least two")
        facts = [self._facts(image) for image in images]
        questions = shuffled(questions_about_all(facts, rng), rng)
        return (short_answers if rng.random() < 0.7 else sentence_answers)(questions)


def shuffled(items: Sequence[_Item], rng: random.Random) -> list[_Item]:
    """Return items in random order."""
    return rng.sample(items, len(items))


def sentence_answers(questions: list[Question]) -> list[Exchange]:
    """Return exchanges with answers in sentences."""
    return [Exchange(question.text, question.answer) for question in questions]


def short_answers(questions: list[Question]) -> list[Exchange]:
    """Return exchanges with short answers, which the first question asks for, as in LLaVA-1.5's data."""
    exchanges = [Exchange(question.text, question.short) for question in questions]
    if exchanges:
        first = exchanges[0]
        exchanges[0] = Exchange(f"{first.question}\n{SHORT_ANSWER}", first.answer)
    return exchanges
