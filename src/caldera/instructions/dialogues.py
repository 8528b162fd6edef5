"""Dialogues to write about annotated images, and the protocol of the teacher that writes them.

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

Kind = Literal["caption", "conversation", "detail", "reasoning", "vqa", "context"]

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer."""

    question: str
    answer: str


class NothingToWrite(Exception):  # noqa: N818 - an expected outcome, which is counted with its reason
    """Annotations that do not contain what a kind of dialogue needs."""


class Teacher(Protocol):
    """Writer of dialogues, from annotations alone."""

    def write(self, kind: Kind, images: Sequence[AnnotatedImage]) -> list[Exchange]:
        """Write one dialogue about `images` (one, or several for the kind "context").

        Raises:
            NothingToWrite: The annotations do not contain what the kind needs.
        """
        ...


@dataclass(slots=True)
class GeneratedData:
    """Conversations of a run, with counts."""

    conversations: list[Conversation] = field(default_factory=list)
    by_kind: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    """Dialogues that were not written, by kind and reason."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One dialogue to write, by any teacher."""

    id: str
    """Name of its record: its images and its kind."""

    kind: Kind
    images: tuple[AnnotatedImage, ...]
    """One image; several for the kind "context"."""

    rng: random.Random
    """Random generator of its own, independent of all other dialogues."""

    def to_conversation(self, exchanges: Sequence[Exchange], relative_to: Path) -> Conversation:
        """Return a conversation of exchanges, with the images in its first turn."""
        references = [ImageRef(os.path.relpath(image.path, relative_to)) for image in self.images]
        turns: list[Turn] = []
        for index, exchange in enumerate(exchanges):
            question: tuple[str | ImageRef, ...] = (exchange.question,)
            if index == 0 and len(references) > 1:
                question = (*label_images(references), exchange.question)
            elif index == 0 and self.rng.random() < 0.5:
                question = (references[0], f"\n{exchange.question}")
            elif index == 0:
                question = (f"{exchange.question}\n", references[0])
            turns += [Turn("user", question), Turn("assistant", (exchange.answer,))]
        conversation = Conversation(self.id, tuple(turns))
        to_record(conversation)
        return conversation


def generate_dialogues(
    annotations: AnnotationSet,
    teacher: Teacher,
    kinds: Mapping[Kind, float],
    *,
    seed: int,
    relative_to: Path,
    shuffle_groups: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> GeneratedData:
    """Let a teacher write dialogues about all images, in the order of the images.

    Args:
        annotations: Images with captions and boxes.
        teacher: Writer of the dialogues.
        kinds: Share of the images that get a dialogue of each kind; 0.3 is three images in ten.
        seed: Seed for the choice and grouping of images, and for the order of text and image.
        relative_to: Folder of the data file, which image paths are relative to.
        shuffle_groups: Put the images of each group in random order, as `plan_dialogues` does.
        tick: Called after each dialogue, for a progress bar.
    """
    data = GeneratedData()
    for dialogue in plan_dialogues(annotations, kinds, seed, shuffle_groups=shuffle_groups):
        try:
            exchanges = teacher.write(dialogue.kind, dialogue.images)
            data.conversations.append(dialogue.to_conversation(exchanges, relative_to))
            data.by_kind[dialogue.kind] += 1
        except (NothingToWrite, ConversationError) as error:
            # Without the record's name, so that equal reasons are counted together.
            reason = str(error).replace(f"record {dialogue.id!r}", "it")
            data.rejected[f"{dialogue.kind}: {reason}"] += 1
        tick()
    return data


def plan_dialogues(
    annotations: AnnotationSet,
    kinds: Mapping[Kind, float],
    seed: int,
    *,
    shuffle_groups: bool = False,
) -> Iterator[Dialogue]:
    """Yield every dialogue to write, in the order of the images; "context" groups related images.

    The first image of a group differs from the others, which are sampled for what they share with it: with
    `shuffle_groups` it may have any place, so that no letter is the answer more often than another.
    """
    related = RelatedImages(annotations.images, annotations.listed)
    for image, kind, rng in assign_kinds(annotations.images, kinds, seed):
        group = related.group_with(image, rng) if kind == "context" else (image,)
        if shuffle_groups:
            group = tuple(rng.sample(group, len(group)))
        name = "+".join(member.id for member in group)
        yield Dialogue(f"{name}-{kind}", kind, group, rng)


def count_dialogues(
    images: Sequence[AnnotatedImage], kinds: Mapping[Kind, float], seed: int
) -> Counter[Kind]:
    """Count the dialogues to write, by kind."""
    return Counter(kind for _, kind, _ in assign_kinds(images, kinds, seed))


def assign_kinds(
    images: Sequence[AnnotatedImage], kinds: Mapping[Kind, float], seed: int
) -> Iterator[tuple[AnnotatedImage, Kind, random.Random]]:
    """Yield each image with each of its kinds and an independent random generator."""
    for image in images:
        for kind, share in kinds.items():
            rng = random.Random(f"{seed} {kind} {image.id}")
            if rng.random() < share:
                yield image, kind, rng


class RelatedImages:
    """Index of images by category, to group images that often share one."""

    def __init__(
        self, images: Sequence[AnnotatedImage], listed: Sequence[AnnotatedImage] = ()
    ) -> None:
        """Index `images`; groups are sampled from `listed`, which has skipped images too, if it is given."""
        self._usable = {image.id for image in images}
        self._images = listed or images
        self._by_category: dict[str, list[AnnotatedImage]] = defaultdict(list)
        for image in self._images:
            for category in image.uncounted.union(image.counts):
                self._by_category[category].append(image)

    def group_with(self, image: AnnotatedImage, rng: random.Random) -> tuple[AnnotatedImage, ...]:
        """Return the image with one or two others; alone if the collection is too small or another was skipped.

        A skipped image is not replaced, so that each group is the one of the collection without invalid images.
        """
        group = [image]
        size = min(rng.choice((2, 3)), len(self._images))
        while len(group) < size:
            categories = list(rng.choice(group).counts)
            pool = self._images
            if categories and rng.random() < 0.6:
                pool = self._by_category[rng.choice(categories)]
            candidate = rng.choice(pool)
            if candidate not in group:
                group.append(candidate)
            if candidate.id not in self._usable:
                return (image,)
        return tuple(group)
