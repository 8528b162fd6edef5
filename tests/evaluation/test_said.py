"""A free answer says a reference out, or it does not."""

import pytest

from caldera.evaluation.answer_parsing import contains_answer


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
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
def test_an_answer_says_its_reference(reference: str, answer: str, right: bool) -> None:
    """In whole words; yes and no by the verdict, places by all of their words."""
    assert contains_answer(reference, answer) is right
