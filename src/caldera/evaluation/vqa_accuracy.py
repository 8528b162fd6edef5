"""Soft accuracy of VQA answers, and the normalization of answers before it.

There are two normalizations: `normalize_vqa` is that of VQA v2's own evaluator (visualqa.org, also used for VizWiz);
`normalize_submission` is that of EvalAI's processor, which TextVQA's M4C evaluator uses, and which LLaVA-1.5 applies to
its VQA v2 and VizWiz answers before submission; it has one additional step.

Published scores depend on these rules, so their oddities are kept on purpose; each is documented below.

Agrawal et al., VQA (arXiv 1505.00468): an answer that three people gave is correct. To compare people and machines,
each person is omitted once and the mean is taken ("10 choose 9"). With ten people this gives 0, 0.3, 0.6, 0.9 and 1 for
none, one, two, three and more that agree.
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
"""Removed punctuation; the colon, the ampersand, the apostrophe and the percent sign are not."""

_COMMA_IN_NUMBER = re.compile(r"\d,\d")

_PERIOD = re.compile(r"\.(?!\d)")
"""A period that no digit follows.

Oddity: the pattern was meant to check for a digit before it as well, but its look-behind is misspelt and has no
effect: "3." loses its period, as "dr." does.
"""

_MAX_PERIODS = 32
"""Oddity: a flag, whose value is 32, is passed as the maximum number of replacements."""

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
"""Contractions whose missing apostrophe is restored.

Oddity: some are missing, such as "i'm", "i've" and "she's": the official table has them with a capital I, which never
equals a lowercase word, or with the apostrophe. So "im" stays "im".
"""


def _missing_apostrophes(contractions: str) -> dict[str, str]:
    """Map every spelling that lacks one apostrophe to the correct one."""
    return {
        word[:index] + word[index + 1 :]: word
        for word in contractions.split()
        for index, character in enumerate(word)
        if character == "'"
    }


_CONTRACTIONS = _missing_apostrophes(_CONTRACTED) | {"somebody'd": "somebodyd"}
"""Oddity: the official table has this entry reversed."""


def normalize_vqa(answer: str) -> str:
    """Return an answer as VQA v2's evaluator compares it: punctuation, number words, articles, contractions."""
    return _normalize_words(_remove_punctuation(one_line(answer)))


def normalize_submission(answer: str) -> str:
    """Return an answer as normalized by EvalAI's processor, which TextVQA's M4C evaluator compares.

    Commas and question marks are removed first, and a possessive is split off: "Macy's" becomes "macy 's".
    """
    return normalize_vqa(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def one_line(answer: str) -> str:
    """Return an answer on one line, without outer white space."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _remove_punctuation(text: str) -> str:
    """Remove punctuation, or replace it by a space.

    A character is removed if it is next to a space anywhere in the answer. Oddity: every character is removed if the
    answer contains a number with a comma, such as "1,000".
    """
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for character in _PUNCTUATION:
        # Most characters are absent from most of the millions of answers.
        if character not in text:
            continue
        next_to_space = f"{character} " in text or f" {character}" in text
        result = result.replace(character, "" if next_to_space or has_number else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


def _normalize_words(text: str) -> str:
    """Return words in lower case, with numbers as digits, without articles, with complete contractions."""
    numbers = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbers if word not in _ARTICLES)


SoftAccuracy = Callable[[str, Sequence[str]], float]
"""Accuracy of an answer, between 0 and 1, given people's answers."""

_FULL_AGREEMENT = 3
"""Number of people that have to agree."""


def vqa_soft_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """Score an answer as VQA v2's evaluator does.

    It normalizes answers only if people disagree. If all answers are equal, an answer must be equal verbatim: "Yes." is
    wrong if ten people answered "yes".
    """
    lines = [one_line(text) for text in human_answers]
    if len(set(lines)) == 1:
        return _agreement(one_line(answer), lines)
    return _agreement(normalize_vqa(answer), _normalize_each(normalize_vqa, lines))


def m4c_soft_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """Score an answer as TextVQA's M4C evaluator does: both sides are normalized by EvalAI's processor."""
    return _agreement(
        normalize_submission(answer), _normalize_each(normalize_submission, human_answers)
    )


def vizwiz_soft_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """Score an answer as VizWiz's evaluator does: people's answers are not normalized."""
    return _agreement(normalize_vqa(answer), human_answers)


def _normalize_each(normalize: Callable[[str], str], human_answers: Sequence[str]) -> list[str]:
    """Normalize people's answers, each distinct one once."""
    normalized = {text: normalize(text) for text in set(human_answers)}
    return [normalized[text] for text in human_answers]


def _agreement(answer: str, human_answers: Sequence[str]) -> float:
    """Return min(1, agreeing / 3), averaged over omitting each person once."""
    agreeing = sum(text == answer for text in human_answers)
    without_one = min(1.0, (agreeing - 1) / _FULL_AGREEMENT)
    with_all = min(1.0, agreeing / _FULL_AGREEMENT)
    total = len(human_answers)
    return (agreeing * without_one + (total - agreeing) * with_all) / total
