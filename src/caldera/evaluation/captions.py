"""Captions of annotated images, scored by CIDEr-D against what people wrote."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.evaluation.benchmark import Item, Score, check_answers
from caldera.evaluation.cider import cider_d
from caldera.instructions.wordings import CAPTION_REQUESTS


@dataclass(frozen=True, slots=True)
class CaptionTask:
    """Items that ask for a caption."""

    name: str
    items: Sequence[Item]
    max_new_tokens: int = 40

    def score(self, answers: Mapping[str, str]) -> Score:
        """Return CIDEr-D, between 0 and 10, as the overall score.

        Raises:
            InputError: Answers are missing, or belong to no item.
        """
        check_answers(self.items, answers)
        return Score(cider_d(answers, {item.id: item.references for item in self.items}))


def build_caption_task(annotations: AnnotationSet, *, name: str, beside: Path) -> CaptionTask:
    """Ask for a caption of each image, always in the same words; image paths will start from `beside`."""
    return CaptionTask(
        name,
        tuple(
            Item(
                image.id,
                "caption",
                "caption",
                Conversation(
                    image.id,
                    (
                        Turn(
                            "user",
                            (
                                ImageRef(os.path.relpath(image.path, beside)),
                                f"\n{CAPTION_REQUESTS[0]}",
                            ),
                        ),
                    ),
                ),
                image.captions,
            )
            for image in annotations.images
        ),
    )
