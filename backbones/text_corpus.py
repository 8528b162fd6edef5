"""Scenes and dialogues about them in, text documents out: what the tiny language backbone reads. No images.

Wherever a dialogue shows an image, its document tells the scene in words instead, in one of three ways: as captions,
as a list of things and places, or as bags of words, one for each cell of a grid over the scene, which stand where the
image's patches will stand.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from backbones.patch_words import patch_labels
from caldera.annotations.boxes import position_of
from caldera.annotations.english import join_with_and, number_word
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.scenes.captions import captions_of, object_phrase
from caldera.scenes.scene import BACKGROUNDS, OBJECT_KINDS, ObjectGroup, Scene

_LEFT_OUT = 0.1
"""Share of words that a cell leaves out, as a patch may fail to show them."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Vicuna's system sentence, as LLaVA uses it."""


@dataclass(frozen=True, slots=True)
class CorpusSegment:
    """A stretch of a document, tokenized by itself."""

    text: str
    answer: bool = False
    """Whether it is what the language model is to do well: an answer or a caption."""

    cells: tuple[str, ...] = ()
    """In place of text: bags of words, each of them one position, read as the sum of its words."""


Document = list[CorpusSegment]


def bags_of_words(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Say what each cell of the grid shows, row by row, as a bag of words of which some are left out by chance."""
    said = []
    for words in patch_labels(scene):
        kept = [word for word in words if len(words) == 1 or rng.random() >= _LEFT_OUT]
        said.append("".join(f" {word}" for word in kept or words[:1]))
    return tuple(said)


def _list(scene: Scene, rng: random.Random) -> str:
    """Name every thing with its place, and the setting."""
    things = [object_phrase(group, thing) for group, thing in scene.things]
    return f"{join_with_and(rng.sample(things, len(things)))}, {BACKGROUNDS[scene.setting]}."


@dataclass(frozen=True, kw_only=True, slots=True)
class DescriptionMix:
    """In which ways scenes are told, as shares; lists take what is left."""

    bags: float = 0.0
    """As rows of bags of words, one for each cell."""

    captions: float = 0.1

    drills: float = 0.0
    """Drills read between two dialogues, on average."""


def describe_scene(scene: Scene, telling: DescriptionMix, rng: random.Random) -> CorpusSegment:
    """Tell a scene in one of the three ways."""
    way = rng.random()
    if way < telling.bags:
        return CorpusSegment("", cells=bags_of_words(scene, rng))
    if way < 1 - telling.captions:
        return CorpusSegment(_list(scene, rng))
    return CorpusSegment(" ".join(captions_of(scene)))


def drill_document(told: Sequence[Scene], telling: DescriptionMix, rng: random.Random) -> Document:
    """Tell one to three scenes, then ask in bare words for things that are there and for as many that are not.

    'dog: one top left', 'cat: no'; with several scenes 'B dog: two'. It holds many more things to find than a dialogue
    of its length.
    """
    pieces: list[CorpusSegment] = []
    asked: list[tuple[str, str]] = []
    everywhere = {group.kind.name for scene in told for group in scene.groups}
    for letter, scene in zip("ABC", told, strict=False):
        image = f" {letter}" if len(told) > 1 else ""
        pieces += [
            CorpusSegment(f"Picture{image}: "),
            describe_scene(scene, telling, rng),
            CorpusSegment("\n"),
        ]
        there = {group.kind.name for group in scene.groups}
        missing = sorted(everywhere - there) or sorted(OBJECT_KINDS.keys() - there)
        missing = rng.sample(missing, min(len(missing), len(there)))
        asked += [(f"{image} {group.kind.name}:", _all_of(group)) for group in scene.groups]
        asked += [(f"{image} {name}:", " no") for name in missing]
    for question, answer in rng.sample(asked, len(asked)):
        pieces += [CorpusSegment(question), CorpusSegment(f"{answer}\n", answer=True)]
    return pieces


def _all_of(group: ObjectGroup) -> str:
    """Say how many there are of a group, its color, and where a single thing is."""
    place = position_of(group.things[0].box) if len(group.things) == 1 else None
    words = (number_word(len(group.things)), group.color, place)
    return "".join(f" {word}" for word in words if word)


def dialogue_document(
    conversation: Conversation,
    scenes: Mapping[str, Scene],
    *,
    end: str,
    telling: DescriptionMix,
    rng: random.Random,
) -> Document:
    """Write a conversation as Vicuna's text, with words where it shows images.

    Args:
        conversation: What was said about the scenes.
        scenes: Scene by the path of its image.
        end: The end mark behind each answer.
        telling: In which ways scenes are told.
        rng: Chooses how the scenes are told.
    """
    pieces = [CorpusSegment(f"{SYSTEM} ")]
    for turn in conversation.turns:
        if turn.role == "assistant":
            pieces.append(CorpusSegment(f" {turn.text}{end}", answer=True))
            continue
        pieces.append(CorpusSegment("USER: "))
        for part in _image_first(turn):
            if isinstance(part, ImageRef):
                pieces.append(describe_scene(scenes[part.path], telling, rng))
            else:
                pieces.append(CorpusSegment(part))
        pieces.append(CorpusSegment(" ASSISTANT:"))
    return pieces


def _image_first(turn: Turn) -> tuple[str | ImageRef, ...]:
    """Put a lone image before its question, as LLaVA does."""
    if len(turn.images) != 1:
        return turn.parts
    return (*turn.images, f"\n{turn.text.strip()}")


def stream_documents(
    conversations: Sequence[Conversation],
    scenes: Mapping[str, Scene],
    *,
    end: str,
    telling: DescriptionMix,
    seed: int,
) -> Iterator[Document]:
    """Yield documents without end: dialogues, each time around in a new order and telling; captions; drills.

    Args:
        conversations: What was said about the scenes.
        scenes: Scene by the path of its image.
        end: The end mark behind each answer.
        telling: In which ways scenes are told; bags also come with a caption alone, half as often.
        seed: Of all choices.
    """
    rng = random.Random(f"documents {seed}")
    told = list(scenes.values())
    while True:
        for conversation in rng.sample(conversations, len(conversations)):
            yield dialogue_document(conversation, scenes, end=end, telling=telling, rng=rng)
            if rng.random() < telling.bags / 2:
                scene = rng.choice(told)
                caption = rng.choice(captions_of(scene))
                yield [
                    CorpusSegment("", cells=bags_of_words(scene, rng)),
                    CorpusSegment(f"{caption}\n", answer=True),
                ]
            if rng.random() < telling.drills:
                yield drill_document(rng.choices(told, k=rng.choice((1, 1, 2, 3))), telling, rng)
