"""Facts in, questions with definite answers about one image out.

Each question has two answers: a short one (LLaVA-1.5's "single word or phrase"), which is either right or wrong, and a
sentence.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from caldera.annotations.boxes import OPPOSITE, RELATION_PHRASES, position_phrase
from caldera.annotations.english import (
    PLURAL_ONLY,
    article,
    count_phrase,
    join_with_and,
    number_word,
    plural,
    sentence,
)
from caldera.instructions.coco_knowledge import GROUPS, PURPOSES, SETTINGS, Purpose
from caldera.instructions.facts import Facts

_OPPOSITE_ANSWER = {"yes": "no", "no": "yes"}

_SINGLE_FRACTION = 0.3
"""Fraction of single objects with a question about their number."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question that has one right answer."""

    kind: str
    """Skill that it tests; scores are reported by kind."""

    form: str
    """Type of the question, independent of its objects and wording."""

    text: str
    short: str
    """The answer in a word or phrase."""

    answer: str
    """The answer in a sentence, with its reasons if it has any."""


def _pick(rng: random.Random, *wordings: str) -> str:
    """Sample a wording, as a sentence."""
    return sentence(rng.choice(wordings))


def quantity_phrase(facts: Facts, category: str, noun: str | None = None) -> str:
    """Return the quantity of a category: 'a dog', 'two dogs', 'some people' if they cannot be counted."""
    noun = noun or category
    if category in facts.counts:
        return count_phrase(facts.counts[category], noun)
    return noun if category in PLURAL_ONLY else f"some {plural(noun)}"


def _verb(facts: Facts, category: str) -> str:
    """Return the verb for the quantity of a category."""
    return "is" if facts.counts.get(category) == 1 else "are"


def _pronoun(category: str) -> str:
    """Return the pronoun for an object that was just named: 'it', but never for a person."""
    return "the person" if category == "person" else "it"


def _color_adjective(facts: Facts, category: str) -> str:
    """Return a category with its color, if it has one."""
    return f"{facts.colors[category]} {category}" if category in facts.colors else category


def setting_phrase(setting: str) -> str:
    """Return a setting with its preposition: 'on a beach', 'at an airport', 'in the snow'."""
    return f"{SETTINGS[setting]} {'the snow' if setting == 'snow' else article(setting)}"


def presence_questions(
    facts: Facts, rng: random.Random, frequencies: Mapping[str, int] | None = None
) -> list[Question]:
    """Ask for present objects and as many absent ones, in pairs.

    With `frequencies` of categories (1 for others), frequent ones are absent objects more often, so that a category
    alone does not determine the answer.
    """
    present = rng.sample(facts.present, len(facts.present))
    if frequencies is None:
        absent = rng.sample(facts.absent, min(len(present), len(facts.absent)))
    else:
        # Weighted sampling without replacement (Efraimidis and Spirakis): the largest random() ** (1 / weight).
        keys = {name: rng.random() ** (1 / frequencies.get(name, 1)) for name in facts.absent}
        absent = sorted(facts.absent, key=keys.__getitem__, reverse=True)[: len(present)]
    questions = []
    for yes_category, no_category in zip(present, absent, strict=False):
        some, are = quantity_phrase(facts, yes_category), _verb(facts, yes_category)
        yes = _pick(rng, f"yes, there {are} {some}", f"yes, the picture shows {some}")
        are = "are" if no_category in PLURAL_ONLY else "is"
        no = _pick(rng, f"no, there {are} no {no_category}", f"no, I see no {no_category} here")
        for category, short, answer in ((yes_category, "yes", yes), (no_category, "no", no)):
            are, noun = "are" if category in PLURAL_ONLY else "is", article(category)
            text = _pick(
                rng,
                f"{are} there {noun} in the picture?",
                f"Do you see {noun}?",
                f"Can {noun} be seen here?",
                f"Does the picture show {noun}?",
            )
            questions.append(Question("presence", "is there", text, short, answer))
    return questions


def count_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask for the number of objects; rarely for single ones, as most objects are single."""
    questions = []
    for category, count in facts.counts.items():
        if count == 1 and rng.random() >= _SINGLE_FRACTION:
            continue
        number, nouns = number_word(count), plural(category)
        text = _pick(
            rng,
            f"How many {nouns} are there?",
            f"How many {nouns} do you see?",
            f"How many {nouns} does the picture show?",
        )
        some = f"{number} {category if count == 1 else nouns}"
        are = "is" if count == 1 else "are"
        answer = _pick(rng, f"there {are} {some}", f"I count {some}")
        questions.append(Question("count", "how many", text, number, answer))
    return questions


def position_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask for the position of single objects."""
    questions = []
    for category, position in facts.positions.items():
        text = _pick(
            rng,
            f"Where is the {category}?",
            f"Where in the picture is the {category}?",
            f"In which part of the picture is the {category}?",
        )
        is_there = f"is {position_phrase(position)}"
        answer = _pick(rng, f"the {category} {is_there}", f"{_pronoun(category)} {is_there}")
        questions.append(Question("position", "where", text, position, answer))
    return questions


def relation_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask for relations of two objects: by a choice of two, and by a claim that is true and false in turn."""
    questions = []
    sampled = rng.sample(facts.relations, min(4, len(facts.relations)))
    for index, (subject, relation, reference) in enumerate(sampled):
        horizontal = relation in ("left of", "right of")
        choice = "to the left or to the right of" if horizontal else "above or below"
        questions.append(
            Question(
                "relation",
                f"which side, {'across' if horizontal else 'down'}",
                f"Is the {subject} {choice} the {reference}?",
                relation.removesuffix(" of"),
                f"The {subject} is {RELATION_PHRASES[relation]} the {reference}.",
            )
        )
        is_true = index % 2 == 0
        claim = relation if is_true else OPPOSITE[relation]
        yes_no = "yes" if is_true else "no"
        truth = f"{_pronoun(subject)} is {RELATION_PHRASES[relation]} the {reference}"
        questions.append(
            Question(
                "relation",
                "is it beside",
                f"Is the {subject} {RELATION_PHRASES[claim]} the {reference}?",
                yes_no,
                f"{yes_no.capitalize()}, {truth}.",
            )
        )
    return questions


def color_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask for the colors that captions mention."""
    questions = []
    for category, color in facts.colors.items():
        single = facts.counts[category] == 1
        nouns = f"is the {category}" if single else f"are the {plural(category)}"
        text = _pick(rng, f"What colour {nouns}?", f"Which colour {nouns}?")
        colored = f"{category} is" if single else f"{plural(category)} are"
        answer = _pick(rng, f"the {colored} {color}")
        questions.append(Question("colour", "which colour", text, color, answer))
    return questions


def naming_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask for the name of the only animal, vehicle or food."""
    questions = []
    for group, members in GROUPS.items():
        present = [category for category in facts.present if category in members]
        if len(present) != 1 or len(facts.present) != len(facts.counts):
            continue
        if len(facts.possible.intersection(members)) > 1:
            continue
        [category] = present
        quantity = count_phrase(facts.counts[category], category)
        answer = _pick(rng, f"the picture shows {quantity}", f"I see {quantity}")
        text = _pick(
            rng,
            f"What {group} is in the picture?",
            f"Which {group} do you see?",
            f"Name the {group}.",
        )
        questions.append(Question("naming", f"which {group}", text, category, answer))
    return questions


def setting_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask for the setting."""
    if facts.setting is None:
        return []
    phrase = setting_phrase(facts.setting)
    answer = _pick(rng, f"the picture was taken {phrase}", f"the scene is set {phrase}")
    text = _pick(
        rng, "Where was this picture taken?", "What kind of place is this?", "What is the setting?"
    )
    return [Question("setting", "what place", text, facts.setting, answer)]


def reasoning_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask whether a present object serves a purpose, with as many yes as no."""
    served, unserved = [], []
    for purpose in PURPOSES:
        present = [category for category in facts.present if category in purpose.categories]
        num_absent = len(purpose.categories.intersection(facts.absent))
        if present:
            served.append(_served_question(purpose, present[0], facts, rng))
        elif num_absent and not purpose.categories & facts.possible:
            unserved.append((rng.random() ** (1 / num_absent), purpose))
    # A purpose that many categories serve is often answered yes. Weighted by their number, it is
    # answered no as often.
    weighted = [purpose for _, purpose in sorted(unserved, key=itemgetter(0), reverse=True)]
    return [
        question
        for yes, purpose in zip(served, weighted, strict=False)
        for question in (yes, _unserved_question(purpose, facts, rng))
    ]


def _served_question(purpose: Purpose, category: str, facts: Facts, rng: random.Random) -> Question:
    """Ask for a purpose that `category` serves."""
    position = facts.positions.get(category)
    phrase = f" {position_phrase(position)}" if position else ""
    quantity = f"{_verb(facts, category)} {quantity_phrase(facts, category)}{phrase}"
    answer = f"Yes. There {quantity}, and {article(category)} {purpose.uses}."
    return Question("reasoning", purpose.uses, rng.choice(purpose.goals), "yes", answer)


def _unserved_question(purpose: Purpose, facts: Facts, rng: random.Random) -> Question:
    """Ask for a purpose that no present object serves."""
    present = join_with_and([quantity_phrase(facts, category) for category in facts.present[:4]])
    answer = f"No. I see {present}, but nothing that {purpose.uses}."
    return Question("reasoning", purpose.uses, rng.choice(purpose.goals), "no", answer)


FORMS: dict[str, Callable[[Facts, random.Random], list[Question]]] = {
    "presence": presence_questions,
    "count": count_questions,
    "position": position_questions,
    "relation": relation_questions,
    "colour": color_questions,
    "naming": naming_questions,
    "setting": setting_questions,
    "reasoning": reasoning_questions,
}
"""Writers of questions about one image, by kind."""


def questions_about(facts: Facts, rng: random.Random) -> list[Question]:
    """Return all questions that the facts allow, by kind."""
    return [question for write in FORMS.values() for question in write(facts, rng)]


def yes_no_pairs(questions: Sequence[Question]) -> list[list[Question]]:
    """Group questions so that yes and no stay balanced whichever groups are used.

    A question answered yes is paired with one of its kind answered no, and omitted if there is none; any other question
    is a group of its own.
    """
    groups: list[list[Question]] = []
    unpaired: dict[tuple[str, str], list[list[Question]]] = defaultdict(list)
    for question in questions:
        if question.short not in _OPPOSITE_ANSWER:
            groups.append([question])
        elif opposites := unpaired[question.kind, _OPPOSITE_ANSWER[question.short]]:
            opposites.pop(0).append(question)
        else:
            group = [question]
            unpaired[question.kind, question.short].append(group)
            groups.append(group)
    omitted = {id(group) for remaining in unpaired.values() for group in remaining}
    return [group for group in groups if id(group) not in omitted]


def describe_image(facts: Facts, rng: random.Random) -> str:
    """Return a description in a few sentences, from facts alone; empty if no object is clearly visible."""
    if not facts.present:
        return ""
    objects = join_with_and(
        [
            quantity_phrase(facts, category, _color_adjective(facts, category))
            for category in facts.present
        ]
    )
    setting = f" {setting_phrase(facts.setting)}" if facts.setting else ""
    first = _pick(rng, f"the picture shows {objects}{setting}", f"I see {objects}{setting}")
    sentences = [first]
    for category in facts.present:
        counts = Counter(
            position_phrase(position) for name, position in facts.instances if name == category
        )
        # Otherwise some of the objects are between two positions.
        if facts.counts.get(category) != counts.total():
            continue
        [phrase, *others] = counts
        if counts.total() == 1:
            sentences.append(f"The {category} is {phrase}.")
        elif not others:
            sentences.append(f"The {plural(category)} are {phrase}.")
        else:
            parts = [
                f"{number_word(count)} {'is' if count == 1 else 'are'} {phrase}"
                for phrase, count in counts.items()
            ]
            sentences.append(f"Of the {plural(category)}, {join_with_and(parts)}.")
    if facts.relations:
        subject, relation, reference = rng.choice(facts.relations)
        sentences.append(f"The {subject} is {RELATION_PHRASES[relation]} the {reference}.")
    return " ".join(sentences)
