"""Checks of exchanges against annotations: absent objects, denied objects, wrong counts.

A statement is rejected only if the annotations contradict it: an object is absent only if it has no box and no caption
mentions it by any name; a number is wrong only for objects that can be counted, and if no caption mentions the number;
clauses with 'no', 'not', 'if', 'could' and the like assert nothing. Only English text is checked.
"""

import re
from collections.abc import Sequence
from functools import cache

from caldera.annotations.annotated_image import AnnotatedImage
from caldera.annotations.english import number_word, plural
from caldera.instructions.coco_knowledge import OTHER_NAMES
from caldera.instructions.dialogues import Exchange
from caldera.instructions.facts import Facts, derive_facts
from caldera.llm_client.client import RejectedReply

_HEDGES = re.compile(
    r"\b(?:no|not|none|neither|nor|never|without|absent|missing|lack\w*|if|whether|could|may|might|would|should|"
    r"can(?! (?:also )?(?:see|be seen))|perhaps|possibly|probably|likely|suggest\w*|like|such as|instead|rather|"
    r"imagine|example|unless|than|any|else|cannot|seems?|appears?|maybe|other|another)\b|n['\u2019]t\b|\?",
    re.IGNORECASE,
)

_NUMBERS = {number_word(count): count for count in range(2, 13)}

_EXISTENTIAL = (
    r"(?:there (?:is|are)|i (?:can )?see|we (?:can )?see|one can see|you can see|"
    r"the (?:image|picture|photo|scene) (?:shows|features|depicts|contains|includes)|"
    r"(?:both|all|picture [A-H]|[A-H])(?: of them| pictures| images)? (?:shows?|ha[sv]e?|contains?|includes?)|"
    r"accompanied by)"
)

_AFTER_NOUN = (
    r"(?=[,.;!]|$| (?:in|on|at|near|by|next|behind|beside|between|to|with|and|is|are|that|which|under|above|below|"
    r"along|around|from|inside|outside|parked|standing|sitting|lying|resting|placed|visible|present|walking|running|here)\b)"
)
"""Text after a noun that is not part of a compound: 'a bus near', but not 'a bus stop'."""

_LOCATED = (
    r" (?:(?:is|are|can be seen) (?:also )?(?:\w+ing|parked|placed|located|visible|seen|covered|filled|next to|on|"
    r"behind|beside|near|in the)|stands?|sits?|lies|hangs?|rests?)\b"
)
"""Verbs that place an object in the image: 'a truck is driving', 'the towel lies'."""


def check_grounding(
    exchanges: Sequence[Exchange], images: Sequence[AnnotatedImage], categories: Sequence[str]
) -> None:
    """Raise RejectedReply if an exchange contradicts the annotations: absent object, denied object, count."""
    captions = "\n".join(caption for image in images for caption in image.captions)
    facts = [derive_facts(image, categories) for image in images]
    for exchange in exchanges:
        _check_objects(exchange, facts)
        if len(images) == 1:
            _check_counts(exchange, facts[0], captions)


def _check_objects(exchange: Exchange, facts: Sequence[Facts]) -> None:
    """Reject statements that an absent object is present, or a present one absent."""
    absent = set.intersection(*({*image_facts.absent} for image_facts in facts))
    for clause in _clauses(exchange.answer):
        if _HEDGES.search(clause):
            continue
        for category in sorted(absent):
            if _claims_present(category).search(clause):
                detail = f"it says {clause.strip()!r}"
                raise _contradiction("absent object", category, detail)
    question = re.match(
        r"(?:is|are) there (?:an? |any )?([\w ]+?)(?: (?:in|visible)\b[^?]*)?\?",
        exchange.question,
        re.I,
    )
    if question and len(facts) == 1:
        name, answer = question[1].lower(), exchange.answer.lower()
        if answer.startswith("yes") and name in _name_variants(absent):
            detail = "asked whether it is there, it says yes"
            raise _contradiction("absent object", name, detail)
        if answer.startswith("no,") and name in _name_variants(facts[0].present):
            detail = "asked whether it is there, it says no"
            raise _contradiction("denied object", name, detail)


def _check_counts(exchange: Exchange, facts: Facts, captions: str) -> None:
    """Reject counts above the true one, and any other count as the answer to 'how many'."""
    for category, count in facts.counts.items():
        is_count_question = re.match(
            rf"how many {re.escape(plural(category))}(?: are there)?(?: in the \w+)?\?",
            exchange.question,
            re.I,
        )
        for clause in _clauses(exchange.answer):
            for word in _count_pattern(category).findall(clause):
                number = _NUMBERS[word.lower()] if word.isalpha() else int(word)
                in_captions = re.search(
                    rf"\b(?:{word}|{number_word(number)}|{number})\b", captions, re.IGNORECASE
                )
                wrong = number != count if is_count_question else number > count
                if wrong and not in_captions and not _HEDGES.search(clause):
                    detail = f"it says {word}, there are {count}"
                    raise _contradiction("count", category, detail)


def _clauses(text: str) -> list[str]:
    """Split a text into its statements."""
    return re.split(r"(?<=[.!?;])\s+|\n+|, (?=but|while|although|which)", text)


@cache
def _claims_present(category: str) -> re.Pattern[str]:
    """Return a pattern for statements that a category is present; a teddy bear is not a bear."""
    names = "|".join(re.escape(name) for name in (plural(category), category))
    amount = rf"(?:an?|the|some|several|many|multiple|{'|'.join(_NUMBERS)})"
    not_compound = _not_compound(category)
    adjective = rf"(?:{not_compound}[\w-]+ )?"
    phrase = rf"{amount} {adjective}(?:{names})(?![\w-])"
    several = rf"{adjective}{re.escape(plural(category))}(?![\w-])"
    return re.compile(
        rf"\b{_EXISTENTIAL} (?:also )?(?:{phrase}|{several}){_AFTER_NOUN}|(?:\A|, |\band )\W*{phrase}{_LOCATED}",
        re.IGNORECASE,
    )


def _not_compound(category: str) -> str:
    """Return a pattern that excludes the first words of compounds with another meaning: 'teddy' bear, 'hot' dog."""
    names = (*OTHER_NAMES, *(name for names in OTHER_NAMES.values() for name in names))
    first_words = {name.split()[0] for name in names if name.endswith(f" {category}")}
    return "".join(rf"(?!{re.escape(word)} )" for word in sorted(first_words | {"toy", "stuffed"}))


@cache
def _count_pattern(category: str) -> re.Pattern[str]:
    """Return a pattern for the number in 'two dogs', 'three brown dogs', '12 dogs'."""
    numbers = rf"{'|'.join(_NUMBERS)}|[2-9]|[1-9]\d"
    not_compound = _not_compound(category)
    return re.compile(
        rf"\b({numbers}) (?:{not_compound}[\w-]+ )?{re.escape(plural(category))}\b", re.IGNORECASE
    )


def _name_variants(categories: Sequence[str] | set[str]) -> set[str]:
    """Return categories in the singular and the plural."""
    return {name for category in categories for name in (category, plural(category))}


def _contradiction(rule: str, subject: str, detail: str) -> RejectedReply:
    """Return the rejection of a statement; feedback and detail are model input: their wording belongs to the data."""
    feedback = (
        f"What you wrote about {subject!r} is not so in the picture ({detail}). Write it all again, in the same form, "
        "and only what the picture shows."
    )
    return RejectedReply(rule, f"{subject}: {detail}", feedback=feedback)
