"""Deterministic offline teacher for photos: weaves what captions agree on with what boxes prove.

Records of one image share no question: conversation and short answers divide the questions about it, in an order that
depends on the image and the seed alone. Answers are balanced without looking at other images, so that no image changes
the records of another: yes and no by pairs, frequent answers by a share that is asked, absent objects by how often
people annotate them.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from caldera.annotations.annotated_image import AnnotatedImage
from caldera.annotations.boxes import RELATION_PHRASES, position_phrase
from caldera.annotations.english import count_phrase, join_with_and, number_word, plural, sentence
from caldera.annotations.noun_phrases import word_set
from caldera.instructions.caption_agreement import (
    Agreement,
    find_agreement,
    without_doubtful_counts,
)
from caldera.instructions.caption_questions import action_questions, situation_questions
from caldera.instructions.caption_words import content_keys, word_key
from caldera.instructions.coco_knowledge import FREQUENCIES, mentioned_categories
from caldera.instructions.dialogues import Exchange, Kind, NothingToWrite
from caldera.instructions.facts import Facts, derive_facts
from caldera.instructions.multi_image_questions import questions_about_all
from caldera.instructions.questions import (
    FORMS,
    Question,
    describe_image,
    presence_questions,
    quantity_phrase,
    relation_questions,
    yes_no_pairs,
)
from caldera.instructions.request_phrases import PHOTO_CAPTION_REQUESTS, PHOTO_DETAIL_REQUESTS
from caldera.instructions.scripted_teacher import sentence_answers, short_answers, shuffled

_MAX_TURNS = 5
"""Maximum number of questions in a conversation."""

_MAX_VQA, _MAX_YES_NO_PAIRS = 12, 4
"""Maximum number of questions with short answers in one dialogue, and of pairs of a yes and a no among them."""

_MAX_SHORT_WORDS = 4
"""Maximum number of words of a short answer."""

_MAX_MORE = 5
"""Maximum number of categories that a description adds to the captions."""


class PhotoTeacher:
    """Teacher that writes every kind about photos with captions, boxes or both."""

    def __init__(self, categories: Sequence[str], seed: int = 0) -> None:
        """Set all categories that the annotators labeled, and a seed for the choice of words."""
        self._categories = tuple(categories)
        self._vocabulary = frozenset(categories)
        self._seed = seed
        self._cached: dict[Path, tuple[Facts, Agreement]] = {}

    def write(self, kind: Kind, images: Sequence[AnnotatedImage]) -> list[Exchange]:
        """Write one dialogue, always the same for the same categories, images and seed."""
        rng = self._rng(kind, images)
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
            raise NothingToWrite(
                _REASONS.get(kind, "the annotations contain no certain fact to ask about")
            )
        return exchanges

    def _rng(self, purpose: str, images: Sequence[AnnotatedImage]) -> random.Random:
        return random.Random(f"{self._seed} {purpose} {' '.join(image.id for image in images)}")

    def _known(self, image: AnnotatedImage) -> tuple[Facts, Agreement]:
        """Return the facts about an image and what its captions agree on, cached."""
        if image.path not in self._cached:
            # Without boxes it is unknown what is absent.
            categories = self._categories if image.instances else ()
            facts = derive_facts(without_doubtful_counts(image), categories)
            self._cached[image.path] = facts, find_agreement(image, self._vocabulary)
        return self._cached[image.path]

    def _caption(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask for a caption; answer with one that nothing contradicts, if any, and that begins no description."""
        [image] = images
        if not image.captions:
            raise NothingToWrite("the image has no caption")
        _, agreement = self._known(image)
        others = [index for index in agreement.trusted if index != agreement.lead]
        index = rng.choice(others or agreement.trusted or range(len(image.captions)))
        return [Exchange(rng.choice(PHOTO_CAPTION_REQUESTS), image.captions[index])]

    def _detail(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask for a detailed description."""
        facts, agreement = self._known(images[0])
        if agreement.sentences:
            text = " ".join(agreement.sentences)
            mentioned = mentioned_categories(text, self._vocabulary)
            added = _sentences_of_boxes(facts, text, mentioned, rng)
            sentences = [*agreement.sentences, *added]
            description = " ".join(sentences) if len(sentences) > 1 else ""
        else:
            description = describe_image(facts, rng)
        return [Exchange(rng.choice(PHOTO_DETAIL_REQUESTS), description)] if description else []

    def _reasoning(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask one question about a situation that the image shows."""
        facts, agreement = self._known(images[0])
        questions = situation_questions(images[0], agreement, facts, rng)
        return sentence_answers(shuffled(questions, rng)[:1])

    def _units(self, image: AnnotatedImage) -> list[list[Question]]:
        """Return all questions about an image in random order, in groups of one or of a yes and a no."""
        facts, agreement = self._known(image)
        rng = self._rng("questions", [image])
        forms = [write for kind, write in FORMS.items() if kind in _OPEN_FORMS]
        questions = [question for write in forms for question in write(facts, rng)]
        questions += _relation_questions(facts, rng)
        counted = {category for category in facts.counts if _is_counted(category, questions)}
        uncounted = tuple(category for category in facts.present if category not in counted)
        to_ask = replace(facts, present=uncounted or facts.present)
        questions += presence_questions(to_ask, rng, FREQUENCIES)
        return shuffled([*yes_no_pairs(questions), *action_questions(agreement, facts, rng)], rng)

    def _divided(self, image: AnnotatedImage) -> tuple[list[Question], list[Question]]:
        """Divide the questions about an image into those of the conversation and those with short answers."""
        rng = self._rng("answers", [image])
        units = [
            unit
            for unit in self._units(image)
            if all(_is_asked(question, rng) for question in unit)
        ]
        pairs = [unit for unit in units if len(unit) == 2]
        single = [unit[0] for unit in units if len(unit) == 1]
        single.sort(key=lambda question: question.kind != "action")
        num_spoken = min(_MAX_TURNS - 2, (len(single) + 1) // 2)
        spoken = [*(pairs[0] if pairs else []), *single[:num_spoken]]
        paired = [question for pair in pairs[1 : _MAX_YES_NO_PAIRS + 1] for question in pair]
        short = [
            question
            for question in single[num_spoken:]
            if 0 < len(question.short.split()) <= _MAX_SHORT_WORDS
        ]
        return spoken, [*paired, *short[: _MAX_VQA - len(paired)]]

    def _conversation(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask several questions with answers in sentences; as many are answered yes as no."""
        return sentence_answers(shuffled(self._divided(images[0])[0], rng))

    def _vqa(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask questions with short answers, some of them in pairs of a yes and a no."""
        return short_answers(shuffled(self._divided(images[0])[1], rng))

    def _context(self, images: Sequence[AnnotatedImage], rng: random.Random) -> list[Exchange]:
        """Ask questions that need all images, with short answers or in sentences."""
        if len(images) < 2:
            raise NothingToWrite("a question about several images needs at least two")
        questions = self._questions_about_all(images)
        selected = [question for question in questions if _is_asked(question, rng)]
        selected = _one_for_each_object(shuffled(selected, rng))
        return (short_answers if rng.random() < 0.7 else sentence_answers)(selected)

    def _questions_about_all(self, images: Sequence[AnnotatedImage]) -> list[Question]:
        """Return the questions that need several images, all of which have boxes."""
        if not all(image.instances for image in images):
            return []
        facts = [self._known(image)[0] for image in images]
        return questions_about_all(facts, self._rng("context questions", images))


def _is_counted(category: str, questions: Sequence[Question]) -> bool:
    """Return whether a question asks for the number of a category, so that asking for its presence adds nothing."""
    return any(f"How many {plural(category)} " in question.text for question in questions)


def _relation_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask for the relation of two objects once: the first two as claims, one true and one false, others as a choice."""
    unique = {
        (frozenset((item[0], item[2])), item[1] in ("left of", "right of")): item
        for item in shuffled(facts.relations, rng)
    }
    relations = shuffled([*unique.values()], rng)
    questions = relation_questions(replace(facts, relations=tuple(relations)), rng)
    choices, claims = questions[::2], questions[1::2]
    return [*claims[:2], *choices[2:]] if len(claims) > 1 else choices


_OPEN_FORMS = ("count", "position", "colour", "naming", "setting")
"""Kinds of questions in FORMS that are answered neither by yes or no nor by one of two options."""

_ASKED: Mapping[tuple[str, str], float] = {
    ("how many", "one"): 0.45,
    ("how many", "two"): 0.5,
    ("in both", "nothing"): 0.3,
    ("in both", "person"): 0.5,
    ("found again", "neither"): 0.3,
}
"""Share of the questions with a frequent answer that are asked, by form and answer: none is over a third on COCO."""


def _is_asked(question: Question, rng: random.Random) -> bool:
    """Return whether to ask a question, so that answers that are often true are not asked for too often."""
    return rng.random() < _ASKED.get((question.form, question.short), 1.0)


def _one_for_each_object(questions: Sequence[Question]) -> list[Question]:
    """Return questions without those about an object of an earlier one: which image shows it, has more, how many."""
    objects = set()
    selected = []
    for question in questions:
        words = frozenset(content_keys(question.text)) - _ASKING_KEYS
        if question.form.startswith(("which of", "more", "altogether")):
            if words in objects:
                continue
            objects.add(words)
        selected.append(question)
    return selected


_ASKING_KEYS = frozenset(
    map(word_key, ("picture", "pictures", "show", "together", "more", "B", "many"))
)
"""Keys of the words of questions about several images that name no object."""

_REASONS = {
    "reasoning": "nothing in the image gives a reason for a question",
    "detail": "neither boxes nor several captions tell more than one caption",
}


def _sentences_of_boxes(
    facts: Facts, text: str, mentioned: frozenset[str], rng: random.Random
) -> list[str]:
    """Return what boxes add to a text: numbers, places, and objects that are not `mentioned` in it."""
    more = [category for category in facts.present if category not in mentioned][:_MAX_MORE]
    placed = [
        category
        for category in facts.present
        if category in mentioned and category in facts.positions
    ]
    sentences = []
    numbers = [
        count_phrase(count, category)
        for category, count in facts.counts.items()
        if count > 1 and _names_without_number(text, category, count)
    ]
    if numbers:
        sentences.append(f"There are {join_with_and(numbers)} in all.")
    for category in placed[:2]:
        name = _name_in(text, category)
        sentences.append(sentence(f"the {name} is {position_phrase(facts.positions[category])}"))
    if more:
        phrases = [_with_place(facts, category) for category in more]
        is_one = facts.counts.get(more[0]) == 1
        sentences.append(f"There {'is' if is_one else 'are'} also {join_with_and(phrases)}.")
    relations = [
        item
        for item in facts.relations
        if item[0] not in placed[:2] and item[1] in ("left of", "right of")
    ]
    if relations:
        subject, relation, reference = rng.choice(relations)
        name, other = _name_in(text, subject), _name_in(text, reference)
        sentences.append(sentence(f"the {name} is {RELATION_PHRASES[relation]} the {other}"))
    return sentences


def _names_without_number(text: str, category: str, count: int) -> bool:
    """Return whether a text names a category in the plural, but not the number of its objects."""
    plurals = re.escape(plural(category))
    if category == "person":
        plurals = f"{plurals}|{_PLURAL_PERSONS}"
    number = rf"\b(?:{number_word(count)}|{count})\b"
    return bool(re.search(rf"\b(?:{plurals})\b", text, re.I)) and not re.search(number, text, re.I)


def _with_place(facts: Facts, category: str) -> str:
    """Return the quantity of a category, with the place of a single object."""
    quantity = quantity_phrase(facts, category)
    position = facts.positions.get(category)
    return f"{quantity} {position_phrase(position)}" if position else quantity


def _name_in(text: str, category: str) -> str:
    """Return the name of a single object in a text, if that is one word for it alone; else the category."""
    words = re.findall(r"[a-z]+", text.lower())
    names = [word for word in words if mentioned_categories(word, frozenset({category}))]
    return names[0] if category == "person" and names and names[0] in _PERSONS else category


_PERSONS = word_set("man woman boy girl child lady guy player skier surfer baby kid")
_PLURAL_PERSONS = "men|women|children|kids|boys|girls|players|adults"
