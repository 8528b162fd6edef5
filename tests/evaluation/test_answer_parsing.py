"""Parsing of answers on a table of traps (faults H6): strict rules, and those of the benchmarks' authors."""

import pytest

from caldera.evaluation.answer_parsing import (
    contains_answer,
    is_explicit_yes_no,
    parse_choice,
    parse_mme_answer,
    parse_pope_answer,
    parse_yes_no,
    science_qa_letter,
    science_qa_letter_by_llava,
)

CHOICES = ("a bear", "a dog", "both")

LETTERS = [
    ("B", "B"), ("b", "B"), (" B.\n", "B"), ("(B)", "B"), ("**B**", "B"), ("Option B", "B"), ("(A", "A"), ("A)", "A"),
    ("B. a dog", "B"), ("(B) a dog", "B"), ("B: a dog", "B"), ("The answer is B", "B"), ("The answer is B.", "B"),
    ("The answer is (B) because it barks.", "B"), ("Answer: **B**", "B"),
    ("LECTURE: A is first.\n###\nANSWER: C.", "C"),
    ("The answer is B. So the answer is B.", "B"), ("A dog", "B"), ("a dog.", "B"), ("Both", "C"), ("\uff22", "B"),
    ("\u24b7", "B"), ("The answer is not A, the answer is B.", "B"),
    ("答案是B。", "B"), ("选B", "B"), ("B。", "B"), ("答案不是B", None), ("不选B", None),
    ("A and B", None), ("A or B", None), ("A, B", None), ("A/B", None), ("A. or B.", None), ("A. B.", None),
    ("(A) and (B)", None), ("The answer is A and B.", None), ("The answer is A or B", None),
    ("The answer is A, B.", None),
    ("The answer is A. The answer is B.", None), ("The answer is not A", None), ("The answer is not A.", None),
    ("The answer isn't A.", None), ("Not A", None), ("A dog runs", None), ("The answer is A dog runs", None),
    ("The answer is Apple.", None), ("An apple", None), ("I think so", None), ("\u0410", None), ("\u0392", None),
    ("D", None), ("The answer is D.", None), ("AB", None), ("", None), ("none", None), ("E. coli", None),
]  # fmt: skip

BOOLEANS = [
    ("Yes", "yes"), ("yes.", "yes"), ("No, there is none.", "no"), ("Yes, there is no dog.", "yes"), ("**Yes**", "yes"),
    ("True", "yes"), ("false.", "no"), ("The answer is no.", "no"), ("\uff39\uff45\uff53", "yes"),
    ("The eyes are blue", None), ("eyes", None), ("Yesterday", None), ("yes and no", None), ("Yes or no?", None),
    ("The answer is not yes", None), ("Nowhere", None), ("None", None), ("not sure", None), ("", None), ("1", None),
    ("It is there.", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), LETTERS)
def test_one_clear_letter_is_parsed(text: str, letter: str | None) -> None:
    """H6: two letters, a negated one, and a letter that is a word give None."""
    assert parse_choice(text, "ABC", CHOICES) == letter


@pytest.mark.parametrize(("text", "word"), BOOLEANS)
def test_a_clear_yes_or_no_is_parsed(text: str, word: str | None) -> None:
    """H6: yes and no count as whole words at the beginning of the answer."""
    assert parse_yes_no(text) == word


@pytest.mark.parametrize(
    ("text", "by_llava", "letter"),
    [
        ("B", "B", "B"), ("B. a dog", "B", "B"), ("So.\n The answer is B.", "B", "B"), ("B.", None, "B"),
        ("The answer is B", None, "B"), ("The answer is B. The answer is B.", None, "B"),
        ("The answer is Apple.", "A", None), ("The answer is A and B.", "A", None), ("F", None, "F"),
        ("LECTURE: a.\n###\nANSWER: B.", None, "B"), ("(A", None, "A"), ("A and B", None, None),
    ],
)  # fmt: skip
def test_science_qa_letters_are_those_of_llava_without_its_faults(
    text: str, by_llava: str | None, letter: str | None
) -> None:
    """A sentence without a full stop is accepted, a word that starts with the letter is not."""
    assert science_qa_letter_by_llava(text) == by_llava
    assert science_qa_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "pope", "explicit", "mme"),
    [
        ("Yes", "yes", True, "yes"), ("No", "no", True, "no"), ("NO", "yes", False, "no"), ("No\n", "no", True, "no"),
        ("There is not, really", "no", True, None), ("It is. No", "yes", False, None), ("eyes", "yes", False, "yes"),
        ("Nowhere", "yes", False, "no"), ("", "yes", False, None), ("based on it, no", "no", True, None),
    ],
)  # fmt: skip
def test_pope_and_mme_answers_are_parsed_as_by_their_authors(
    text: str, pope: str, explicit: bool, mme: str | None
) -> None:
    """POPE counts every answer without a no as a yes; MME uses four characters; POPE's guesses are marked."""
    assert (parse_pope_answer(text), is_explicit_yes_no(text), parse_mme_answer(text)) == (
        pope,
        explicit,
        mme,
    )


@pytest.mark.parametrize(
    ("reference", "answer", "contained"),
    [
        ("yes", "Yes. There is a dog.", True),
        ("yes", "There is no cat, but a dog. The answer is yes.", True),
        ("no", "There is a dog. The answer is yes.", False),
        ("no", "I see nothing of the kind.", False),
        ("yes", "I see with my own eyes", False),
        ("left", "It is on the left.", True),
        ("left", "It is at the top left.", False),
        ("top left", "The dog is at the top left.", True),
        ("top", "It is at the top.", True),
        ("two", "There are two dogs.", True),
        ("two", "There are twelve.", False),
        ("ten", "There are often some.", False),
        ("hot dog", "The image shows a Hot  Dog.", True),
        ("dog", "", False),
    ],
)
def test_an_answer_contains_a_reference(reference: str, answer: str, contained: bool) -> None:
    """As whole words; yes and no by the verdict, positions by all of their words."""
    assert contains_answer(reference, answer) is contained
