"""Exchanges and the annotations they should be about in, the first thing in them that cannot stand out.

What annotations leave open is not held against a teacher: a thing counts as absent only if it has no box and no caption
hints at it under any name; a number is wrong only against boxes that can be counted, and if no caption says it; words
after 'no', 'not', 'if', 'could' and their like assert nothing. Judged in English text only.
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


def check_grounding(
    exchanges: Sequence[Exchange], images: Sequence[AnnotatedImage], categories: Sequence[str]
) -> None:
    """Check what was written against what is known.

    Args:
        exchanges: Questions and answers.
        images: The images they are about; several are only checked for what stands in none of them.
        categories: What the annotators looked for.

    Raises:
        ReplyRefusal: A rule is broken: absent object, denied object, count.
    """
    captions = "\n".join(caption for image in images for caption in image.captions)
    facts = [derive_facts(image, categories) for image in images]
    for each in exchanges:
        _check_objects(each, facts)
        if len(images) == 1:
            _check_counts(each, facts[0], captions)


def _check_objects(exchange: Exchange, facts: Sequence[Facts]) -> None:
    """Check that nothing is said to be there, or not there, that the annotations contradict.

    Raises:
        ReplyRefusal: Something is.
    """
    absent = set.intersection(*({*one.absent} for one in facts))
    for clause in _clauses(exchange.answer):
        if _HEDGES.search(clause):
            continue
        for category in sorted(absent):
            if _claims_present(category).search(clause):
                raise _contradiction("absent object", category, f"it says {clause.strip()!r}")
    asked = re.match(
        r"(?:is|are) there (?:an? |any )?([\w ]+?)(?: (?:in|visible)\b[^?]*)?\?",
        exchange.question,
        re.I,
    )
    if asked and len(facts) == 1:
        thing, said = asked[1].lower(), exchange.answer.lower()
        if said.startswith("yes") and thing in _name_variants(absent):
            raise _contradiction("absent object", thing, "asked whether it is there, it says yes")
        if said.startswith("no,") and thing in _name_variants(facts[0].present):
            raise _contradiction("denied object", thing, "asked whether it is there, it says no")


def _check_counts(exchange: Exchange, facts: Facts, captions: str) -> None:
    """Check that no more are counted than there are, and that a question for the number gets it.

    Raises:
        ReplyRefusal: A number is wrong.
    """
    for category, count in facts.counts.items():
        counted = _counted(category)
        asked = re.match(
            rf"how many {re.escape(plural(category))}(?: are there)?(?: in the \w+)?\?",
            exchange.question,
            re.I,
        )
        for clause in _clauses(exchange.answer):
            for word in counted.findall(clause):
                said = _NUMBERS[word.lower()] if word.isalpha() else int(word)
                told = re.search(
                    rf"\b(?:{word}|{number_word(said)}|{said})\b", captions, re.IGNORECASE
                )
                wrong = said > count if not asked else said != count
                if wrong and not told and not _HEDGES.search(clause):
                    raise _contradiction("count", category, f"it says {word}, there are {count}")


def _clauses(text: str) -> list[str]:
    """Cut a text where one statement ends."""
    return re.split(r"(?<=[.!?;])\s+|\n+|, (?=but|while|although|which)", text)


_AFTER = (
    r"(?=[,.;!]|$| (?:in|on|at|near|by|next|behind|beside|between|to|with|and|is|are|that|which|under|above|below|"
    r"along|around|from|inside|outside|parked|standing|sitting|lying|resting|placed|visible|present|walking|running|here)\b)"
)
"""What may follow a noun that is not half of another: 'a bus near', but not 'a bus stop'."""


_PLACED = (
    r" (?:(?:is|are|can be seen) (?:also )?(?:\w+ing|parked|placed|located|visible|seen|covered|filled|next to|on|"
    r"behind|beside|near|in the)|stands?|sits?|lies|hangs?|rests?)\b"
)
"""How a thing is said to be somewhere in an image: 'a truck is driving', 'the towel lies'."""


@cache
def _claims_present(category: str) -> re.Pattern[str]:
    """Return a pattern that finds a statement that things of a category are there; a teddy bear is not a bear."""
    names = "|".join(re.escape(name) for name in (plural(category), category))
    amount = rf"(?:an?|the|some|several|many|multiple|{'|'.join(_NUMBERS)})"
    longer = "".join(rf"(?!{re.escape(word)} )" for word in _before(category))
    adjective = rf"(?:{longer}[\w-]+ )?" if longer else r"(?:[\w-]+ )?"
    thing = rf"{amount} {adjective}(?:{names})(?![\w-])"
    several = rf"{adjective}{re.escape(plural(category))}(?![\w-])"
    return re.compile(
        rf"\b{_EXISTENTIAL} (?:also )?(?:{thing}|{several}){_AFTER}|(?:\A|, |\band )\W*{thing}{_PLACED}",
        re.IGNORECASE,
    )


def _before(category: str) -> list[str]:
    """List the words that make another thing's name of a category's: 'teddy' for bear, 'hot' for dog."""
    known = (*OTHER_NAMES, *(name for names in OTHER_NAMES.values() for name in names))
    return sorted(
        {name.split()[0] for name in known if name.endswith(f" {category}")} | {"toy", "stuffed"}
    )


@cache
def _counted(category: str) -> re.Pattern[str]:
    """Return a pattern that finds the number in 'two dogs', 'three brown dogs', '12 dogs'."""
    numbers = rf"{'|'.join(_NUMBERS)}|[2-9]|[1-9]\d"
    longer = "".join(rf"(?!{re.escape(word)} )" for word in _before(category))
    return re.compile(
        rf"\b({numbers}) (?:{longer}[\w-]+ )?{re.escape(plural(category))}\b", re.IGNORECASE
    )


def _name_variants(categories: Sequence[str] | set[str]) -> set[str]:
    """Return categories in the singular and the plural."""
    return {name for category in categories for name in (category, plural(category))}


def _contradiction(rule: str, thing: str, detail: str) -> RejectedReply:
    """Refuse a statement, and tell the teacher what is wrong with it."""
    return RejectedReply(
        rule,
        f"{thing}: {detail}",
        feedback=f"What you wrote about {thing!r} is not so in the picture ({detail}). Write it all again, in the same "
        "form, and only what the picture shows.",
    )
