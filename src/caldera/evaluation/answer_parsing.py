"""Letters, yes/no, contained answers.

`read_choice` is strict: a letter counts where it stands alone, leads the answer with a mark behind it, or is what
"answer is" is said of, in English or Chinese. "A and B", "The answer is not A" and "A dog runs" choose nothing.
"""

import re
import unicodedata
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
"""Names of the choices."""

_OPEN, _SHUT = r"[\s(\[\"'*`]*", r"[\s)\]\"'*`.:,。]*"
"""What may stand around a letter: brackets, quotation marks, and the stars of bold type."""

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
"""A second letter right behind the first, as in "A or B" and "A, B"; asked of a few characters, see `_another`."""

_MAX_DISTANCE = 60
"""Characters behind a letter in which a second one stands right behind it, whatever marks are between."""

_SCIENCE_QA = re.compile(r"The answer is ([A-Z]).")
"""LLaVA's own, whose dot stands for any one character (R: llava/eval/eval_science_qa.py)."""


def parse_choice(text: str, letters: str, choices: Sequence[str] = ()) -> str | None:
    """Return the one letter that an answer clearly chooses, or None.

    Args:
        text: What was answered. Wide Latin letters count as those; letters of other alphabets do not.
        letters: The letters there are to choose from.
        choices: What they stand for, in that order; an answer that repeats one word for word chooses it.
    """
    said = unicodedata.normalize("NFKC", text).strip()
    for read in (_bare_letter, _stated_letter, _leading_letter):
        letter, clear = read(said)
        if letter or not clear:
            return letter if letter and letter in letters else None
    wording = [_bare(choice) for choice in choices]
    return letters[wording.index(_bare(said))] if wording.count(_bare(said)) == 1 else None


def _has_second_letter(behind: str) -> bool:
    """Tell whether a second letter stands right behind the first; no further, as endless marks take square time."""
    return _ANOTHER.match(behind[:_MAX_DISTANCE]) is not None


def _bare(text: str) -> str:
    """Return words without case, outer marks, or doubled spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .\"'*`")


_NOTHING: tuple[str, bool] = ("", True)
"""No letter of this form, and nothing against looking for another."""

_UNCLEAR: tuple[str, bool] = ("", False)
"""It is said that there are several."""


def _bare_letter(said: str) -> tuple[str, bool]:
    """Look for a letter and nothing else: B, (B), **b**, Option B."""
    found = _ALONE.fullmatch(said)
    return (found[1].upper(), True) if found else _NOTHING


def _stated_letter(said: str) -> tuple[str, bool]:
    """Look for what the answer is said to be, once, or the same each time."""
    stated: set[str] = set()
    at = 0
    while found := _STATED.search(said, at):
        if _has_second_letter(found["rest"]):
            return _UNCLEAR
        stated.add(found[1])
        at = found.end(1)
    if len(stated) > 1:
        return _UNCLEAR
    return (stated.pop(), True) if stated else _NOTHING


def _leading_letter(said: str) -> tuple[str, bool]:
    """Look for a letter with a mark behind it before anything else: B. a bear."""
    found = _LEADS.match(said)
    if not found:
        return _NOTHING
    behind = said[found.end(1) :]
    again = _LEADS.match(found["rest"] or "")
    if _has_second_letter(behind) or (again and again[1] != found[1]):
        return _UNCLEAR
    return found[1], True


def science_qa_letter_by_llava(text: str) -> str | None:
    """Return the letter that LLaVA's evaluation of ScienceQA reads, or None where it finds none (spec 5.3).

    It is kept as it is to say what the authors' own rule gives: "The answer is B" without a full stop fails, and so do
    two such sentences, while "The answer is Apple." is read as A.
    """
    if text in tuple("ABCDE"):
        return text
    if len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        return text[0]
    found = _SCIENCE_QA.findall(text)
    return found[0] if len(found) == 1 else None


def science_qa_letter(text: str, choices: Sequence[str] = ()) -> str | None:
    """Return the letter that an answer to ScienceQA chooses, or None.

    What LLaVA's rule reads is taken where the letter ends its word and no second one follows; where that rule fails,
    `read_choice` decides. On LLaVA's own answers, the two give the same 4,241 letters, one of them beyond the choices.
    """
    by_llava = science_qa_letter_by_llava(text)
    found = _SCIENCE_QA.search(text)
    behind = text[found.end(1) :] if found else ""
    if by_llava and not behind[:1].isalpha() and not _has_second_letter(behind):
        return by_llava
    return parse_choice(text, LETTERS, choices)


_VERDICT = re.compile(r"\banswer is (yes|no)\b")
_EITHER = re.compile(r"\b(yes|no)\b")
_PLACE = re.compile(r"\b(?:top|bottom) (?:left|right)\b|\b(?:top|bottom|left|right|middle)\b")
_PLACES = ("top", "bottom", "left", "right", "middle")


def contains_answer(reference: str, answer: str) -> bool:
    """Tell whether an answer says what a reference of a word or phrase says.

    For yes and no "the answer is ..." decides, else the first of the two words; of a place all of it must be said, so
    that "top left" does not say "left"; anything else has to occur in whole words.
    """
    said, wanted = " ".join(answer.lower().split()), reference.lower()
    if wanted in ("yes", "no"):
        found = _VERDICT.search(said) or _EITHER.search(said)
        return found is not None and found[1] == wanted
    if set(wanted.split()) <= {*_PLACES}:
        place = _PLACE.search(said)
        return place is not None and place[0] == wanted
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", said) is not None


_WORDS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_YES, _NO = {"yes", "true"}, {"no", "false"}
_STATED_YES_NO = re.compile(r"\banswer(?:\s+is|\s*:)\s+(\w+)", re.IGNORECASE)


def parse_yes_no(text: str) -> str | None:
    """Return "yes" or "no" where an answer begins with it or says that the answer is that, else None.

    True and false count as yes and no. "Yes and no", "not yes" and "The eyes are blue" are neither.
    """
    said = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    words: list[str] = _WORDS.findall(said)
    if not words:
        return None
    if words[0] in _YES | _NO:
        other = _NO if words[0] in _YES else _YES
        if len(words) > 2 and words[1] in ("and", "or") and words[2] in other:
            return None
        return "yes" if words[0] in _YES else "no"
    stated = {word for word in _STATED_YES_NO.findall(said) if word in _YES | _NO}
    if not stated or (stated & _YES and stated & _NO):
        return None
    return "yes" if stated & _YES else "no"


def parse_pope_answer(text: str) -> str:
    """Return "yes" or "no" as POPE's evaluation reads it (spec 7).

    It is a no if a word before the first full stop is No, not or no. Everything else is a yes, whatever it says: the
    published figures are counted so.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def is_explicit_yes_no(text: str) -> bool:
    """Tell whether an answer says yes or no at all, rather than being counted as a yes for want of a no."""
    return parse_pope_answer(text) == "no" or parse_yes_no(text) is not None


def parse_mme_answer(text: str) -> str | None:
    """Return "yes" or "no" as MME's evaluation reads it, from the first four characters, or None.

    The published figures are counted so, although "nowhere" is a no that way.
    """
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None
