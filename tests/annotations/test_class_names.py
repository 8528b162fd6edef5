"""Class names become noun phrases."""

import pytest

from caldera.annotations.class_names import class_phrase, class_words
from caldera.errors import AnnotationError


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("hat", "a hat"),
        ("umbrella", "an umbrella"),
        ("uniform", "a uniform"),
        ("hourglass", "an hourglass"),
        ("t-shirt", "a t-shirt"),
        ("T-Shirt", "a t-shirt"),
        ("x-ray", "an x-ray"),
        ("Long_Sleeve", "a long sleeve"),
        ("long-sleeve", "a long sleeve"),
        ("GoldenRetriever", "a golden retriever"),
        ("SUV", "an SUV"),
        ("USB_stick", "a USB stick"),
        ("pants", "a pair of pants"),
        ("running shoes", "a pair of running shoes"),
        ("dress", "a dress"),
        ("bus", "a bus"),
        ("iris", "an iris"),
        ("roses", "roses"),
        ("outwear", "outwear"),
        ("corrugated cardboard", "corrugated cardboard"),
        ("n02085620-Chihuahua", "a chihuahua"),
        ("001.Black_footed_Albatross", "a black footed albatross"),
        ("the Eiffel tower", "the eiffel tower"),
        ("+", "a +"),
        ("\N{CAT FACE}", "a \N{CAT FACE}"),
    ],
)
def test_a_phrase_fits_into_a_sentence(name: str, phrase: str) -> None:
    """Articles follow the sound, pairs are pairs, and plurals and mass nouns have none."""
    assert class_phrase(name) == phrase


def test_two_spellings_of_a_class_are_equal() -> None:
    """Case, underscores and hyphens do not make another class."""
    names = ("long_sleeve", "Long Sleeve", "long-sleeve", "LongSleeve")
    assert len({class_words(name) for name in names}) == 1


@pytest.mark.parametrize(
    "name",
    ["", "   ", "__", "---", " . ", "()", "\u200b", "\u0301", "\x1b[31mred", "a\0b", "\udcff", "cat\ud800"],
)  # fmt: skip
def test_a_name_that_cannot_be_read_is_an_error(name: str) -> None:
    """Blanks, punctuation, invisible and control characters, and half a character make no question."""
    with pytest.raises(
        AnnotationError, match=r"cannot be read.*rename the class, or give its noun"
    ):
        class_phrase(name)
