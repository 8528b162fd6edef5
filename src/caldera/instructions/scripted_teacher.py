"""A teacher without a language model: deterministic, offline, from captions and boxes alone."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from caldera.annotations.annotated_image import AnnotatedImage
from caldera.instructions.dialogues import Exchange, Kind
from caldera.instructions.facts import Facts, derive_facts
from caldera.instructions.multi_image_questions import questions_about_all
from caldera.instructions.questions import (
    Question,
    describe,
    presence_questions,
    questions_about,
    reasoning,
    yes_no_pairs,
)
from caldera.instructions.request_phrases import CAPTION_REQUESTS, DETAIL_REQUESTS, SHORT_ANSWER
from caldera.llm_client.client import NothingToWrite

_Annotated = TypeVar("_Annotated")

_MAX_TURNS = 5
"""Questions in a conversation, at most."""

_MAX_VQA = 12
"""Questions with short answers in one dialogue, at most."""

_QUIZ_PAIRS = 4
"""Pairs of a yes and a no among them, at most."""


class ScriptedTeacher:
    """Writes every kind from the facts of annotations, worded in several ways."""

    name = "scripted"

    def __init__(self, categories: Sequence[str], seed: int = 0) -> None:
        """Take the categories that the annotators looked for, and a seed for the choice of words."""
        self._categories = tuple(categories)
        self._seed = seed
        self._known: dict[Path, Facts] = {}
        self._kinds: dict[Kind, Callable[[Sequence[AnnotatedImage], random.Random], list[Exchange]]]
        self._kinds = {
            "caption": self._caption,
            "conversation": self._conversation,
            "detail": self._detail,
            "reasoning": self._reasoning,
            "vqa": self._vqa,
            "context": self._context,
        }

    def write(self, kind: Kind, images: Sequence[AnnotatedImage]) -> list[Exchange]:
        """Write one dialogue, always the same for the same images and seed.

        Raises:
            Refusal: The annotations do not hold what the kind needs.
        """
        rng = random.Random(f"{self._seed} {kind} {' '.join(image.id for image in images)}")
        return self._kinds[kind](images, rng)

    def _facts(self, image: AnnotatedImage) -> Facts:
        """Gather the facts about an image once."""
        if image.path not in self._known:
            self._known[image.path] = derive_facts(image, self._categories)
        return self._known[image.path]

    def _caption(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask for a caption and answer with one that people wrote."""
        return [Exchange(rng.choice(CAPTION_REQUESTS), rng.choice(images[0].captions))]

    def _conversation(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Talk about what is there in whole sentences, as many yes as no."""
        facts = self._facts(images[0])
        pair = presence_questions(facts, rng)[:2]
        units = _shuffled(yes_no_pairs(questions_about(facts, rng)), rng)
        others = [unit[0] for unit in units if len(unit) == 1]
        return _sentences(_shuffled([*pair, *others[: _MAX_TURNS - len(pair)]], rng))

    def _detail(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Describe the image."""
        told = describe(self._facts(images[0]), rng)
        return _require_some([Exchange(rng.choice(DETAIL_REQUESTS), told)] if told else [])

    def _reasoning(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask one question that takes knowing what things are for."""
        return _sentences(_shuffled(reasoning(self._facts(images[0]), rng), rng)[:1])

    def _vqa(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask everything that has a short answer."""
        return _short_answers(_vqa_questions(questions_about(self._facts(images[0]), rng), rng))

    def _context(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask what needs all the images, for short answers or for sentences."""
        if len(images) < 2:
            raise NothingToWrite("a question about several images needs at least two")
        asked = _shuffled(questions_about_all([self._facts(image) for image in images], rng), rng)
        return (_short_answers if rng.random() < 0.7 else _sentences)(asked)


def _shuffled(things: Sequence[_Annotated], rng: random.Random) -> list[_Annotated]:
    """Return things in a new order."""
    return rng.sample(things, len(things))


def _vqa_questions(questions: list[Question], rng: random.Random) -> list[Question]:
    """Choose questions for a quiz: a few pairs of a yes and a no, and others."""
    units = _shuffled(yes_no_pairs(questions), rng)
    pairs = [unit for unit in units if len(unit) == 2]
    kept = [item for pair in pairs[:_QUIZ_PAIRS] for item in pair]
    others = [item for unit in units if len(unit) == 1 for item in unit]
    return _shuffled([*kept, *others[: _MAX_VQA - len(kept)]], rng)


def _sentences(questions: list[Question]) -> list[Exchange]:
    """Answer in sentences."""
    return _require_some([Exchange(item.text, item.answer) for item in questions])


def _short_answers(questions: list[Question]) -> list[Exchange]:
    """Answer in a word or phrase, which the first question asks for, as in LLaVA-1.5's data."""
    exchanges = [Exchange(item.text, item.short) for item in questions]
    if exchanges:
        first = exchanges[0]
        exchanges[0] = Exchange(f"{first.question}\n{SHORT_ANSWER}", first.answer)
    return _require_some(exchanges)


def _require_some(exchanges: list[Exchange]) -> list[Exchange]:
    """Pass on what was written.

    Raises:
        Refusal: Nothing was.
    """
    if not exchanges:
        raise NothingToWrite("the annotations hold nothing beyond doubt to ask about")
    return exchanges
