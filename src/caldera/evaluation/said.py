"""A free answer and a reference in, whether the answer says it out: for models taught to answer in sentences."""

import re

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
