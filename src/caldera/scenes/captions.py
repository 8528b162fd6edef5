"""Captions of scenes, and phrases of their objects."""

import random

from caldera.annotations.boxes import RELATION_PHRASES, position_of, position_phrase, relations
from caldera.annotations.english import article, count_phrase, join_with_and, sentence
from caldera.scenes.scene import BACKGROUNDS, ObjectGroup, Scene, SceneObject


def captions_of(scene: Scene) -> tuple[str, ...]:
    """Return five captions of `scene`, always the same ones.

    As those of COCO's annotators they differ in content: all objects, after or before the setting, their positions,
    the relation of two of them, or one group only.
    """
    rng = random.Random(f"captions {scene.name}")
    groups = list(scene.groups)
    rng.shuffle(groups)
    everything = join_with_and([_group_phrase(group) for group in groups])
    setting = BACKGROUNDS[scene.setting]
    opening = rng.choice(("The picture shows", "We see", "Here we have"))
    captions = [
        f"{everything} {setting}.",
        f"{article(scene.setting)} with {everything}.",
        f"{_positions(groups)}, {setting}.",
        f"{_relation_caption(rng, groups)} {setting}.",
        f"{opening} {_group_phrase(groups[0])}.",
    ]
    rng.shuffle(captions)
    return tuple(sentence(text) for text in captions)


def object_phrase(group: ObjectGroup, scene_object: SceneObject) -> str:
    """Return the name of an object, with its position if unambiguous: 'a red car at the top left'."""
    position = position_of(scene_object.box)
    return f"{article(_colored(group))}{' ' + position_phrase(position) if position else ''}"


def _colored(group: ObjectGroup) -> str:
    return f"{group.color} {group.kind.name}" if group.color else group.kind.name


def _group_phrase(group: ObjectGroup) -> str:
    """Return the name of a group: 'a dog', 'two red cars'."""
    return count_phrase(len(group.objects), _colored(group))


def _positions(groups: list[ObjectGroup]) -> str:
    return join_with_and([object_phrase(group, item) for group in groups for item in group.objects])


def _relation_caption(rng: random.Random, groups: list[ObjectGroup]) -> str:
    """Return the relation of the first two groups, if one holds for all their objects, else their names."""
    if len(groups) > 1:
        first, second = groups[:2]
        shared = set.intersection(
            *(set(relations(a.box, b.box)) for a in first.objects for b in second.objects)
        )
        if shared:
            relation = RELATION_PHRASES[rng.choice(sorted(shared))]
            return f"{_group_phrase(first)} {relation} {_group_phrase(second)}"
    return join_with_and([_group_phrase(group) for group in groups])
