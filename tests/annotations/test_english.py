"""Tests of English nouns, numbers and lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.annotations.english import (
    PLURAL_ONLY,
    article,
    count_phrase,
    join_with_and,
    number_word,
    plural,
    sentence,
)
from caldera.scenes.scene import BACKGROUNDS, COLORS, OBJECT_KINDS

words = st.text("abcdefghij", min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("singular", "expected"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("box", "boxes"),
        ("bench", "benches"),
        ("toothbrush", "toothbrushes"),
        ("wine glass", "wine glasses"),
        ("person", "people"),
        ("white sheep", "white sheep"),
        ("computer mouse", "computer mice"),
        ("butter knife", "butter knives"),
        ("puppy", "puppies"),
        ("toy", "toys"),
        ("broccoli", "broccoli"),
        ("skis", "skis"),
        ("scissors", "scissors"),
        ("hot dog", "hot dogs"),
        ("giraffe", "giraffes"),
    ],
)
def test_plural(singular: str, expected: str) -> None:
    """Regular endings, the irregular nouns among COCO's categories, and words before the noun."""
    assert plural(singular) == expected


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("dog", "a dog"),
        ("umbrella", "an umbrella"),
        ("orange cat", "an orange cat"),
        ("Apple", "an Apple"),
        ("scissors", "scissors"),
        ("snow", "snow"),
    ],
)
def test_article_depends_on_the_first_letter(noun: str, expected: str) -> None:
    """'a', 'an', or none for nouns without an article."""
    assert article(noun) == expected


def test_numbers_are_words_up_to_twelve() -> None:
    """0 is 'no', and numbers above twelve are digits."""
    assert [number_word(count) for count in (0, 1, 7, 12, 13, 140)] == [
        "no", "one", "seven", "twelve", "13", "140",
    ]  # fmt: skip
    assert len({number_word(count) for count in range(30)}) == 30


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (1, "apple", "an apple"),
        (2, "apple", "two apples"),
        (0, "dog", "no dogs"),
        (13, "person", "13 people"),
        (1, "sheep", "a sheep"),
        (2, "sheep", "two sheep"),
    ],
)
def test_count_phrase(count: int, noun: str, expected: str) -> None:
    """1 is an article, any other count a number."""
    assert count_phrase(count, noun) == expected


def test_lists_end_with_and() -> None:
    """There is no comma before 'and'."""
    assert join_with_and(["a dog"]) == "a dog"
    assert join_with_and(["a dog", "a cat"]) == "a dog and a cat"
    assert join_with_and(["a dog", "a cat", "two cups"]) == "a dog, a cat and two cups"


@given(phrases=st.lists(words, min_size=1, max_size=5))
def test_a_list_contains_every_phrase_in_order(phrases: list[str]) -> None:
    """Split again, it gives the phrases."""
    assert join_with_and(phrases).replace(" and ", ", ").split(", ") == phrases


@given(text=st.text("abc Z.?!", min_size=1).filter(str.strip))
def test_sentence_is_idempotent(text: str) -> None:
    """It adds a capital and one closing mark; a question mark is kept."""
    result = sentence(text)
    assert sentence(result) == result
    assert result[-1] in ".?!"
    assert result.casefold().startswith(text.casefold())


def test_a_sentence_begins_with_a_capital() -> None:
    """Only the first letter changes."""
    assert sentence("the TV is on") == "The TV is on."
    assert sentence("is it?") == "Is it?"


def test_nouns_of_scenes_can_be_counted() -> None:
    """Every object kind has a singular, and all but two a distinct plural."""
    assert not PLURAL_ONLY & OBJECT_KINDS.keys()
    same = {name for name in OBJECT_KINDS if plural(name) == name}
    assert same == {"sheep", "broccoli"}
    assert all(article(name).endswith(name) for name in (*OBJECT_KINDS, *COLORS, *BACKGROUNDS))
