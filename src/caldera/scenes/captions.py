"""A Scene in, what people would write under it out: five captions, and a phrase for each thing."""

import random

from caldera.boxes import STANDING, in_words, place_of, relations
from caldera.english import article, listed, sentence, some
from caldera.scenes.kinds import SETTINGS
from caldera.scenes.world import Group, Scene, Thing


def captions(scene: Scene) -> tuple[str, ...]:
    """Write five captions of `scene`, always the same ones.

    As with COCO's annotators each says something else: all that is there, with or without the setting, where things
    are, how two of them stand to each other, and the most striking part only.
    """
    rng = random.Random(f"captions {scene.name}")
    groups = list(scene.groups)
    rng.shuffle(groups)
    everything = listed([_some(group) for group in groups])
    where = SETTINGS[scene.setting]
    opening = rng.choice(("The picture shows", "We see", "Here we have"))
    written = [
        f"{everything} {where}.",
        f"{article(scene.setting)} with {everything}.",
        f"{_places(groups)}, {where}.",
        f"{_beside(rng, groups)} {where}.",
        f"{opening} {_some(groups[0])}.",
    ]
    rng.shuffle(written)
    return tuple(sentence(text) for text in written)


def phrase(group: Group, thing: Thing) -> str:
    """Name one thing, and where it stands if that has a word: 'a red car at the top left'."""
    place = place_of(thing.box)
    return f"{article(_coloured(group))}{' ' + in_words(place) if place else ''}"


def _coloured(group: Group) -> str:
    """Name a group's kind with its colour."""
    return f"{group.colour} {group.kind.name}" if group.colour else group.kind.name


def _some(group: Group) -> str:
    """Name a whole group: 'a dog', 'two red cars'."""
    return some(len(group.things), _coloured(group))


def _places(groups: list[Group]) -> str:
    """Say where each thing is, as far as that has words."""
    return listed([phrase(group, thing) for group in groups for thing in group.things])


def _beside(rng: random.Random, groups: list[Group]) -> str:
    """Say how the first two groups stand to each other, if one word holds for all their things."""
    if len(groups) > 1:
        one, other = groups[:2]
        shared = set.intersection(
            *(set(relations(a.box, b.box)) for a in one.things for b in other.things)
        )
        if shared:
            return f"{_some(one)} {STANDING[rng.choice(sorted(shared))]} {_some(other)}"
    return listed([_some(group) for group in groups])
