"""Facts of several images in, questions that need all of those images out.

The images are called A, B, C in the order they are shown. BLIP-2 was said to fail at such questions for want of
training data in which several images stand in one dialogue (arXiv 2301.12597, its limitations).
"""

import random
from collections.abc import Callable, Sequence
from itertools import combinations

from caldera.annotations.english import article, number_word, plural, sentence
from caldera.conversation import LETTERS
from caldera.instructions.coco_knowledge import GROUPS
from caldera.instructions.facts import Facts
from caldera.instructions.questions import Question, setting_phrase

_SEVERAL = {group: "foods" if group == "food" else f"{group}s" for group in GROUPS}
"""What several kinds of a group are called."""


def _question(form: str, text: str, short: str, answer: str) -> Question:
    """Make a question of the kind 'context'."""
    return Question("context", form, text, short, sentence(answer))


def which_image_shows(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask which image shows something that only one of them shows."""
    asked = []
    for index, facts in enumerate(images):
        others = [other for other in images if other is not facts]
        only = [
            category
            for category in facts.present
            if not any(category in other.possible for other in others)
        ]
        if only:
            category, letter = rng.choice(only), LETTERS[index]
            text = f"Which picture shows {article(category)}?"
            answer = f"picture {letter} shows {article(category)}"
            asked.append(_question(f"which of {len(images)}", text, letter, answer))
    return [rng.choice(asked)] if asked else []


def what_is_common(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask whether two images show the same kind of thing, and which."""
    one, other = images[:2]
    shared = [category for category in one.present if category in other.present]
    text = rng.choice(
        ("What do pictures A and B both show?", "Which kind of thing is in both A and B?")
    )
    if len(shared) == 1 and one.possible & other.possible == {shared[0]}:
        answer = f"both show {article(shared[0])}"
        return [_question("in both", text, shared[0], answer)]
    if not one.possible & other.possible:
        return [_question("in both", text, "nothing", "they have nothing in common")]
    return []


def which_shares(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask which of the animals (vehicles, foods) of A and B are in C."""
    if len(images) != 3:
        return []
    asked = []
    for group, members in GROUPS.items():
        possible = [facts.possible.intersection(members) for facts in images]
        if any(kinds - {*facts.present} for kinds, facts in zip(possible, images, strict=True)):
            continue
        first, second, third = possible
        either = first | second
        if not first or not second or len(either) < 2:
            continue
        wordings = [f"Which of the {_SEVERAL[group]} of A and B are in C?"]
        if len(first) == len(second) == 1:
            wordings.append(f"A and B each show one kind of {group}. Which of them is also in C?")
        if told := _found(either & third, either):
            asked.append(_question("found again", rng.choice(wordings), *told))
    return [rng.choice(asked)] if asked else []


def _found(again: frozenset[str], either: frozenset[str]) -> tuple[str, str] | None:
    """Say in a word, and in a sentence, which of `either` were found again; None where that takes a list."""
    if len(again) == 1:
        [one] = again
        return one, f"the {one} is in C"
    if not again:
        short = "neither" if len(either) == 2 else "none"
        return short, f"{short} of them is in C"
    return ("both", "both of them are in C") if len(either) == 2 else None


def which_has_more(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask which of two images has more of something."""
    one, other = images[:2]
    asked = []
    for category in dict.fromkeys((*one.counts, *other.counts)):
        here, there = _counted(one, category), _counted(other, category)
        if here is None or there is None or here == there:
            continue
        short = "A" if here > there else "B"
        text = f"Which picture has more {plural(category)}, A or B?"
        fewer = number_word(min(here, there)) if min(here, there) else "none"
        answer = f"picture {short} has more: {number_word(max(here, there))} against {fewer}"
        asked.append(_question("more", text, short, answer))
    return [rng.choice(asked)] if asked else []


def total_count(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask how many there are of something in all the images together."""
    asked = []
    for category in {category: None for facts in images for category in facts.counts}:
        counts = [_counted(facts, category) for facts in images]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts) or sum(count > 0 for count in known) < 2:
            continue
        text = f"How many {plural(category)} do the pictures show together?"
        answer = f"together they show {number_word(sum(known))} {plural(category)}"
        asked.append(_question("altogether", text, number_word(sum(known)), answer))
    return [rng.choice(asked)] if asked else []


def same_setting(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Ask of two images taken in the same kind of place, and of two that were not, if there are both among these."""
    taken = [(letter, one.setting) for letter, one in zip(LETTERS, images, strict=False)]
    pairs = [(one, other) for one, other in combinations(taken, 2) if one[1] and other[1]]
    alike = [pair for pair in pairs if pair[0][1] == pair[1][1]]
    apart = [pair for pair in pairs if pair not in alike]
    if not alike or not apart:
        return []
    asked = []
    for (one, here), (other, there) in (rng.choice(alike), rng.choice(apart)):
        text = rng.choice(
            (
                f"Do {one} and {other} show the same kind of place?",
                f"Is the setting of {one} also that of {other}?",
            )
        )
        short = "yes" if here == there else "no"
        differ = f"no, {one} was taken {setting_phrase(here or '')} and {other} {setting_phrase(there or '')}"
        answer = "yes, it is the same" if here == there else differ
        asked.append(_question("same place", text, short, answer))
    return asked


def _counted(facts: Facts, category: str) -> int | None:
    """Return how many there certainly are, None where that is open."""
    return facts.counts.get(category, None if category in facts.possible else 0)


FORMS: dict[str, Callable[[Sequence[Facts], random.Random], list[Question]]] = {
    "which_shows": which_image_shows,
    "in_common": what_is_common,
    "found_again": which_shares,
    "more": which_has_more,
    "altogether": total_count,
    "same_place": same_setting,
}
"""Questions about several images, each written from their facts."""


def questions_about_all(images: Sequence[Facts], rng: random.Random) -> list[Question]:
    """Write every question that the facts of these images allow."""
    return [question for write in FORMS.values() for question in write(images, rng)]
