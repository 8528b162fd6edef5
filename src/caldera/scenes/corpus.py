"""Scenes and dialogues about them in, text documents out: what the tiny language backbone reads. No pictures.

Wherever a dialogue shows a picture, its document tells the scene in words instead, in one of three ways: as captions,
as a list of things and places, or as a plan: rows of words, one for each cell of a grid over the scene.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from caldera.conversation import Conversation, Picture, Turn
from caldera.english import listed
from caldera.scenes.captions import captions, phrase
from caldera.scenes.kinds import SETTINGS
from caldera.scenes.world import Scene

GRID = 8
"""Rows and columns of a plan."""

_FULL = 0.25
"""Share of a cell that a thing must cover to be named there."""

_CAPTIONS = 0.1
"""Share of scenes told as captions; plans and lists share the rest."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Vicuna's system sentence, as LLaVA uses it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a document, tokenised by itself."""

    text: str
    answer: bool = False
    """Whether it is what the language model is to do well: an answer or a caption."""


Document = list[Piece]


def plan(scene: Scene, rng: random.Random) -> str:
    """Lay a grid over a scene and name what fills each cell, row by row.

    A cell that nothing fills names the setting; a coloured thing gives each of its cells its colour or its name by
    chance.
    """
    words = []
    for row in range(GRID):
        for column in range(GRID):
            word, most = scene.setting, _FULL
            for group, thing in scene.things:
                box = thing.box
                across = min(box.right * GRID, column + 1) - max(box.left * GRID, column)
                down = min(box.bottom * GRID, row + 1) - max(box.top * GRID, row)
                share = max(0.0, across) * max(0.0, down)
                if share > most:
                    tinted = group.colour is not None and rng.random() < 0.5
                    word, most = str(group.colour) if tinted else group.kind.name, share
            words.append(word)
    return "".join(f" {word}" for word in words)


def _list(scene: Scene, rng: random.Random) -> str:
    """Name every thing with its place, and the setting."""
    things = [phrase(group, thing) for group, thing in scene.things]
    return f"{listed(rng.sample(things, len(things)))}, {SETTINGS[scene.setting]}."


def in_words(scene: Scene, plans: float, rng: random.Random) -> str:
    """Tell a scene in one of the three ways; the share `plans` of them as plans."""
    way = rng.random()
    if way < plans:
        return plan(scene, rng)
    if way < 1 - _CAPTIONS:
        return _list(scene, rng)
    return " ".join(captions(scene))


def dialogue(
    conversation: Conversation,
    scenes: Mapping[str, Scene],
    *,
    end: str,
    plans: float,
    rng: random.Random,
) -> Document:
    """Write a conversation as Vicuna's text, with words where it shows pictures.

    Args:
        conversation: What was said about the scenes.
        scenes: Scene by the path of its picture.
        end: The end mark behind each answer.
        plans: Share of scenes told as plans.
        rng: Chooses how the scenes are told.
    """
    pieces = [Piece(f"{SYSTEM} ")]
    for turn in conversation.turns:
        if turn.speaker == "assistant":
            pieces.append(Piece(f" {turn.text}{end}", answer=True))
            continue
        pieces.append(Piece("USER: "))
        for part in _picture_first(turn):
            told = in_words(scenes[part.path], plans, rng) if isinstance(part, Picture) else part
            pieces.append(Piece(told))
        pieces.append(Piece(" ASSISTANT:"))
    return pieces


def _picture_first(turn: Turn) -> tuple[str | Picture, ...]:
    """Put a lone picture before its question, as LLaVA does."""
    if len(turn.pictures) != 1:
        return turn.parts
    return (*turn.pictures, f"\n{turn.text.strip()}")


def documents(
    conversations: Sequence[Conversation],
    scenes: Mapping[str, Scene],
    *,
    end: str,
    plans: float,
    seed: int,
) -> Iterator[Document]:
    """Yield documents without end: dialogues, each time around in a new order and telling, and scenes with a caption.

    Args:
        conversations: What was said about the scenes.
        scenes: Scene by the path of its picture.
        end: The end mark behind each answer.
        plans: Share of scenes told as plans; as many plans more come with a caption, half as often as dialogues.
        seed: Of all choices.
    """
    rng = random.Random(f"documents {seed}")
    told = list(scenes.values())
    while True:
        for conversation in rng.sample(conversations, len(conversations)):
            yield dialogue(conversation, scenes, end=end, plans=plans, rng=rng)
            if rng.random() < plans / 2:
                scene = rng.choice(told)
                caption = rng.choice(captions(scene))
                yield [Piece(plan(scene, rng)), Piece(f"{caption}\n", answer=True)]
