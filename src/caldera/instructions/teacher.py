"""What a teacher is: given a kind and the annotations of some images, it writes questions and answers.

Kinds are LLaVA's three (arXiv 2304.08485, section 3), the captions of stage 1, the short answers of LLaVA-1.5, and
`context`: several images in one dialogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from caldera.annotations.annotated_image import AnnotatedImage

Kind = Literal["caption", "conversation", "detail", "reasoning", "vqa", "context"]

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer."""

    question: str
    answer: str


class NothingToWrite(Exception):  # noqa: N818 - not an error: the teacher declines, and says why
    """The annotations do not hold what this kind needs."""


class Teacher(Protocol):
    """Writes instruction data from annotations; it never sees an image."""

    name: str

    def write(self, kind: Kind, images: Sequence[AnnotatedImage]) -> list[Exchange]:
        """Write one dialogue about `images` (one, or several for the kind "context").

        Raises:
            Refusal: The annotations do not hold what the kind needs.
        """
        ...
