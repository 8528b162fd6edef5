"""Words of captions: their keys, which forms and synonyms share, and nouns that the parser of captions knows."""

import re
from functools import cache

from caldera.annotations.english import plural
from caldera.annotations.noun_phrases import FUNCTION_WORDS, singular, word_set
from caldera.instructions.coco_knowledge import CATEGORIES_WITH_PURPOSE, GROUPED, OTHER_NAMES

TOKEN = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*|[^\s\w]")
"""A word or a punctuation mark."""

ANIMATE_HEADS = word_set(
    """
    man men woman women boy boys girl girls child children kid kids baby lady ladies guy guys player players person
    people couple toddler skier skiers surfer surfers skateboarder snowboarder biker cyclist rider pitcher batter
    catcher umpire athlete worker workers teenager teen teens adult adults mother father climber runner swimmer hiker
    dog dogs puppy puppies cat cats kitten bird birds horse horses sheep cow cows elephant elephants bear bears zebra
    zebras giraffe giraffes lamb goat goats duck ducks panda pony monkey lion tiger deer squirrel rabbit
    """
)
"""Heads of subjects that act, so that one may ask what they do."""


def normalize_caption(caption: str) -> str:
    """Return a caption without stray blanks, repeated full stops and capitals, and without its last full stop."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(caption.split()))
    text = re.sub(r"\s+'s\b", "'s", text)
    if text.isupper() and " " in text:
        text = text.lower()
    return text.rstrip(" .,;:")


@cache
def stem(word: str) -> str:
    """Return the same text for forms of a word: 'sits' and 'sitting'."""
    word = singular(word.lower().partition("'")[0].partition("\u2019")[0])
    for ending in ("ing", "ed", "e"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lse" else word


@cache
def word_key(word: str) -> str:
    """Return the same text for forms and synonyms of a word: 'sofa' and 'couches'."""
    word = singular(word.lower().partition("'")[0].partition("\u2019")[0])
    return stem(_SYNONYMS.get(word, word))


def content_words(text: str) -> list[str]:
    """Return the words of a text that are neither function words nor punctuation."""
    return [
        word
        for word in TOKEN.findall(text)
        if word[0].isalnum() and word.lower().partition("'")[0] not in FUNCTION_WORDS
    ]


def content_keys(text: str) -> list[str]:
    """Return the keys of the content words of a text, in order, each once."""
    return list(dict.fromkeys(word_key(word) for word in content_words(text)))


def _synonyms() -> dict[str, str]:
    """Return a common word for each name that stands for one category, and for words of places."""
    table: dict[str, set[str]] = {}
    for category, names in OTHER_NAMES.items():
        for name in names:
            if " " not in name and " " not in category:
                table.setdefault(name, set()).add(category)
    unique = {
        name: next(iter(categories)) for name, categories in table.items() if len(categories) == 1
    }
    unique |= {plural(name): category for name, category in unique.items()}
    groups = (
        "ocean sea", "road street roadway", "path trail pathway", "photo picture image", "hill hillside",
        "ground floor", "grass grassy", "snow snowy", "sand sandy", "frisbee disc", "restroom bathroom",
        "racket racquet", "meal dinner lunch breakfast", "leaf leafy", "wood wooden", "rock rocky stone",
    )  # fmt: skip
    for group in groups:
        first, *others = group.split()
        unique |= dict.fromkeys(others, first)
    return unique


_SYNONYMS = _synonyms()

KNOWN_NOUNS = frozenset({*GROUPED, *CATEGORIES_WITH_PURPOSE, *OTHER_NAMES, *_SYNONYMS})
