"""Soft accuracy and normalization.

Two ways exist. `normalized` is that of VQA v2's own evaluator (visualqa.org, also used for VizWiz). `submitted` is the
one of EvalAI's processor that the M4C evaluator of TextVQA has, and that LLaVA-1.5 passes its VQA v2 and VizWiz answers
through before it hands them in; it differs by a step before the others.

Published scores hang on these rules as they were written, so their oddities are kept on purpose; each is named below.

Agrawal et al., VQA (arXiv 1505.00468): an answer that three people gave is right. So that people and machines
can be compared, each person is left out once and the mean is taken ("10 choose 9"). With ten people that makes 0, 0.3,
0.6, 0.9 and 1 for none, one, two, three and more that agree.

The three benchmarks differ in what is put into a common form before.
"""

import re
from collections.abc import Callable, Sequence

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
"""Oddity: "none" is a number too, so the answer "none of them" becomes "0 of them"."""

_ARTICLES = frozenset(("a", "an", "the"))

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""What goes. The colon, the ampersand, the apostrophe and the per cent sign are not among them and stay."""

_COMMA_IN_NUMBER = re.compile(r"\d,\d")

_PERIOD = re.compile(r"\.(?!\d)")
"""A period that no digit follows.

Oddity: the pattern was meant to look for a digit before it as well, but its look-behind is misspelt and has no
effect: "3." loses its period, as "dr." does.
"""

_MOST_PERIODS = 32
"""Oddity: a flag is handed over where the number of replacements belongs, and the flag's value is 32."""

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
"""Contractions that get back an apostrophe that is missing.

Oddity: some are not there, such as "i'm", "i've" and "she's": the official table spells them with a capital I, which
never meets a word in lower case, or without one that is missing. So "im" stays "im".
"""


def _missing_apostrophes(contractions: str) -> dict[str, str]:
    """Map every spelling that lacks one apostrophe to the right one."""
    return {
        word[:at] + word[at + 1 :]: word
        for word in contractions.split()
        for at, character in enumerate(word)
        if character == "'"
    }


_CONTRACTIONS = _missing_apostrophes(_CONTRACTED) | {"somebody'd": "somebodyd"}
"""Oddity: the official table has this one entry the wrong way round."""


def normalize_vqa(answer: str) -> str:
    """Return an answer as VQA v2's evaluator compares it: punctuation, number words, articles, contractions."""
    return _words(_without_punctuation(one_line(answer)))


def normalize_submission(answer: str) -> str:
    """Return an answer as EvalAI's processor leaves it, which TextVQA's M4C evaluator compares.

    Commas and question marks go first, and a possessive is cut off: "Macy's" becomes "macy 's".
    """
    lower = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalize_vqa(lower)


def one_line(answer: str) -> str:
    """Return an answer on one line, without white space at its ends."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """Take out punctuation, or put a space in its place.

    A mark leaves no space behind if it has a space beside it anywhere in the answer. Oddity: no mark at all does if the
    answer holds a number with a comma, such as "1,000".
    """
    number = _COMMA_IN_NUMBER.search(text) is not None
    changed = text
    for mark in _PUNCTUATION:
        if mark not in text:
            continue  # as for most marks of most answers, and there are millions
        beside_space = f"{mark} " in text or f" {mark}" in text
        changed = changed.replace(mark, "" if beside_space or number else " ")
    return _PERIOD.sub("", changed, count=_MOST_PERIODS)


def _words(text: str) -> str:
    """Put words in lower case, write numbers in digits, leave articles out, mend contractions."""
    numbers = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbers if word not in _ARTICLES)


SoftAccuracy = Callable[[str, Sequence[str]], float]
"""What an answer is worth, between 0 and 1, beside what people said."""

_FULL_AGREEMENT = 3
"""People that have to agree."""


def vqa_soft_accuracy(answer: str, said: Sequence[str]) -> float:
    """Score an answer as VQA v2's evaluator does.

    It brings answers into their common form only where people disagree. Where all said the same, an answer has to be
    that to the letter: "Yes." is wrong where ten people said "yes".
    """
    lines = [one_line(one) for one in said]
    if len(set(lines)) == 1:
        return _agreement(one_line(answer), lines)
    return _agreement(normalize_vqa(answer), _each(normalize_vqa, lines))


def m4c_soft_accuracy(answer: str, said: Sequence[str]) -> float:
    """Score an answer as TextVQA's M4C evaluator does: both sides through EvalAI's processor."""
    return _agreement(normalize_submission(answer), _each(normalize_submission, said))


def vizwiz_soft_accuracy(answer: str, said: Sequence[str]) -> float:
    """Score an answer as VizWiz's evaluator does: what people said stays as the file has it."""
    return _agreement(normalize_vqa(answer), said)


def _each(form: Callable[[str], str], said: Sequence[str]) -> list[str]:
    """Put what people said into form, what several said once."""
    forms = {one: form(one) for one in set(said)}
    return [forms[one] for one in said]


def _agreement(answer: str, said: Sequence[str]) -> float:
    """Return min(1, agreeing / 3), averaged over leaving out each person once."""
    agreeing = sum(one == answer for one in said)
    without_one = min(1.0, (agreeing - 1) / _FULL_AGREEMENT)
    with_all = min(1.0, agreeing / _FULL_AGREEMENT)
    return (agreeing * without_one + (len(said) - agreeing) * with_all) / len(said)
