"""Facts of several images in, questions that need all of those images out.

The images are named A, B, C in their order. BLIP-2 is reported to fail at such questions for lack of training data with
several images in one dialogue (arXiv 2301.12597, limitations).
"""

import random
from collections.abc import Callable, Sequence
from itertools import combinations

from caldera.annotations.english import article, number_word, plural, sentence
from caldera.conversation import LETTERS
from caldera.instructions.coco_knowledge import GROUPS
from caldera.instructions.facts import Facts
from caldera.instructions.questions import Question, setting_phrase

_GROUP_PLURALS = {group: "foods" if group == "food" else f"{group}s" for group in GROUPS}


def _question(form: str, text: str, short: str, answer: str) -> Question:
    """Return a question of the kind 'context'."""
    return Question("context", form, text, short, sentence(answer))


def which_image_shows(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask which image shows an object that is in none of the others."""
    questions = []
    for index, facts in enumerate(images):
        others = [other for other in images if other is not facts]
        unique = [
            category
            for category in facts.present
            if not any(category in other.possible for other in others)
        ]
        if unique:
            category, letter = rng.choice(unique), LETTERS[index]
            text = f"Which picture shows {article(category)}?"
            answer = f"picture {letter} shows {article(category)}"
            questions.append(_question(f"which of {len(images)}", text, letter, answer))
    return [rng.choice(questions)] if questions else []


def what_is_common(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask which category two images have in common, if any."""
    first, second = images[:2]
    shared = [category for category in first.present if category in second.present]
    text = rng.choice(
        ("What do pictures A and B both show?", "Which kind of thing is in both A and B?")
    )
    possible = first.possible & second.possible
    if len(shared) == 1 and possible == {shared[0]}:
        return [_question("in both", text, shared[0], f"both show {article(shared[0])}")]
    if not possible:
        return [_question("in both", text, "nothing", "they have nothing in common")]
    return []


def which_shares(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask which of the animals (vehicles, foods) of A and B are in C."""
    if len(images) != 3:
        return []
    questions = []
    for group, members in GROUPS.items():
        possible = [facts.possible.intersection(members) for facts in images]
        if any(kinds - {*facts.present} for kinds, facts in zip(possible, images, strict=True)):
            continue
        first, second, third = possible
        either = first | second
        if not first or not second or len(either) < 2:
            continue
        wordings = [f"Which of the {_GROUP_PLURALS[group]} of A and B are in C?"]
        if len(first) == len(second) == 1:
            wordings.append(f"A and B each show one kind of {group}. Which of them is also in C?")
        if answers := _shared_answers(either & third, either):
            questions.append(_question("found again", rng.choice(wordings), *answers))
    return [rng.choice(questions)] if questions else []


def _shared_answers(shared: frozenset[str], either: frozenset[str]) -> tuple[str, str] | None:
    """Return the short answer and the sentence about which of `either` are shared; None if that needs a list."""
    if len(shared) == 1:
        [category] = shared
        return category, f"the {category} is in C"
    if not shared:
        short = "neither" if len(either) == 2 else "none"
        return short, f"{short} of them is in C"
    return ("both", "both of them are in C") if len(either) == 2 else None


def which_has_more(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask which of two images has more objects of a category."""
    first, second = images[:2]
    questions = []
    for category in dict.fromkeys((*first.counts, *second.counts)):
        count_a, count_b = _certain_count(first, category), _certain_count(second, category)
        if count_a is None or count_b is None or count_a == count_b:
            continue
        short = "A" if count_a > count_b else "B"
        text = f"Which picture has more {plural(category)}, A or B?"
        fewer, more = sorted((count_a, count_b))
        counts = f"{number_word(more)} against {number_word(fewer) if fewer else 'none'}"
        questions.append(_question("more", text, short, f"picture {short} has more: {counts}"))
    return [rng.choice(questions)] if questions else []


def total_count(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask for the total number of objects of a category in all images."""
    questions = []
    for category in dict.fromkeys(category for facts in images for category in facts.counts):
        counts = [_certain_count(facts, category) for facts in images]
        certain = [count for count in counts if count is not None]
        if len(certain) < len(counts) or sum(count > 0 for count in certain) < 2:
            continue
        total = number_word(sum(certain))
        text = f"How many {plural(category)} do the pictures show together?"
        answer = f"together they show {total} {plural(category)}"
        questions.append(_question("altogether", text, total, answer))
    return [rng.choice(questions)] if questions else []


def same_setting(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask about two images with the same setting, and two with different ones, if there are both."""
    settings = [
        (letter, facts.setting)
        for letter, facts in zip(LETTERS, images, strict=False)
        if facts.setting
    ]
    pairs = list(combinations(settings, 2))
    same = [pair for pair in pairs if pair[0][1] == pair[1][1]]
    different = [pair for pair in pairs if pair not in same]
    if not same or not different:
        return []
    questions = []
    for (first, setting), (second, other_setting) in (rng.choice(same), rng.choice(different)):
        text = rng.choice(
            (
                f"Do {first} and {second} show the same kind of place?",
                f"Is the setting of {first} also that of {second}?",
            )
        )
        if setting == other_setting:
            short, answer = "yes", "yes, it is the same"
        else:
            phrases = f"{setting_phrase(setting)} and {second} {setting_phrase(other_setting)}"
            short, answer = "no", f"no, {first} was taken {phrases}"
        questions.append(_question("same place", text, short, answer))
    return questions


def _certain_count(facts: Facts, category: str) -> int | None:
    """Return the certain number of objects of a category, None if it is unknown."""
    return facts.counts.get(category, None if category in facts.possible else 0)


FORMS: tuple[Callable[[Sequence[Facts], random.Random], list[Question]], ...] = (
    which_image_shows,
    what_is_common,
    which_shares,
    which_has_more,
    total_count,
    same_setting,
)
"""Writers of questions about several images."""


def questions_about_all(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Return all questions that the facts of these images allow."""
    return [question for write in FORMS for question in write(images, rng)]
