"""Questions about classes give nothing away."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caldera.annotations.labeled_images import LabeledImage
from caldera.instructions.class_questions import CLASS_QUESTION_KINDS, class_questions

PHRASES = ("a hat", "a pair of pants", "outwear", "roses", "an SUV")
CLOTHING = {
    "a t-shirt": 795,
    "a pair of pants": 468,
    "a longsleeve": 455,
    "a shirt": 290,
    "a skirt": 112,
}


def labeled(labels: Sequence[tuple[str, ...]]) -> list[LabeledImage]:
    """Return an image for each group of labels."""
    return [LabeledImage(Path(f"{i}.jpg"), group, f"digest {i}") for i, group in enumerate(labels)]


def asked_label(text: str, labels: tuple[str, ...]) -> str:
    """Return the class that a question of presence names."""
    [label] = [
        label for label in labels if re.search(rf"\b{label}( in this photo| here)?\?$", text)
    ]
    return label


@given(
    st.lists(st.sets(st.sampled_from(PHRASES), min_size=1, max_size=3), min_size=2, max_size=60),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_each_class_is_affirmed_and_denied_equally_often(groups: list[set[str]], seed: int) -> None:
    """A question and its wording say nothing about its answer, whatever the classes; and each answer is true."""
    images = labeled([tuple(sorted(group)) for group in groups])
    counts: Counter[tuple[str, str]] = Counter()
    for image, questions in zip(images, class_questions(images, ["presence"], seed), strict=True):
        assert len(questions) <= 2
        for question in questions:
            label = asked_label(question.text, PHRASES)
            assert question.answer == ("Yes." if label in image.labels else "No.")
            counts[label, question.answer] += 1
    assert all(counts[label, "Yes."] == counts[label, "No."] for label in PHRASES)


def test_classes_of_uneven_size_have_all_questions() -> None:
    """Nearly every image has a question to affirm and one to deny; the denied class is any of the others."""
    images = labeled([(label,) for label, count in CLOTHING.items() for _ in range(count)])
    questions = class_questions(images, ["presence"], seed=0)
    assert [len(group) for group in questions] == [2] * len(images)
    denied = Counter(
        (image.labels[0], asked_label(question.text, tuple(CLOTHING)))
        for image, group in zip(images, questions, strict=True)
        for question in group
        if question.answer == "No."
    )
    assert len(denied) == len(CLOTHING) * (len(CLOTHING) - 1)


@pytest.mark.parametrize(("majority", "minority"), [(60, 40), (97, 3)])
def test_a_class_with_most_images_stays_balanced(majority: int, minority: int) -> None:
    """Where no balance is possible with all images, there are as many questions as it allows."""
    images = labeled([("a hat",)] * majority + [("outwear",)] * minority)
    answers = Counter(
        (asked_label(question.text, PHRASES), question.answer)
        for group in class_questions(images, ["presence"], seed=3)
        for question in group
    )
    assert set(answers.values()) == {minority}
    assert len(answers) == 4


def test_questions_depend_on_the_seed_and_the_image_alone() -> None:
    """The naming question of an image is the same in any company; another seed gives other wordings."""
    images = labeled([(label,) for label in PHRASES * 4])
    questions = class_questions(images, CLASS_QUESTION_KINDS, seed=1)
    assert questions == class_questions(images, CLASS_QUESTION_KINDS, seed=1)
    assert (
        class_questions(images[3:], ["naming"], seed=1)
        == class_questions(images, ["naming"], seed=1)[3:]
    )
    assert questions != class_questions(images, CLASS_QUESTION_KINDS, seed=2)
    assert len({group[1].text for group in questions}) > 4


def test_answers_are_natural_and_their_variants_accepted() -> None:
    """One class and several, with and without article."""
    single, both = class_questions(
        labeled([("a pair of pants",), ("a hat", "outwear")]), ["caption", "naming"], seed=0
    )
    assert [question.answer for question in single] == [
        "A photo of a pair of pants.",
        "A pair of pants.",
    ]
    assert single[1].accepted[:2] == ("pants", "This is a pair of pants.")
    assert both[1].answer == "A hat and outwear."
