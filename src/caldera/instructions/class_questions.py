"""Labeled images in, questions about their classes out.

No question gives its answer away: each class is asked about in as many questions whose answer is yes as whose answer is
no, and the wording is sampled without regard to the answer. The wordings fit nouns of any number.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from caldera.annotations.english import join_with_and, sentence
from caldera.annotations.labeled_images import LabeledImage
from caldera.instructions.request_phrases import CAPTION_REQUESTS

ClassQuestionKind = Literal["caption", "naming", "presence"]

CLASS_QUESTION_KINDS: tuple[ClassQuestionKind, ...] = get_args(ClassQuestionKind)

_NAMING_QUESTIONS = (
    "What does the photo show?",
    "What is in this photo?",
    "What is this?",
    "What can be seen here?",
    "What am I looking at?",
    "What kind of thing is this?",
    "Which kind of item is in the photo?",
    "Name what is in the photo.",
    "Say what you see here.",
    "What would you call this?",
)
_PRESENCE_QUESTIONS = (
    "Is this a photo of {}?",
    "Does the photo show {}?",
    "Can you see {} in this photo?",
    "Do you see {} here?",
    "Would you say that this shows {}?",
    "Could this be a photo of {}?",
)


@dataclass(frozen=True, slots=True)
class ClassQuestion:
    """A question about the class of an image."""

    kind: ClassQuestionKind
    text: str
    answer: str

    accepted: tuple[str, ...] = ()
    """Further answers that are right."""


def class_questions(
    images: Sequence[LabeledImage], kinds: Sequence[ClassQuestionKind], seed: int
) -> list[list[ClassQuestion]]:
    """Return the questions about each image: of each kind one, of presence one to be affirmed and one to be denied.

    Where one class has more than half of the images, some of these have no question to be affirmed or denied.
    """
    presence = _presence_labels(images, random.Random(f"presence {seed}"))
    return [
        [
            question
            for kind in kinds
            for question in _questions(kind, image, labels, random.Random(f"{seed} {image.digest}"))
        ]
        for image, labels in zip(images, presence, strict=True)
    ]


_PresenceLabels = tuple[str | None, str | None]
"""A class that an image shows and one that it does not show; None without a question."""


def _presence_labels(images: Sequence[LabeledImage], rng: random.Random) -> list[_PresenceLabels]:
    """Return classes to ask about, each as often to images that show it as to images that do not.

    The classes to be denied are those to be affirmed, in another order, so that their numbers are equal.
    """
    present: list[str | None] = [rng.choice(image.labels) for image in images]
    absent = list(present)
    rng.shuffle(absent)
    order = list(range(len(images)))
    rng.shuffle(order)
    unsolvable: set[tuple[tuple[str, ...], str | None]] = set()
    for index in order:
        labels, label = images[index].labels, absent[index]
        if label not in labels:
            continue
        start = rng.randrange(len(order))
        partner = None
        if (labels, label) not in unsolvable:
            partner = next(
                (
                    other
                    for other in (*order[start:], *order[:start])
                    if absent[other] not in labels and label not in images[other].labels
                ),
                None,
            )
        if partner is None:
            unsolvable.add((labels, label))
        else:
            absent[index], absent[partner] = absent[partner], label
    absent = [
        None if label in image.labels else label
        for image, label in zip(images, absent, strict=True)
    ]
    surplus = Counter(present) - Counter(absent)
    for index in order:
        if surplus[present[index]] > 0:
            surplus[present[index]] -= 1
            present[index] = None
    return list(zip(present, absent, strict=True))


def _questions(
    kind: ClassQuestionKind, image: LabeledImage, presence: _PresenceLabels, rng: random.Random
) -> list[ClassQuestion]:
    """Return the questions of one kind about an image."""
    phrase = join_with_and(image.labels)
    match kind:
        case "caption":
            return [ClassQuestion(kind, rng.choice(CAPTION_REQUESTS), f"A photo of {phrase}.")]
        case "naming":
            text = rng.choice(_NAMING_QUESTIONS)
            return [ClassQuestion(kind, text, sentence(phrase), _accepted_names(image.labels))]
        case "presence":
            return [
                ClassQuestion(kind, rng.choice(_PRESENCE_QUESTIONS).format(label), answer)
                for label, answer in zip(presence, ("Yes.", "No."), strict=True)
                if label is not None
            ]


def _accepted_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return other ways to name the classes of an image: without an article, or in a sentence."""
    if len(labels) > 1:
        return ()
    [phrase] = labels
    bare = phrase.removeprefix("a ").removeprefix("an ").removeprefix("pair of ")
    return bare, f"This is {phrase}.", f"It is {phrase}.", f"The photo shows {phrase}."
