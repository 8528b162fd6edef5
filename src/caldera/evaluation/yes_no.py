"""An answer to a yes-or-no question in, "yes" or "no" out: strictly, and as POPE and MME read it."""

import re
import unicodedata

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
