"""Kind, Exchange, Teacher; dialogues to write.

Kinds are LLaVA's three (arXiv 2304.08485, section 3), the captions of stage 1, the short answers of LLaVA-1.5, and
`context`: several images in one dialogue.
"""

import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet
from caldera.conversation import Conversation, ImageRef, Turn, label_images, to_record
from caldera.errors import ConversationError
from caldera.llm_client.client import NothingToWrite

Kind = Literal["caption", "conversation", "detail", "reasoning", "vqa", "context"]

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer."""

    question: str
    answer: str


class Teacher(Protocol):
    """Writes instruction data from annotations; it never sees an image."""

    name: str

    def write(self, kind: Kind, images: Sequence[AnnotatedImage]) -> list[Exchange]:
        """Write one dialogue about `images` (one, or several for the kind "context").

        Raises:
            Refusal: The annotations do not hold what the kind needs.
        """
        ...


Tick = Callable[[], None]
"""Called once for every dialogue asked of the teacher."""


@dataclass(slots=True)
class GeneratedData:
    """What came of a run."""

    conversations: list[Conversation] = field(default_factory=list)
    by_kind: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    """Dialogues the teacher declined, by kind and reason."""


def generate_dialogues(
    annotations: AnnotationSet,
    teacher: Teacher,
    kinds: Mapping[Kind, float],
    *,
    seed: int,
    beside: Path,
    tick: Tick = lambda: None,
) -> GeneratedData:
    """Have the teacher write about every image.

    Args:
        annotations: Images with what people said about them.
        teacher: Writes the dialogues.
        kinds: How many dialogues of a kind to write for an image; 0.3 means for three images in ten.
        seed: Decides which images get a kind with a share, which stand together, and the order of text and image.
        beside: Folder of the data file; image paths are written relative to it.
        tick: Called after each dialogue, for a progress bar.

    Returns:
        Conversations in the order of the images, and what was refused.
    """
    written = GeneratedData()
    for dialogue in dialogues(annotations.images, kinds, seed):
        try:
            exchanges = teacher.write(dialogue.kind, dialogue.images)
            written.conversations.append(dialogue.conversation(exchanges, beside))
            written.by_kind[dialogue.kind] += 1
        except (NothingToWrite, ConversationError) as reason:
            told = str(reason).replace(f"record {dialogue.id!r}", "it")
            written.rejected[f"{dialogue.kind}: {told}"] += 1
        tick()
    return written


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One dialogue that is to be written, whoever the teacher is."""

    id: str
    """Name of its record: its images and its kind."""

    kind: Kind
    images: tuple[AnnotatedImage, ...]
    """One image; several for the kind "context"."""

    rng: random.Random
    """Its own source of chance, which hangs on no other dialogue; each draw from it is meant once."""

    def conversation(self, exchanges: Sequence[Exchange], beside: Path) -> Conversation:
        """Make the conversation of a teacher's exchanges, with paths of images relative to `beside`.

        Raises:
            RecordError: A text says <image>, which no data file could hold.
        """
        made = _conversation(self.id, self.images, exchanges, beside, self.rng)
        to_record(made)
        return made


def dialogues(
    images: Sequence[AnnotatedImage], kinds: Mapping[Kind, float], seed: int
) -> Iterator[Dialogue]:
    """Yield every dialogue to be written, in the order of the images; one of several images finds companions."""
    finder = RelatedImages(images)
    for image, kind, rng in assign_kinds(images, kinds, seed):
        shown = finder.group_with(image, rng) if kind == "context" else (image,)
        yield Dialogue(f"{'+'.join(one.id for one in shown)}-{kind}", kind, shown, rng)


def count_dialogues(
    images: Sequence[AnnotatedImage], kinds: Mapping[Kind, float], seed: int
) -> Counter[Kind]:
    """Count the dialogues to be written, by kind."""
    return Counter(kind for _, kind, _ in assign_kinds(images, kinds, seed))


def assign_kinds(
    images: Sequence[AnnotatedImage], kinds: Mapping[Kind, float], seed: int
) -> Iterator[tuple[AnnotatedImage, Kind, random.Random]]:
    """Yield which image gets which kind, each with its own source of chance."""
    for image in images:
        for kind, share in kinds.items():
            rng = random.Random(f"{seed} {kind} {image.id}")
            if rng.random() < share:
                yield image, kind, rng


class RelatedImages:
    """Finds images to stand beside an image: more often than by chance they share something."""

    def __init__(self, images: Sequence[AnnotatedImage]) -> None:
        self._images = images
        self._with: dict[str, list[AnnotatedImage]] = defaultdict(list)
        for image in images:
            for category in image.counts:
                self._with[category].append(image)

    def group_with(self, image: AnnotatedImage, rng: random.Random) -> tuple[AnnotatedImage, ...]:
        """Choose one or two more images; none if the collection has no more."""
        chosen = [image]
        wanted = min(rng.choice((2, 3)), len(self._images))
        while len(chosen) < wanted:
            shared = list(rng.choice(chosen).counts)
            pool = self._with[rng.choice(shared)] if shared and rng.random() < 0.6 else self._images
            other = rng.choice(pool)
            if other not in chosen:
                chosen.append(other)
        return tuple(chosen)


def _conversation(
    name: str,
    images: Sequence[AnnotatedImage],
    exchanges: Sequence[Exchange],
    beside: Path,
    rng: random.Random,
) -> Conversation:
    """Make a conversation of a teacher's exchanges, with the references in its first turn."""
    references = [ImageRef(os.path.relpath(image.path, beside)) for image in images]
    turns: list[Turn] = []
    for number, exchange in enumerate(exchanges):
        asked: tuple[str | ImageRef, ...] = (exchange.question,)
        if number == 0 and len(references) > 1:
            asked = (*label_images(references), exchange.question)
        elif number == 0:
            before = (references[0], f"\n{exchange.question}")
            asked = before if rng.random() < 0.5 else (f"{exchange.question}\n", references[0])
        turns += [Turn("user", asked), Turn("assistant", (exchange.answer,))]
    return Conversation(name, tuple(turns))
