"""Parsing of answers: choice letters, yes/no, and contained answers.

`parse_choice` is strict: a letter counts if it is the whole answer, leads it with punctuation after it, or follows
"answer is", in English or Chinese. "A and B", "The answer is not A" and "A dog runs" choose nothing.
"""

import re
import unicodedata
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
"""Names of the choices."""

_OPEN, _SHUT = r"[\s(\[\"'*`]*", r"[\s)\]\"'*`.:,。]*"
"""Characters allowed around a letter: brackets, quotation marks, and Markdown."""

_ALONE = re.compile(rf"{_OPEN}(?:(?:option|choice) )?([A-Ja-j]){_SHUT}", re.IGNORECASE)
_LEADS = re.compile(r"[(\[\"'*`]*([A-J])[\"'*`]*[)\].:]+[\"'*`]*(?:\s+(?P<rest>\S.*)|$)", re.DOTALL)
_STATED = re.compile(
    rf"(?:(?i:\banswer)(?i:\s+is\b|\s*:)|答案(?:是|为|:)|(?<!不)选(?:择|项)?){_OPEN}(?:(?i:option|choice)\s{_OPEN})?([A-J])"
    r"(?=[)\]\"'*`.,;:。]|\s*$|\s*\n|\s+(?:because|since|as|and|or|but)\b)(?P<rest>.*)",
    re.DOTALL,
)
_ANOTHER = re.compile(
    r"[\s)\]\"'*`.,]*(?:(?:and|or|and/or|nor|but)\b|[,/&+])[\s,(\[\"'*`]*(?:also |possibly |not )*[(\[\"'*`]*"
    r"[A-J](?![A-Za-z'\u2019])",
    re.IGNORECASE,
)
"""A second letter directly after the first, as in "A or B" and "A, B"."""

_MAX_DISTANCE = 60
"""Maximum distance of a second letter; the pattern needs quadratic time on long punctuation."""

_SCIENCE_QA = re.compile(r"The answer is ([A-Z]).")
"""LLaVA's own pattern, whose dot matches any character (R: llava/eval/eval_science_qa.py)."""


def parse_choice(text: str, letters: str, choices: Sequence[str] = ()) -> str | None:
    """Return the one letter that an answer clearly chooses, or None.

    Args:
        text: The answer. Full-width Latin letters count as such; letters of other alphabets do not.
        letters: The valid letters.
        choices: The choices in the order of their letters; an answer that repeats one verbatim chooses it.
    """
    answer = unicodedata.normalize("NFKC", text).strip()
    for find_letter in (_bare_letter, _stated_letter, _leading_letter):
        letter, is_clear = find_letter(answer)
        if letter or not is_clear:
            return letter if letter and letter in letters else None
    texts = [_normalize(choice) for choice in choices]
    normalized = _normalize(answer)
    return letters[texts.index(normalized)] if texts.count(normalized) == 1 else None


def _has_second_letter(text: str) -> bool:
    """Return whether a second letter directly follows the first, given the text after the first."""
    return _ANOTHER.match(text[:_MAX_DISTANCE]) is not None


def _normalize(text: str) -> str:
    """Return words without case, outer punctuation, or repeated spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .\"'*`")


_NOTHING: tuple[str, bool] = ("", True)
"""No letter of this form; another form may match."""

_UNCLEAR: tuple[str, bool] = ("", False)
"""Several letters."""


def _bare_letter(answer: str) -> tuple[str, bool]:
    """Find a letter that is the whole answer: B, (B), **b**, Option B."""
    match = _ALONE.fullmatch(answer)
    return (match[1].upper(), True) if match else _NOTHING


def _stated_letter(answer: str) -> tuple[str, bool]:
    """Find the letter after "answer is", stated once or always the same."""
    stated: set[str] = set()
    start = 0
    while match := _STATED.search(answer, start):
        if _has_second_letter(match["rest"]):
            return _UNCLEAR
        stated.add(match[1])
        start = match.end(1)
    if len(stated) > 1:
        return _UNCLEAR
    return (stated.pop(), True) if stated else _NOTHING


def _leading_letter(answer: str) -> tuple[str, bool]:
    """Find a leading letter with punctuation after it: B. a bear."""
    match = _LEADS.match(answer)
    if not match:
        return _NOTHING
    second = _LEADS.match(match["rest"] or "")
    if _has_second_letter(answer[match.end(1) :]) or (second and second[1] != match[1]):
        return _UNCLEAR
    return match[1], True


def science_qa_letter_by_llava(text: str) -> str | None:
    """Return the letter that LLaVA's evaluation of ScienceQA parses, or None.

    It is unchanged, to report the authors' own rule: "The answer is B" without a full stop fails, and so do two such
    sentences, while "The answer is Apple." is parsed as A.
    """
    if text in tuple("ABCDE"):
        return text
    if len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        return text[0]
    matches = _SCIENCE_QA.findall(text)
    return matches[0] if len(matches) == 1 else None


def science_qa_letter(text: str, choices: Sequence[str] = ()) -> str | None:
    """Return the letter that an answer to ScienceQA chooses, or None.

    The result of LLaVA's rule counts if the letter ends its word and no second one follows; if that rule fails,
    `parse_choice` decides. On LLaVA's own answers, the two give the same 4,241 letters, one of them beyond the choices.
    """
    letter = science_qa_letter_by_llava(text)
    match = _SCIENCE_QA.search(text)
    rest = text[match.end(1) :] if match else ""
    if letter and not rest[:1].isalpha() and not _has_second_letter(rest):
        return letter
    return parse_choice(text, LETTERS, choices)


_VERDICT = re.compile(r"\banswer is (yes|no)\b")
_EITHER = re.compile(r"\b(yes|no)\b")
_POSITION = re.compile(r"\b(?:top|bottom) (?:left|right)\b|\b(?:top|bottom|left|right|middle)\b")
_POSITION_WORDS = {"top", "bottom", "left", "right", "middle"}


def contains_answer(reference: str, answer: str) -> bool:
    """Return whether an answer contains a reference of a word or phrase.

    For yes and no "the answer is ..." decides, else the first of the two words. The first position in the answer must
    equal a reference position, so "top left" does not contain "left". Anything else must occur in whole words.
    """
    text, reference = " ".join(answer.lower().split()), reference.lower()
    if reference in ("yes", "no"):
        match = _VERDICT.search(text) or _EITHER.search(text)
        return match is not None and match[1] == reference
    if set(reference.split()) <= _POSITION_WORDS:
        match = _POSITION.search(text)
        return match is not None and match[0] == reference
    return re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", text) is not None


_WORDS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_YES, _NO = {"yes", "true"}, {"no", "false"}
_STATED_YES_NO = re.compile(r"\banswer(?:\s+is|\s*:)\s+(\w+)", re.IGNORECASE)


def parse_yes_no(text: str) -> str | None:
    """Return "yes" or "no" if an answer begins with it or states that the answer is that, else None.

    True and false count as yes and no. "Yes and no", "not yes" and "The eyes are blue" are neither.
    """
    answer = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    words: list[str] = _WORDS.findall(answer)
    if not words:
        return None
    if words[0] in _YES | _NO:
        opposite = _NO if words[0] in _YES else _YES
        if len(words) > 2 and words[1] in ("and", "or") and words[2] in opposite:
            return None
        return "yes" if words[0] in _YES else "no"
    stated = {word for word in _STATED_YES_NO.findall(answer) if word in _YES | _NO}
    if not stated or (stated & _YES and stated & _NO):
        return None
    return "yes" if stated & _YES else "no"


def parse_pope_answer(text: str) -> str:
    """Return "yes" or "no" as POPE's evaluation does.

    It is a no if a word before the first full stop is No, not or no, and a yes otherwise; the published figures are
    computed like this.
    """
    words = text.strip().split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def is_explicit_yes_no(text: str) -> bool:
    """Return whether POPE reads an answer's yes or no, instead of counting it as yes by default, even "NO"."""
    return parse_pope_answer(text) == "no" or parse_yes_no(text) == "yes"


def parse_mme_answer(text: str) -> str | None:
    """Return "yes" or "no" as MME's evaluation does, from the first four characters, or None.

    The published figures are computed like this, although "nowhere" counts as a no.
    """
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None
