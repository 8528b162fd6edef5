"""Exchanges and the annotations they should be about in, the first thing in them that cannot stand out.

What annotations leave open is not held against a teacher: a thing counts as absent only if it has no box and no caption
hints at it under any name; a number is wrong only against boxes that can be counted, and if no caption says it; words
after 'no', 'not', 'if', 'could' and their like assert nothing. Objects and numbers are judged in English text only;
leaks, refusals and cut answers in English and Chinese.
"""

import re
from collections.abc import Sequence
from functools import cache

from caldera.annotations.annotated_image import AnnotatedImage
from caldera.english import number, plural
from caldera.instructions.asking.parsing import ReplyRefusal
from caldera.instructions.facts import Facts, facts_of
from caldera.instructions.knowledge import OTHER_NAMES
from caldera.instructions.teacher import Exchange, Kind

_SOURCE = re.compile(
    r"\b(?:captions?|bounding box(?:es)?|annotations?|coordinates?)\b"
    r"|\b(?:the|these|your|given|provided|five) (?:sentences?|descriptions)\b"
    r"|\b(?:according to|based on|from|in) (?:the|this|your) (?:provided |given )?(?:text|description)\b"
    r"|说明文字|标注|方框|坐标|根据描述|给出的(?:描述|句子)",
    re.IGNORECASE,
)
_COORDINATES = re.compile(r"\[\s*\d*\.?\d+\s*,|\b[01]?\.\d{2,3}\s*,\s*[01]?\.\d+|\b0\.\d{3}\b")
_DECLINES = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|\bI(?:'m| am) sorry\b"
    r"|\b(?:cannot|can't|unable to|not able to) (?:see|view|access|look at) (?:the |this |any |an? )?"
    r"(?:actual )?(?:image|picture|photo)|作为(?:一个)?(?:人工智能|语言模型)|很抱歉|无法查看",
    re.IGNORECASE,
)
_MARKS = re.compile(r"</?picture>|^\s*===\s*$", re.MULTILINE)
_ENDS = re.compile(r"""[.!?…。！？:;"'”’)\]*`]\s*\Z""")  # noqa: RUF001 - Chinese signs
_LISTED = re.compile(r"\A\s*(?:[-*•]|\d+[.)])\s")
_DOUBT = re.compile(
    r"\b(?:no|not|none|neither|nor|never|without|absent|missing|lack\w*|if|whether|could|may|might|would|should|"
    r"can(?! (?:also )?(?:see|be seen))|perhaps|possibly|probably|likely|suggest\w*|like|such as|instead|rather|"
    r"imagine|example|unless|than|any|else|cannot|seems?|appears?|maybe|other|another)\b|n't\b|\?",
    re.IGNORECASE,
)

_LONG = 20
"""Words from which an answer must end as sentences do."""

_SHORTEST = 8
"""Words that a description has at least (16 characters in Chinese)."""

_NUMBERS = {number(count): count for count in range(2, 13)}

_THERE = (
    r"(?:there (?:is|are)|i (?:can )?see|we (?:can )?see|one can see|you can see|"
    r"the (?:image|picture|photo|scene) (?:shows|features|depicts|contains|includes)|accompanied by)"
)


def check_grounding(
    kind: Kind,
    exchanges: Sequence[Exchange],
    images: Sequence[AnnotatedImage],
    categories: Sequence[str],
) -> None:
    """Check what was written against what is known.

    Args:
        kind: What was asked for.
        exchanges: Questions and answers.
        images: The pictures they are about; several are only checked for what stands in none of them.
        categories: What the annotators looked for.

    Raises:
        ReplyRefusal: A rule is broken: source, coordinates, marks, declines, too short, cut off, absent object, count.
    """
    captions = "\n".join(caption for image in images for caption in image.captions)
    for each in exchanges:
        for text in (each.question, each.answer):
            _check_leaks(text, captions)
        _check_end(kind, each.answer)
    facts = [facts_of(image, categories) for image in images]
    for each in exchanges:
        _check_objects(each, facts)
        if len(images) == 1:
            _check_counts(each, facts[0], captions)


def _check_leaks(text: str, captions: str) -> None:
    """Check that a text speaks as one who sees.

    Raises:
        ReplyRefusal: It names its source, gives coordinates, or declines.
    """
    found = _SOURCE.search(text)
    if found and found[0].lower() not in captions.lower():
        raise ReplyRefusal(
            "source",
            f"it says {found[0]!r}",
            repair=f"You said {found[0]!r}. Write it all again as one who looks at the picture, and do not mention "
            "captions, sentences, descriptions or boxes.",
        )
    if found := _COORDINATES.search(text):
        raise ReplyRefusal(
            "coordinates",
            f"it says {found[0]!r}",
            repair="You gave coordinates. Write it all again and say in plain words where things are.",
        )
    if found := _DECLINES.search(text):
        raise ReplyRefusal("declines", f"it says {found[0]!r}")
    if found := _MARKS.search(text):
        raise ReplyRefusal("marks", f"it says {found[0]!r}")


def _check_end(kind: Kind, answer: str) -> None:
    """Check that an answer is long enough and has an end.

    Raises:
        ReplyRefusal: It is too short for a description, or breaks off.
    """
    words = len(answer.split())
    wide = sum(ord(char) >= 0x2E80 for char in answer)
    if kind == "detail" and words < _SHORTEST and wide < 2 * _SHORTEST:
        raise ReplyRefusal(
            "too short",
            f"{words} words",
            repair="That is too short. Describe the picture in detail.",
        )
    last = answer.rstrip().rsplit("\n", 1)[-1]
    if max(words, wide // 2) >= _LONG and not _ENDS.search(answer) and not _LISTED.match(last):
        raise ReplyRefusal("breaks off", f"it ends with {answer[-30:]!r}")


def _check_objects(exchange: Exchange, facts: Sequence[Facts]) -> None:
    """Check that nothing is said to be there, or not there, that the annotations contradict.

    Raises:
        ReplyRefusal: Something is.
    """
    absent = set.intersection(*({*one.absent} for one in facts))
    for clause in _clauses(exchange.answer):
        if _DOUBT.search(clause):
            continue
        for category in sorted(absent):
            if _asserted(category).search(clause):
                raise _contradicted("absent object", category, f"it says {clause.strip()!r}")
    asked = re.match(
        r"(?:is|are) there (?:an? |any )?([\w ]+?)(?: (?:in|visible)\b[^?]*)?\?",
        exchange.question,
        re.I,
    )
    if asked and len(facts) == 1:
        thing, said = asked[1].lower(), exchange.answer.lower()
        if said.startswith("yes") and thing in _spellings(absent):
            raise _contradicted("absent object", thing, "asked whether it is there, it says yes")
        if said.startswith("no,") and thing in _spellings(facts[0].present):
            raise _contradicted("denied object", thing, "asked whether it is there, it says no")


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
                said = _NUMBERS[word.lower()]
                told = re.search(rf"\b(?:{word}|{said})\b", captions, re.IGNORECASE)
                wrong = said > count if not asked else said != count
                if wrong and not told and not _DOUBT.search(clause):
                    raise _contradicted("count", category, f"it says {word}, there are {count}")


def _clauses(text: str) -> list[str]:
    """Cut a text where one statement ends."""
    return re.split(r"(?<=[.!?;])\s+|\n+|, (?=but|while|although|which)", text)


_AFTER = (
    r"(?=[,.;!]|$| (?:in|on|at|near|by|next|behind|beside|between|to|with|and|is|are|that|which|under|above|below|"
    r"along|around|from|inside|outside|parked|standing|sitting|lying|resting|placed|visible|present|walking|running|here)\b)"
)
"""What may follow a noun that is not half of another: 'a bus near', but not 'a bus stop'."""


@cache
def _asserted(category: str) -> re.Pattern[str]:
    """Return a pattern that finds a statement that things of a category are there; a teddy bear is not a bear."""
    names = "|".join(re.escape(name) for name in (plural(category), category))
    amount = rf"(?:an?|the|some|several|many|multiple|{'|'.join(_NUMBERS)})"
    longer = "".join(rf"(?!{re.escape(word)} )" for word in _before(category))
    adjective = rf"(?:{longer}[\w-]+ )?" if longer else r"(?:[\w-]+ )?"
    return re.compile(
        rf"\b{_THERE} (?:also )?{amount} {adjective}(?:{names})(?![\w-]){_AFTER}", re.IGNORECASE
    )


def _before(category: str) -> list[str]:
    """List the words that make another thing's name of a category's: 'teddy' for bear, 'hot' for dog."""
    known = (*OTHER_NAMES, *(name for names in OTHER_NAMES.values() for name in names))
    return sorted(
        {name.split()[0] for name in known if name.endswith(f" {category}")} | {"toy", "stuffed"}
    )


@cache
def _counted(category: str) -> re.Pattern[str]:
    """Return a pattern that finds the number in 'two dogs', 'three brown dogs'."""
    numbers = "|".join(_NUMBERS)
    longer = "".join(rf"(?!{re.escape(word)} )" for word in _before(category))
    return re.compile(
        rf"\b({numbers}) (?:{longer}[\w-]+ )?{re.escape(plural(category))}\b", re.IGNORECASE
    )


def _spellings(categories: Sequence[str] | set[str]) -> set[str]:
    """Return categories in the singular and the plural."""
    return {name for category in categories for name in (category, plural(category))}


def _contradicted(rule: str, thing: str, detail: str) -> ReplyRefusal:
    """Refuse a statement, and tell the teacher what is wrong with it."""
    return ReplyRefusal(
        rule,
        f"{thing}: {detail}",
        repair=f"What you wrote about {thing!r} is not so in the picture ({detail}). Write it all again, in the same "
        "form, and only what the picture shows.",
    )
