"""Drawn scenes as annotated images, shared by tests."""

import re
from pathlib import Path

from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.english import plural
from caldera.instructions.facts import Facts, derive_facts
from caldera.scenes.captions import captions_of
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import OBJECT_KINDS, SIDE, Scene, sample_scene

_NOUNS = {noun: name for name in OBJECT_KINDS for noun in (name, plural(name))}
_NOUN = re.compile(rf"\b(?:{'|'.join(sorted(_NOUNS, key=len, reverse=True))})\b")


def sample_scenes(count: int, seed: int) -> list[Scene]:
    """Return scenes of the training split."""
    return [
        sample_scene(index, seed=seed, split="train", shapes=glyph_shapes())
        for index in range(count)
    ]


def annotate(scene: Scene) -> AnnotatedImage:
    """Return a scene as an annotated image."""
    instances = tuple(
        Instance(group.kind.name, scene_object.box) for group, scene_object in scene.objects
    )
    path = Path(f"/images/{scene.name}.jpg")
    return AnnotatedImage(scene.name, path, SIDE, SIDE, captions_of(scene), instances)


def scene_facts(scene: Scene) -> Facts:
    """Return the facts about a scene."""
    return derive_facts(annotate(scene), OBJECT_KINDS)


def mentioned_kinds(text: str) -> list[str]:
    """Return the kinds of objects that a text mentions, in order."""
    return [_NOUNS[noun] for noun in _NOUN.findall(text)]
