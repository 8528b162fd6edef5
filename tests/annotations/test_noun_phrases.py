"""Noun phrases of captions are found by function words and frequent verbs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.annotations.noun_phrases import MAX_WORDS, noun_phrases, singular


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Two small dogs are running on the wet grass.", ["small dog", "wet grass"]),
        ("A girl wearing a straw hat", ["girl", "straw hat"]),
        ("a wedding dress and a painted door", ["wedding dress", "painted door"]),
        ("A door painted in green, slowly drying", ["door"]),
        ("The boys look at the watch", ["boy", "watch"]),
        ("The old waiter pours a glass", ["old waiter", "glass"]),
        ("A brick building with a large bed in it", ["brick building", "large bed"]),
        ("A man is tying his shoes", ["man", "shoe"]),
        ("A happy family quickly eats jelly", ["happy family", "jelly"]),
        ("At night the town sleeps", ["night", "town"]),
        ("A woman watches people", ["woman", "person"]),
        ("a red and white shirt", ["white shirt"]),
        ("the child's toy; it's hers", ["child's toy"]),
        ("the child 's toy \N{RIGHT SINGLE QUOTATION MARK}", ["child", "toy"]),
        ("12 apples, 3 pears", ["apple", "pear"]),
        ("a very old dark blue wooden kitchen table", ["blue wooden kitchen table"]),
        ("She is there.", []),
        ("", []),
    ],
)
def test_a_text_has_these_phrases(text: str, phrases: list[str]) -> None:
    """Function words, verbs and punctuation separate phrases; heads are singular."""
    assert noun_phrases(text) == phrases


@pytest.mark.parametrize(
    ("plural", "expected"),
    [
        ("dogs", "dog"), ("boxes", "box"), ("dishes", "dish"), ("glasses", "glasses"), ("ponies", "pony"),
        ("selfies", "selfie"), ("houses", "house"), ("buses", "bus"), ("bus", "bus"), ("people", "person"),
        ("tomatoes", "tomato"), ("shoes", "shoe"), ("dress", "dress"), ("dresses", "dress"), ("gas", "gas"),
    ],
)  # fmt: skip
def test_nouns_are_made_singular(plural: str, expected: str) -> None:
    """The singular follows from the ending, except for irregular words."""
    assert singular(plural) == expected


@given(st.text())
def test_any_text_has_short_phrases_in_lower_case(text: str) -> None:
    """For any caption, phrases have one to four words and no spaces at the ends."""
    for phrase in noun_phrases(text):
        assert 1 <= len(phrase.split(" ")) <= MAX_WORDS
        assert phrase == phrase.strip()
