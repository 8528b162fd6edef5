"""Text corpus of the language backbone: documents of dialogues about scenes, without images.

An image in a dialogue is replaced by a description of its scene in one of three forms: captions, a list of objects
with positions, or bags of words, one for each cell of a grid over the scene, at the positions of the later patches.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backbones.patch_words import center_tokens, patch_labels
from caldera.annotations.boxes import position_of
from caldera.annotations.english import join_with_and, number_word
from caldera.conversation import Conversation, ImageRef
from caldera.scenes.captions import captions_of, object_phrase
from caldera.scenes.scene import BACKGROUNDS, OBJECT_KINDS, ObjectGroup, Scene
from caldera.templates.registry import VICUNA_SYSTEM
from caldera.templates.template import move_image_first

_WORD_DROPOUT = 0.1
"""Fraction of words that are dropped from a cell, as a patch may not show them."""


@dataclass(frozen=True, slots=True)
class CorpusSegment:
    """A segment of a document, tokenized on its own."""

    text: str
    answer: bool = False
    """Whether the loss counts fully: an answer or a caption."""

    cells: tuple[str, ...] = ()
    """Instead of text: bags of words; each is one position, embedded as the sum of its words."""

    scene: Scene | None = None
    """The scene that cells describe."""


Document = list[CorpusSegment]


def bags_of_words(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Return the words of each cell of the grid, row by row, some dropped at random, and the tokens of its center."""
    bags = []
    for words, center in zip(patch_labels(scene), center_tokens(scene), strict=True):
        remaining = [word for word in words if len(words) == 1 or rng.random() >= _WORD_DROPOUT]
        bags.append("".join(f" {word}" for word in remaining or words[:1]) + center)
    return tuple(bags)


def _list_objects(scene: Scene, rng: random.Random) -> str:
    """Return all objects with their positions, and the setting."""
    phrases = [object_phrase(group, item) for group, item in scene.objects]
    return f"{join_with_and(rng.sample(phrases, len(phrases)))}, {BACKGROUNDS[scene.setting]}."


@dataclass(frozen=True, kw_only=True, slots=True)
class DescriptionMix:
    """Fractions of the three forms of description; the rest are lists of objects."""

    bags: float = 0.0
    """Bags of words, one for each cell."""

    captions: float = 0.1

    captioned: float = 0.0
    """Bags with a caption alone between two dialogues, on average."""

    drills: float = 0.0
    """Drills between two dialogues, on average."""

    comparisons: float = 0.0
    """Comparison drills between two dialogues, on average."""

    quizzes: float = 0.0
    """Quizzes between two dialogues, on average."""


def describe_scene(scene: Scene, mix: DescriptionMix, rng: random.Random) -> CorpusSegment:
    """Describe a scene in one of the three forms."""
    choice = rng.random()
    if choice < mix.bags:
        return CorpusSegment("", cells=bags_of_words(scene, rng), scene=scene)
    if choice < 1 - mix.captions:
        return CorpusSegment(_list_objects(scene, rng))
    return CorpusSegment(" ".join(captions_of(scene)))


def drill_document(described: Sequence[Scene], mix: DescriptionMix, rng: random.Random) -> Document:
    """Describe one to three scenes, then ask in single words for all present kinds and as many absent ones.

    'dog: one top left', 'cat: no'; with several scenes 'B dog: two'. A drill has many more questions than a dialogue of
    the same length.
    """
    segments: list[CorpusSegment] = []
    exchanges: list[tuple[str, str]] = []
    all_kinds = {group.kind.name for scene in described for group in scene.groups}
    for letter, scene in zip("ABC", described, strict=False):
        image = f" {letter}" if len(described) > 1 else ""
        segments += [
            CorpusSegment(f"Picture{image}: "),
            describe_scene(scene, mix, rng),
            CorpusSegment("\n"),
        ]
        present = {group.kind.name for group in scene.groups}
        absent = sorted(all_kinds - present) or sorted(OBJECT_KINDS.keys() - present)
        absent = rng.sample(absent, min(len(absent), len(present)))
        exchanges += [(f"{image} {group.kind.name}:", _summarize(group)) for group in scene.groups]
        exchanges += [(f"{image} {name}:", " no") for name in absent]
    for question, answer in rng.sample(exchanges, len(exchanges)):
        segments += [CorpusSegment(question), CorpusSegment(f"{answer}\n", answer=True)]
    return segments


def _summarize(group: ObjectGroup) -> str:
    """Return a group's number, its color, and the position of a single object."""
    position = position_of(group.objects[0].box) if len(group.objects) == 1 else None
    words = (number_word(len(group.objects)), group.color, position)
    return "".join(f" {word}" for word in words if word)


def dialogue_document(
    conversation: Conversation,
    scenes: Mapping[str, Scene],
    *,
    end: str,
    mix: DescriptionMix,
    rng: random.Random,
) -> Document:
    """Return a conversation as Vicuna's text, with descriptions instead of images.

    Args:
        conversation: A dialogue about the scenes.
        scenes: Scenes by the path of their image.
        end: End token after each answer.
        mix: Forms of the descriptions.
        rng: Source of the random choices.
    """
    segments = [CorpusSegment(f"{VICUNA_SYSTEM} ")]
    for turn in conversation.turns:
        if turn.role == "assistant":
            segments.append(CorpusSegment(f" {turn.text}{end}", answer=True))
            continue
        segments.append(CorpusSegment("USER: "))
        for part in move_image_first(turn):
            if isinstance(part, ImageRef):
                segments.append(describe_scene(scenes[part.path], mix, rng))
            else:
                segments.append(CorpusSegment(part))
        segments.append(CorpusSegment(" ASSISTANT:"))
    return segments
