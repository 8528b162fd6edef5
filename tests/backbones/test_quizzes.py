"""Tests of quizzes and comparison drills, against the boxes of their scenes."""

import random
from collections.abc import Iterator
from itertools import pairwise, permutations

import pytest

from backbones.document_stream import stream_documents
from backbones.quizzes import (
    SceneGroups,
    comparison_drill,
    count_objects,
    quiz_document,
    single_objects,
)
from backbones.text_corpus import DescriptionMix, Document
from caldera.conversation import Conversation, Turn
from caldera.instructions.request_phrases import SHORT_ANSWER
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import Scene, sample_scene

BAGS = DescriptionMix(bags=1.0)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Sample 150 scenes."""
    shapes = glyph_shapes()
    return [sample_scene(index, seed=5, split="train", shapes=shapes) for index in range(150)]


@pytest.fixture(scope="module")
def groups(scenes: list[Scene]) -> SceneGroups:
    """Return the sampler of the scenes."""
    return SceneGroups(scenes)


def answers_of(document: Document) -> dict[str, str]:
    """Return the answer to each question of a document."""
    return {question.text: answer.text for question, answer in pairwise(document) if answer.answer}


def test_a_drill_about_one_scene_compares_all_pairs_in_both_orders(groups: SceneGroups) -> None:
    """Each axis on which the centers differ has its word; a claim is true if it is that word."""
    rng = random.Random(1)
    num_claims = {" yes\n": 0, " no\n": 0}
    for _ in range(60):
        [scene] = groups.comparable(rng)
        boxes = single_objects(scene)
        assert len(boxes) > 2
        answers = answers_of(comparison_drill([scene], BAGS, rng))
        pairs = 0
        for first, second in permutations(boxes, 2):
            (x, y), (other_x, other_y) = boxes[first].center, boxes[second].center
            held = {"left" if x < other_x else "right", "above" if y < other_y else "below"}
            if answer := answers.get(f" {first} {second}:"):
                assert set(answer.split()) <= held
                pairs += 1
            for claim in ("left", "right", "above", "below"):
                if answer := answers.get(f" {first} {claim} {second}:"):
                    assert answer == (" yes\n" if claim in held else " no\n")
                    num_claims[answer] += 1
        assert pairs > 2
    share = num_claims[" yes\n"] / sum(num_claims.values())
    assert 0.4 < share < 0.6


def test_a_drill_about_several_scenes_asks_what_they_share(groups: SceneGroups) -> None:
    """Settings and kinds of every two, which has more, which show a kind, and how many there are together."""
    rng = random.Random(2)
    seen = set()
    for _ in range(60):
        described = groups.several(rng)
        by_letter = dict(zip("ABC", described, strict=False))
        answers = answers_of(comparison_drill(described, BAGS, rng))
        for question, answer in answers.items():
            words, value = question.strip(" :").split(" "), answer.strip()
            if len(words) == 1:
                [noun] = words
                counts = {letter: count_objects(scene) for letter, scene in by_letter.items()}
                if letters := [letter for letter, names in counts.items() if noun in names]:
                    seen.add("shown")
                    if value.split() != letters:
                        # Plural equals singular: 'sheep'.
                        assert noun in ("sheep", "broccoli")
                continue
            first, second = (by_letter[letter] for letter in words[:2])
            seen.add(words[2])
            if words[2] == "place":
                assert value == ("same" if first.setting == second.setting else "different")
            elif words[2] == "both":
                shared = set(count_objects(first)) & set(count_objects(second))
                assert {value} == (shared or {"nothing"})
            else:
                assert value in words[:2]
    assert seen == {"shown", "place", "both", "more"}


def test_a_quiz_asks_for_short_answers_once(groups: SceneGroups) -> None:
    """In the first question; every answer ends with the end token, and the cells tell their scene."""
    rng = random.Random(3)
    for sample in (groups.single, groups.several) * 20:
        described = sample(rng)
        document = quiz_document(described, BAGS, rng, end="</s>")
        if not document:
            continue
        text = "".join(segment.text for segment in document)
        assert text.count(SHORT_ANSWER) == 1
        assert text.index(SHORT_ANSWER) < text.index("ASSISTANT:")
        assert all(segment.text.endswith("</s>") for segment in document if segment.answer)
        assert [segment.scene for segment in document if segment.cells] == described


def test_groups_are_of_two_or_three_different_scenes(groups: SceneGroups) -> None:
    """Many share a kind, some the setting."""
    rng = random.Random(4)
    sampled = [groups.several(rng) for _ in range(300)]
    assert {len(group) for group in sampled} == {2, 3}
    assert all(len(set(group)) == len(group) for group in sampled)
    share_kind = [bool(count_objects(a).keys() & count_objects(b)) for a, b, *_ in sampled]
    share_setting = [a.setting == b.setting for a, b, *_ in sampled]
    assert 0.5 < sum(share_kind) / 300 < 0.9
    assert 0.25 < sum(share_setting) / 300 < 0.6


def test_the_stream_has_drills_and_quizzes_in_the_proportions_of_the_mix(
    scenes: list[Scene],
) -> None:
    """On average, between two dialogues; a fraction is rounded up or down at random."""
    dialogue = Conversation("1-vqa", (Turn("user", ("Hello",)), Turn("assistant", ("Hi",))))
    mix = DescriptionMix(drills=0.5, comparisons=1.5, quizzes=2.0)
    by_path = {f"{number}.jpg": scene for number, scene in enumerate(scenes)}
    stream = stream_documents([dialogue], by_path, end="</s>", mix=mix, seed=1)
    counts = {"dialogue": 0, "drill": 0, "quiz": 0}
    for document in _take(stream, 2000):
        first = document[0].text
        name = "drill" if first.startswith("Picture") else "quiz"
        is_dialogue = "Hello" in [segment.text for segment in document]
        counts["dialogue" if is_dialogue else name] += 1
    assert counts["drill"] / counts["dialogue"] == pytest.approx(2, abs=0.15)
    assert counts["quiz"] / counts["dialogue"] == pytest.approx(2, abs=0.15)


def _take(stream: Iterator[Document], count: int) -> list[Document]:
    return [next(stream) for _ in range(count)]
