"""Noun phrases of class names, as folders and label columns write them: 'a t-shirt', 'a pair of pants', 'roses'."""

import re
import unicodedata

from caldera.annotations.noun_phrases import word_set
from caldera.errors import AnnotationError

_CLASS_NUMBER = re.compile(r"^(n\d{8}|\d+)[ ._-]+(?=\D)")
"""ImageNet's synset or a running number before a name: n02085620-Chihuahua, 001.Black_footed_Albatross."""

_WORD_BREAK = re.compile(r"_+|\s+|(?<=[a-z])(?=[A-Z])|(?<=\w\w)-+(?=\w)")
"""Where a name is cut into words; the hyphen after a single letter stays, as in t-shirt."""

_ACRONYM_LENGTH = 3
"""Letters of a word in capitals that stays in capitals, as in TV or SUV."""

_PAIRS = word_set(
    """
    binoculars boots briefs earphones earrings earbuds gloves goggles headphones heels jeans joggers knickers
    leggings loafers mittens overalls pajamas panties pants pliers pyjamas sandals scissors shoes shorts skates skis
    slacks slippers sneakers socks stockings sunglasses eyeglasses sweatpants tights trainers trousers trunks tweezers
    underpants
    """
)
"""Nouns that are counted in pairs."""

_MASS_NOUNS = word_set(
    """
    activewear apparel bread broccoli butter cardboard cheese chocolate clothing coffee concrete corn cutlery
    electronics equipment eyewear fish flour food footwear fruit furniture garbage garlic ginger glass glassware grass
    hardware ice
    jewellery jewelry knitwear lettuce lingerie luggage meat metal milk mud nightwear nothing outerwear outwear paper
    pasta people plastic popcorn produce rain rice rust sand sheep smoke snow soap soil spinach sportswear stationery
    swimwear trash underwear waste water wheat wood wool
    """
)
"""Nouns without an article."""

_SINGULAR_IN_S = re.compile(r"(ss|us|is|as|news|lens)$")
"""Ends of nouns that are no plurals: dress, bus, iris, canvas."""

_SPOKEN_VOWEL = re.compile(
    r"(?!(u[bcfhjkqrst]?[aeiou]|uni(?!n|m)|eu|one\b|once\b))[aeiou]|(hour|heir|honest)"
)
_LETTER_NAME = re.compile(r"[a-z](?![a-z])|[A-Z]{2,}(?![a-z])")
_VOWEL_LETTERS = frozenset("aefhilmnorsxAEFHILMNORSX")
"""Letters whose names begin with a vowel: an x-ray, an SUV, a t-shirt, a TV."""


def class_words(name: str) -> str:
    """Return a class name as words: 'Long_Sleeve' -> 'long sleeve', 'n02085620-Chihuahua' -> 'chihuahua'.

    Raises:
        AnnotationError: The name has no text that can be read.
    """
    words = " ".join(
        word if word.isupper() and 1 < len(word) <= _ACRONYM_LENGTH else word.lower()
        for word in _WORD_BREAK.split(_CLASS_NUMBER.sub("", name.strip(" ._-")))
        if word
    )
    categories = {unicodedata.category(character) for character in words}
    if not any(category[0] in "LNS" for category in categories) or categories & {"Cc", "Cs"}:
        raise AnnotationError(
            f"the class name {name!r} cannot be read: it needs a letter, a digit or a symbol, and no control character "
            "or half a character (a lone surrogate); rename the class, or give its noun phrase with --phrases"
        )
    return words


def class_phrase(name: str) -> str:
    """Return a class name as a noun phrase that fits into a sentence: 'a t-shirt', 'a pair of shorts', 'roses'.

    Raises:
        AnnotationError: The name has no text that can be read.
    """
    words = class_words(name)
    last = words.rpartition(" ")[2]
    if last in _PAIRS:
        return f"a pair of {words}"
    if last in _MASS_NOUNS or words.startswith(("a ", "an ", "the ", "some ", "no ")):
        return words
    if last.endswith("s") and len(last) > _ACRONYM_LENGTH and not _SINGULAR_IN_S.search(last):
        return words
    return f"{_article(words)} {words}"


def _article(words: str) -> str:
    """Return the indefinite article by the sound that follows."""
    if _LETTER_NAME.match(words):
        return "an" if words[0] in _VOWEL_LETTERS else "a"
    return "an" if _SPOKEN_VOWEL.match(words.lower()) else "a"
