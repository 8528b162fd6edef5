"""Quizzes and comparison drills: documents with many questions about a scene or a group of scenes.

A quiz has the wording of the later training data. A comparison drill asks in few words, so that a row of tokens
contains several times as many comparisons.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, permutations
from pathlib import Path

from backbones.text_corpus import CorpusSegment, DescriptionMix, Document, describe_scene
from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.boxes import Box, Relation, relations
from caldera.annotations.english import number_word, plural
from caldera.conversation import LETTERS
from caldera.instructions.facts import Facts, derive_facts
from caldera.instructions.multi_image_questions import questions_about_all
from caldera.instructions.questions import questions_about
from caldera.instructions.request_phrases import SHORT_ANSWER
from caldera.scenes.captions import captions_of
from caldera.scenes.scene import OBJECT_KINDS, Scene
from caldera.templates.registry import VICUNA_SYSTEM

_MAX_QUESTIONS = 16
"""Maximum number of questions in a quiz."""

_MAX_COMPARISONS = 24
"""Maximum number of questions in a comparison drill."""

_DIRECTIONS: dict[Relation, tuple[str, str]] = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("above", "below"),
    "below": ("below", "above"),
}
"""Word of each relation, and of its opposite."""


def annotate(scene: Scene, path: Path) -> AnnotatedImage:
    """Return a scene's captions and boxes, as its COCO folder has them."""
    return AnnotatedImage(
        id=path.stem,
        path=path,
        width=0,
        height=0,
        captions=captions_of(scene),
        instances=tuple(Instance(group.kind.name, item.box) for group, item in scene.objects),
    )


def single_objects(scene: Scene) -> dict[str, Box]:
    """Return the box of each object that is the only one of its kind, by kind."""
    groups = (group for group in scene.groups if len(group.objects) == 1)
    return {group.kind.name: group.objects[0].box for group in groups}


def count_objects(scene: Scene) -> dict[str, int]:
    """Return the number of objects by kind."""
    return {group.kind.name: len(group.objects) for group in scene.groups}


@cache
def _facts(scene: Scene) -> Facts:
    return derive_facts(annotate(scene, Path(scene.name)), OBJECT_KINDS)


def quiz_document(
    described: Sequence[Scene], mix: DescriptionMix, rng: random.Random, *, end: str
) -> Document:
    """Describe one to three scenes in a conversation, then ask for short answers; empty without questions."""
    facts = [_facts(scene) for scene in described]
    if len(facts) == 1:
        questions = questions_about(facts[0], rng)
    else:
        # Twice, because each form asks about one category only.
        questions = [question for _ in range(2) for question in questions_about_all(facts, rng)]
        questions = list(dict.fromkeys(questions))
    if not questions:
        return []
    segments = [CorpusSegment(f"{VICUNA_SYSTEM} USER: " if rng.random() < 0.5 else "USER: ")]
    for letter, scene in zip(LETTERS, described, strict=False):
        if len(described) > 1:
            segments.append(CorpusSegment(f"Picture {letter}: "))
        segments += [describe_scene(scene, mix, rng), CorpusSegment("\n")]
    chosen = rng.sample(questions, min(_MAX_QUESTIONS, len(questions)))
    for number, question in enumerate(chosen):
        prompt = f"USER: {question.text}" if number else f"{question.text}\n{SHORT_ANSWER}"
        segments += [
            CorpusSegment(f"{prompt} ASSISTANT:"),
            CorpusSegment(f" {question.short}{end}", answer=True),
        ]
    return segments


def comparison_drill(
    described: Sequence[Scene], mix: DescriptionMix, rng: random.Random
) -> Document:
    """Describe scenes, then ask for relations of the objects of one, or for what two of several share.

    'dog cat: left above', 'dog left cat: yes'; with several scenes 'A B place: same', 'A B both: dog', 'A B more dogs:
    A'.
    """
    segments: list[CorpusSegment] = []
    for letter, scene in zip(LETTERS, described, strict=False):
        image = f" {letter}" if len(described) > 1 else ""
        description = describe_scene(scene, mix, rng)
        segments += [CorpusSegment(f"Picture{image}: "), description, CorpusSegment("\n")]
    exchanges = (
        _relation_exchanges(described[0], rng)
        if len(described) == 1
        else _shared_exchanges(described)
    )
    for question, answer in rng.sample(exchanges, min(_MAX_COMPARISONS, len(exchanges))):
        segments += [CorpusSegment(f"{question}:"), CorpusSegment(f" {answer}\n", answer=True)]
    return segments


def _relation_exchanges(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Ask for the relations of all pairs of single objects, in both orders, and whether one holds."""
    exchanges = []
    for first, second in permutations(single_objects(scene).items(), 2):
        (name, box), (other_name, other_box) = first, second
        held = [_DIRECTIONS[relation] for relation in relations(box, other_box)]
        if held:
            words = " ".join(word for word, _ in held)
            exchanges.append((f" {name} {other_name}", words))
        for word, opposite in held:
            claim = rng.choice((word, opposite))
            exchanges.append((f" {name} {claim} {other_name}", "yes" if claim == word else "no"))
    return exchanges


def _shared_exchanges(described: Sequence[Scene]) -> list[tuple[str, str]]:
    """Ask what every two scenes share, and which has more of a kind; for every kind, which show it and how many."""
    counts = [count_objects(scene) for scene in described]
    exchanges = []
    for first, second in combinations(range(len(described)), 2):
        pair = f" {LETTERS[first]} {LETTERS[second]}"
        same_setting = described[first].setting == described[second].setting
        exchanges.append((f"{pair} place", "same" if same_setting else "different"))
        shared = [name for name in counts[first] if name in counts[second]]
        if len(shared) <= 1:
            exchanges.append((f"{pair} both", shared[0] if shared else "nothing"))
        for name in dict.fromkeys((*counts[first], *counts[second])):
            count, other_count = counts[first].get(name, 0), counts[second].get(name, 0)
            if count != other_count:
                more = LETTERS[first if count > other_count else second]
                exchanges.append((f"{pair} more {plural(name)}", more))
    for name in dict.fromkeys(name for names in counts for name in names):
        letters = [letter for letter, names in zip(LETTERS, counts, strict=False) if name in names]
        exchanges.append((f" {name}", " ".join(letters)))
        if len(letters) > 1:
            total = sum(names.get(name, 0) for names in counts)
            exchanges.append((f" {plural(name)}", number_word(total)))
    return exchanges


class SceneGroups:
    """Sampler of scenes to ask about: comparable objects in one scene, common kinds and settings in several."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        """Index scenes by kind."""
        self._scenes = scenes
        self._comparable = [scene for scene in scenes if len(single_objects(scene)) > 2] or scenes
        self._by_kind: dict[str, list[Scene]] = defaultdict(list)
        for scene in scenes:
            for name in count_objects(scene):
                self._by_kind[name].append(scene)

    def single(self, rng: random.Random) -> list[Scene]:
        """Return one scene, in every second case with three or more objects that are single of their kind."""
        return [rng.choice(self._comparable if rng.random() < 0.5 else self._scenes)]

    def comparable(self, rng: random.Random) -> list[Scene]:
        """Return one scene with three or more objects that are single of their kind."""
        return [rng.choice(self._comparable)]

    def several(self, rng: random.Random) -> list[Scene]:
        """Return two or three scenes that often have a kind or, moved to another place, the setting in common."""
        group = [rng.choice(self._scenes)]
        size = rng.choice((2, 3))
        while len(group) < size:
            name = rng.choice(sorted(count_objects(rng.choice(group))))
            scene = rng.choice(self._by_kind[name] if rng.random() < 0.6 else self._scenes)
            if rng.random() < 0.3:
                scene = replace(scene, setting=rng.choice(group).setting)
            if scene not in group:
                group.append(scene)
        return group
