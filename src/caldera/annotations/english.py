"""English nouns, numbers and lists, for captions and scripted answers."""

from collections.abc import Sequence

_PLURALS = {
    "person": "people",
    "sheep": "sheep",
    "mouse": "mice",
    "knife": "knives",
    "broccoli": "broccoli",
    "skis": "skis",
    "scissors": "scissors",
}

PLURAL_ONLY = frozenset({"skis", "scissors"})
"""Nouns without a singular, and so without an article or a count."""

_NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip


def plural(noun: str) -> str:
    """Return the plural: 'dog' -> 'dogs', 'wine glass' -> 'wine glasses', 'white sheep' -> 'white sheep'."""
    *before, last = noun.split(" ")
    if last in _PLURALS:
        return " ".join((*before, _PLURALS[last]))
    if last.endswith("y") and last[-2:-1] not in (*"aeiou", ""):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "sh", "ch", "x")) else f"{noun}s"


def article(noun: str) -> str:
    """Return a noun with its indefinite article, if it takes one."""
    if noun in PLURAL_ONLY or noun == "snow":
        return noun
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def number_word(count: int) -> str:
    """Return a number as a word up to twelve, in digits above."""
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def count_phrase(count: int, noun: str) -> str:
    """Return a noun with its count: 'a dog', 'two dogs'."""
    return article(noun) if count == 1 else f"{number_word(count)} {plural(noun)}"


def join_with_and(phrases: Sequence[str]) -> str:
    """Join phrases with commas and 'and'."""
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def sentence(text: str) -> str:
    """Capitalize a text and end it with a full stop."""
    return f"{text[0].upper()}{text[1:]}{'' if text[-1] in '.?!' else '.'}"
