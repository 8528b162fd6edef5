"""What answers say: a fixed table of traps (faults H6), strict reading and the authors' own."""

import pytest

from caldera.evaluation.answer_parsing import (
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
def test_a_letter_is_read_or_none_is(text: str, letter: str | None) -> None:
    """One clear choice is read; two, a denied one, and a letter that is a word are not."""
    assert parse_choice(text, "ABC", CHOICES) == letter


@pytest.mark.parametrize(("text", "said"), BOOLEANS)
def test_yes_or_no_is_read_or_none_is(text: str, said: str | None) -> None:
    """Yes and no count as words where the answer begins, not inside others."""
    assert parse_yes_no(text) == said


@pytest.mark.parametrize(
    ("text", "by_llava", "here"),
    [
        ("B", "B", "B"), ("B. a dog", "B", "B"), ("So.\n The answer is B.", "B", "B"), ("B.", None, "B"),
        ("The answer is B", None, "B"), ("The answer is B. The answer is B.", None, "B"),
        ("The answer is Apple.", "A", None), ("The answer is A and B.", "A", None), ("F", None, "F"),
        ("LECTURE: a.\n###\nANSWER: B.", None, "B"), ("(A", None, "A"), ("A and B", None, None),
    ],
)  # fmt: skip
def test_science_qa_is_read_as_llava_reads_it_but_for_its_faults(
    text: str, by_llava: str | None, here: str | None
) -> None:
    """A sentence without a full stop is read, a word that starts with the letter is not."""
    assert science_qa_letter_by_llava(text) == by_llava
    assert science_qa_letter(text) == here


@pytest.mark.parametrize(
    ("text", "pope", "told", "mme"),
    [
        ("Yes", "yes", True, "yes"), ("No", "no", True, "no"), ("NO", "yes", True, "no"),
        ("There is not, really", "no", True, None), ("It is. No", "yes", False, None), ("eyes", "yes", False, "yes"),
        ("Nowhere", "yes", False, "no"), ("", "yes", False, None), ("based on it, no", "no", True, None),
    ],
)  # fmt: skip
def test_pope_and_mme_are_read_as_their_authors_read_them(
    text: str, pope: str, told: bool, mme: str | None
) -> None:
    """POPE takes for a yes what holds no no; MME looks at four characters; what POPE only guesses is told apart."""
    assert (parse_pope_answer(text), is_explicit_yes_no(text), parse_mme_answer(text)) == (
        pope,
        told,
        mme,
    )
