"""Facts in, questions with definite answers out, about one image.

Each question has two answers: the short one (LLaVA-1.5's "single word or phrase"), which can be marked right or wrong,
and a whole sentence.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
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
"""Share of single things whose number is asked for."""


@dataclass(frozen=True, slots=True)
class Question:
    """Something to ask that has one right answer."""

    kind: str
    """What it tests; scores are given by kind."""

    form: str
    """Which question it is, whatever it is asked about and however it is worded."""

    text: str
    short: str
    """The answer in a word or phrase."""

    answer: str
    """The answer in a sentence, with its reasons where it has any."""


def _pick(rng: random.Random, wordings: Sequence[str], **words: str) -> str:
    """Choose a wording and fill it in."""
    return sentence(rng.choice(wordings).format(**words))


def _quantity(facts: Facts, category: str, noun: str | None = None) -> str:
    """Say how much there is of a category: 'a dog', 'two dogs', 'some people' where they cannot be counted."""
    noun = noun or category
    if category in facts.counts:
        return count_phrase(facts.counts[category], noun)
    return noun if category in PLURAL_ONLY else f"some {plural(noun)}"


def _verb(facts: Facts, category: str) -> str:
    """Return the verb that goes with that."""
    return "is" if facts.counts.get(category) == 1 else "are"


def setting_phrase(setting: str) -> str:
    """Say that something is in a setting: 'on a beach', 'at an airport', 'in the snow'."""
    return f"{SETTINGS[setting]} {'the snow' if setting == 'snow' else article(setting)}"


def presence_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask for things that are there and for as many that are not, in pairs."""
    ask = (
        "{are} there {a} in the picture?",
        "Do you see {a}?",
        "Can {a} be seen here?",
        "Does the picture show {a}?",
    )
    present = rng.sample(facts.present, len(facts.present))
    absent = rng.sample(facts.absent, min(len(present), len(facts.absent)))
    asked = []
    for there, missing in zip(present, absent, strict=False):
        yes = _pick(rng, ("yes, there {are} {some}", "yes, the picture shows {some}"),
                    are=_verb(facts, there), some=_quantity(facts, there))  # fmt: skip
        no = _pick(rng, ("no, there {are} no {thing}", "no, I see no {thing} here"),
                   are="are" if missing in PLURAL_ONLY else "is", thing=missing)  # fmt: skip
        for category, short, answer in ((there, "yes", yes), (missing, "no", no)):
            are = "are" if category in PLURAL_ONLY else "is"
            text = _pick(rng, ask, are=are, a=article(category))
            asked.append(Question("presence", "is there", text, short, answer))
    return asked


def count_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask how many there are of what is there, seldom of single things, as most things are single."""
    ask = (
        "How many {things} are there?",
        "How many {things} do you see?",
        "How many {things} does the picture show?",
    )
    return [
        Question(
            "count",
            "how many",
            _pick(rng, ask, things=plural(category)),
            number_word(counted),
            _pick(rng, ("there {are} {some}", "I count {some}"),
                  are="is" if counted == 1 else "are",
                  some=f"{number_word(counted)} {category if counted == 1 else plural(category)}"),
        )
        for category, counted in facts.counts.items()
        if counted > 1 or rng.random() < _SINGLE_FRACTION
    ]  # fmt: skip


def position_questions(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask where the one thing of its category is."""
    ask = (
        "Where is the {thing}?",
        "Where in the picture is the {thing}?",
        "In which part of the picture is the {thing}?",
    )
    return [
        Question(
            "position",
            "where",
            _pick(rng, ask, thing=category),
            place,
            _pick(rng, ("the {thing} is {place}", "{it} is {place}"), thing=category,
                  it=_pronoun(category), place=position_phrase(place)),
        )
        for category, place in facts.places.items()
    ]  # fmt: skip


def relation(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask how two things stand to each other: by a choice of two, and by yes and no in turn."""
    asked = []
    chosen = rng.sample(facts.relations, min(4, len(facts.relations)))
    for at, (one, how, other) in enumerate(chosen):
        across = how in ("left of", "right of")
        choice = "to the left or to the right of" if across else "above or below"
        asked.append(
            Question(
                "relation",
                f"which side, {'across' if across else 'down'}",
                f"Is the {one} {choice} the {other}?",
                how.removesuffix(" of"),
                f"The {one} is {RELATION_PHRASES[how]} the {other}.",
            )
        )
        truth = at % 2 == 0
        claimed = how if truth else OPPOSITE[how]
        asked.append(
            Question(
                "relation",
                "is it beside",
                f"Is the {one} {RELATION_PHRASES[claimed]} the {other}?",
                "yes" if truth else "no",
                f"{'Yes' if truth else 'No'}, {_pronoun(one)} is {RELATION_PHRASES[how]} the {other}.",
            )
        )
    return asked


def color(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask for the color of what the captions gave one."""
    asked = []
    for category, hue in facts.colors.items():
        one = facts.counts[category] == 1
        ask = ("What colour {are} the {things}?", "Which colour {are} the {things}?")
        words = {"things": category if one else plural(category), "are": "is" if one else "are"}
        text, answer = _pick(rng, ask, **words), _pick(rng, ("the {things} {are} " + hue,), **words)
        asked.append(Question("colour", "which colour", text, hue, answer))
    return asked


def naming(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask for the one animal, vehicle or food there is."""
    asked = []
    for group, members in GROUPS.items():
        there = [category for category in facts.present if category in members]
        if len(there) != 1 or len(facts.present) != len(facts.counts):
            continue
        if len(facts.possible.intersection(members)) > 1:
            continue
        ask = ("What {group} is in the picture?", "Which {group} do you see?", "Name the {group}.")
        what = count_phrase(facts.counts[there[0]], there[0])
        answer = _pick(rng, ("the picture shows {what}", "I see {what}"), what=what)
        asked.append(
            Question("naming", f"which {group}", _pick(rng, ask, group=group), there[0], answer)
        )
    return asked


def setting(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask what kind of place it is."""
    if facts.setting is None:
        return []
    ask = ("Where was this picture taken?", "What kind of place is this?", "What is the setting?")
    told = ("the picture was taken {where}", "the scene is set {where}")
    answer = _pick(rng, told, where=setting_phrase(facts.setting))
    return [Question("setting", "what place", _pick(rng, ask), facts.setting, answer)]


def reasoning(facts: Facts, rng: random.Random) -> list[Question]:
    """Ask whether something there serves a purpose, which takes knowing what it is for; as many yes as no."""
    served, unserved = [], []
    for purpose in PURPOSES:
        helpers = [category for category in facts.present if category in purpose.categories]
        kinds = len(purpose.categories.intersection(facts.absent))
        if helpers:
            served.append(_served(purpose, helpers[0], facts, rng))
        elif kinds and not purpose.categories & facts.possible:
            unserved.append((rng.random() ** (1 / kinds), purpose))
    # A purpose that many kinds serve is often answered yes; weighted by their number it is missed as often.
    missing = [purpose for _, purpose in sorted(unserved, key=itemgetter(0), reverse=True)]
    return [
        item
        for yes, purpose in zip(served, missing, strict=False)
        for item in (yes, _unserved(purpose, facts, rng))
    ]


def _served(purpose: Purpose, helper: str, facts: Facts, rng: random.Random) -> Question:
    """Ask for a purpose that `helper` serves."""
    place = f" {position_phrase(facts.places[helper])}" if helper in facts.places else ""
    there = f"{_verb(facts, helper)} {_quantity(facts, helper)}{place}"
    answer = f"Yes. There {there}, and {article(helper)} {purpose.uses}."
    return Question("reasoning", purpose.uses, rng.choice(purpose.goals), "yes", answer)


def _unserved(purpose: Purpose, facts: Facts, rng: random.Random) -> Question:
    """Ask for a purpose that nothing there serves."""
    there = join_with_and([_quantity(facts, one) for one in facts.present[:4]])
    answer = f"No. I see {there}, but nothing that {purpose.uses}."
    return Question("reasoning", purpose.uses, rng.choice(purpose.goals), "no", answer)


FORMS: dict[str, Callable[[Facts, random.Random], list[Question]]] = {
    "presence": presence_questions,
    "count": count_questions,
    "position": position_questions,
    "relation": relation,
    "colour": color,
    "naming": naming,
    "setting": setting,
    "reasoning": reasoning,
}
"""Kinds of questions about one image, each written from its facts."""


def questions_about(facts: Facts, rng: random.Random) -> list[Question]:
    """Write every question that the facts allow, by kind."""
    return [question for write in FORMS.values() for question in write(facts, rng)]


def yes_no_pairs(asked: Sequence[Question]) -> list[list[Question]]:
    """Group questions that are kept or left out together, so that yes and no stay balanced.

    Those with another answer stand alone; one answered yes stands with one of its kind answered no, and is left out
    where there is none.
    """
    units: list[list[Question]] = []
    halves: dict[tuple[str, str], list[list[Question]]] = defaultdict(list)
    for question in asked:
        if question.short not in _OPPOSITE_ANSWER:
            units.append([question])
        elif missing := halves[question.kind, _OPPOSITE_ANSWER[question.short]]:
            missing.pop(0).append(question)
        else:
            unit = [question]
            halves[question.kind, question.short].append(unit)
            units.append(unit)
    halved = [unit for units_left in halves.values() for unit in units_left]
    return [unit for unit in units if not any(unit is half for half in halved)]


def describe(facts: Facts, rng: random.Random) -> str:
    """Describe an image in a few sentences, from its facts alone; empty where nothing is plainly there."""
    if not facts.present:
        return ""
    what = join_with_and(
        [_quantity(facts, one, _color_adjective(facts, one)) for one in facts.present]
    )
    where = f" {setting_phrase(facts.setting)}" if facts.setting else ""
    told = [_pick(rng, ("the picture shows {what}{where}", "I see {what}{where}"), what=what,
                  where=where)]  # fmt: skip
    for category in facts.present:
        spots = Counter(position_phrase(place) for one, place in facts.instances if one == category)
        if facts.counts.get(category) != spots.total():
            continue  # some of them stand between two places
        if spots.total() == 1:
            told.append(f"The {category} is {next(iter(spots))}.")
        elif len(spots) == 1:
            told.append(f"The {plural(category)} are {next(iter(spots))}.")
        else:
            parts = [
                f"{number_word(n)} {'is' if n == 1 else 'are'} {spot}" for spot, n in spots.items()
            ]
            told.append(f"Of the {plural(category)}, {join_with_and(parts)}.")
    if facts.relations:
        one, how, other = rng.choice(facts.relations)
        told.append(f"The {one} is {RELATION_PHRASES[how]} the {other}.")
    return " ".join(told)


def _pronoun(category: str) -> str:
    """Return what stands for 'the dog' where it was just named: 'it', but nobody is called so."""
    return "the person" if category == "person" else "it"


def _color_adjective(facts: Facts, category: str) -> str:
    """Name a category with its color, if it has one."""
    return f"{facts.colors[category]} {category}" if category in facts.colors else category
