"""Nouns, numbers and lists as people write them."""

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
    ("one", "several"),
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
def test_several_are_named(one: str, several: str) -> None:
    """Regular endings, the irregular nouns among COCO's categories, and words before the noun."""
    assert plural(one) == several


@pytest.mark.parametrize(
    ("noun", "named"),
    [
        ("dog", "a dog"),
        ("umbrella", "an umbrella"),
        ("orange cat", "an orange cat"),
        ("Apple", "an Apple"),
        ("scissors", "scissors"),
        ("snow", "snow"),
    ],
)
def test_an_article_goes_with_the_sound(noun: str, named: str) -> None:
    """'a', 'an', or nothing before what takes none."""
    assert article(noun) == named


def test_numbers_are_words_up_to_twelve() -> None:
    """None is 'no', and what is beyond twelve is written in digits."""
    assert [number_word(count) for count in (0, 1, 7, 12, 13, 140)] == [
        "no", "one", "seven", "twelve", "13", "140",
    ]  # fmt: skip
    assert len({number_word(count) for count in range(30)}) == 30


@pytest.mark.parametrize(
    ("count", "noun", "named"),
    [
        (1, "apple", "an apple"),
        (2, "apple", "two apples"),
        (0, "dog", "no dogs"),
        (13, "person", "13 people"),
        (1, "sheep", "a sheep"),
        (2, "sheep", "two sheep"),
    ],
)
def test_some_things_are_named_with_their_number(count: int, noun: str, named: str) -> None:
    """One takes an article, the rest a number."""
    assert count_phrase(count, noun) == named


def test_lists_end_in_and() -> None:
    """No comma before the 'and'."""
    assert join_with_and(["a dog"]) == "a dog"
    assert join_with_and(["a dog", "a cat"]) == "a dog and a cat"
    assert join_with_and(["a dog", "a cat", "two cups"]) == "a dog, a cat and two cups"


@given(phrases=st.lists(words, min_size=1, max_size=5))
def test_a_list_names_everything_once_in_order(phrases: list[str]) -> None:
    """Taken apart again, it is what was put in."""
    assert join_with_and(phrases).replace(" and ", ", ").split(", ") == phrases


@given(text=st.text("abc Z.?!", min_size=1).filter(str.strip))
def test_a_sentence_made_twice_is_the_same(text: str) -> None:
    """A capital and one closing mark; a question keeps its own."""
    made = sentence(text)
    assert sentence(made) == made
    assert made[-1] in ".?!"
    assert made.casefold().startswith(text.casefold())


def test_a_sentence_begins_with_a_capital_and_leaves_the_rest() -> None:
    """Only the first letter changes."""
    assert sentence("the TV is on") == "The TV is on."
    assert sentence("is it?") == "Is it?"


def test_scenes_use_only_words_with_a_singular_and_a_plural_to_tell_apart() -> None:
    """What is drawn can be counted in words: no kind is without a singular."""
    assert not PLURAL_ONLY & OBJECT_KINDS.keys()
    same = {name for name in OBJECT_KINDS if plural(name) == name}
    assert same == {"sheep", "broccoli"}
    assert all(article(name).endswith(name) for name in (*OBJECT_KINDS, *COLORS, *BACKGROUNDS))
