"""A Scene in, what people would write under it out: five captions, and a phrase for each thing."""

import random

from caldera.annotations.boxes import RELATION_PHRASES, position_of, position_phrase, relations
from caldera.annotations.english import article, count_phrase, join_with_and, sentence
from caldera.scenes.scene import BACKGROUNDS, ObjectGroup, Scene, SceneObject


def captions_of(scene: Scene) -> tuple[str, ...]:
    """Write five captions of `scene`, always the same ones.

    As with COCO's annotators each says something else: all that is there, with or without the setting, where things
    are, how two of them stand to each other, and the most striking part only.
    """
    rng = random.Random(f"captions {scene.name}")
    groups = list(scene.groups)
    rng.shuffle(groups)
    everything = join_with_and([_group_phrase(group) for group in groups])
    where = BACKGROUNDS[scene.setting]
    opening = rng.choice(("The picture shows", "We see", "Here we have"))
    written = [
        f"{everything} {where}.",
        f"{article(scene.setting)} with {everything}.",
        f"{_places(groups)}, {where}.",
        f"{_relation_caption(rng, groups)} {where}.",
        f"{opening} {_group_phrase(groups[0])}.",
    ]
    rng.shuffle(written)
    return tuple(sentence(text) for text in written)


def object_phrase(group: ObjectGroup, thing: SceneObject) -> str:
    """Name one thing, and where it stands if that has a word: 'a red car at the top left'."""
    place = position_of(thing.box)
    return f"{article(_colored(group))}{' ' + position_phrase(place) if place else ''}"


def _colored(group: ObjectGroup) -> str:
    """Name a group's kind with its color."""
    return f"{group.color} {group.kind.name}" if group.color else group.kind.name


def _group_phrase(group: ObjectGroup) -> str:
    """Name a whole group: 'a dog', 'two red cars'."""
    return count_phrase(len(group.things), _colored(group))


def _places(groups: list[ObjectGroup]) -> str:
    """Say where each thing is, as far as that has words."""
    return join_with_and(
        [object_phrase(group, thing) for group in groups for thing in group.things]
    )


def _relation_caption(rng: random.Random, groups: list[ObjectGroup]) -> str:
    """Say how the first two groups stand to each other, if one word holds for all their things."""
    if len(groups) > 1:
        one, other = groups[:2]
        shared = set.intersection(
            *(set(relations(a.box, b.box)) for a in one.things for b in other.things)
        )
        if shared:
            return f"{_group_phrase(one)} {RELATION_PHRASES[rng.choice(sorted(shared))]} {_group_phrase(other)}"
    return join_with_and([_group_phrase(group) for group in groups])
