"""Every question about a drawn scene has the answer that follows from the scene itself, without the facts."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotatedImage
from caldera.annotations.coco import read_coco
from caldera.annotations.english import number_word, plural
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.coco_knowledge import COLORS, GROUPS, PURPOSES
from caldera.instructions.facts import derive_facts
from caldera.instructions.questions import (
    FORMS,
    Question,
    describe_image,
    questions_about,
    yes_no_pairs,
)
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import BACKGROUNDS, OBJECT_KINDS, SIDE, Scene, SceneObject, sample_scene
from tests.instructions.annotated_scenes import mentioned_kinds, scene_facts

SceneQuestions = list[tuple[Scene, list[Question]]]
POSITION = "top left|top right|bottom left|bottom right|top|bottom|left|right|middle"
RELATION = re.compile(r"\b(left|right|above|below)\b")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Return a hundred scenes of each split."""
    return [
        sample_scene(index, seed=8, split=split, shapes=glyph_shapes())
        for index in range(100)
        for split in ("train", "held_out")
    ]


@pytest.fixture(scope="module")
def questions(scenes: list[Scene]) -> SceneQuestions:
    """Return all questions about each scene."""
    return [
        (scene, questions_about(scene_facts(scene), random.Random(scene.name))) for scene in scenes
    ]


def of_kind(questions: SceneQuestions, kind: str) -> Iterator[tuple[Scene, Question]]:
    """Yield every question of a kind, and assert that there are many of them."""
    selected = [
        (scene, question)
        for scene, scene_questions in questions
        for question in scene_questions
        if question.kind == kind
    ]
    assert len(selected) > 50, f"too few questions of kind {kind}"
    yield from selected


def objects(scene: Scene, kind: str) -> tuple[SceneObject, ...]:
    """Return all objects of a kind."""
    return next((group.objects for group in scene.groups if group.kind.name == kind), ())


def ninth(scene_object: SceneObject) -> str:
    """Return the ninth of the image that contains an object's center."""
    x = (scene_object.left + scene_object.width / 2) / SIDE
    y = (scene_object.top + scene_object.height / 2) / SIDE
    row = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    column = "left" if x < 0.36 else "right" if x > 0.64 else ""
    return f"{row} {column}".strip() or "middle"


def holds(subject: SceneObject, relation: str, reference: SceneObject) -> bool:
    """Return whether a relation of two objects is true."""
    x1, x2 = subject.left + subject.width / 2, reference.left + reference.width / 2
    y1, y2 = subject.top + subject.height / 2, reference.top + reference.height / 2
    return {"left": x1 < x2, "right": x1 > x2, "above": y1 < y2, "below": y1 > y2}[relation]


def test_presence_is_that_of_the_scene(questions: SceneQuestions) -> None:
    """Yes for present objects, with their number; no for absent ones."""
    for scene, question in of_kind(questions, "presence"):
        [kind] = mentioned_kinds(question.text)
        count = len(objects(scene, kind))
        assert question.short == ("yes" if count else "no"), question
        assert question.answer.lower().startswith(question.short)
        assert mentioned_kinds(question.answer) == [kind]
        if count > 1:
            assert f" {number_word(count)} {plural(kind)}." in question.answer


@pytest.mark.parametrize("kind", ["presence", "reasoning"])
def test_yes_and_no_are_balanced_in_every_image(questions: SceneQuestions, kind: str) -> None:
    """They alternate in pairs, so that a cut after any pair stays balanced."""
    num_images = 0
    for _, scene_questions in questions:
        answers = [question.short for question in scene_questions if question.kind == kind]
        num_images += bool(answers)
        assert all(
            {*pair} == {"yes", "no"} for pair in zip(answers[::2], answers[1::2], strict=True)
        )
    assert num_images > 60


def test_no_question_is_repeated(questions: SceneQuestions) -> None:
    """There is at most one presence question for each kind, and no text twice."""
    for _, scene_questions in questions:
        kinds = [
            mentioned_kinds(question.text)[0]
            for question in scene_questions
            if question.kind == "presence"
        ]
        assert len(set(kinds)) == len(kinds)
        assert len({question.text for question in scene_questions}) == len(scene_questions)


def test_counts_are_those_of_the_scene(questions: SceneQuestions) -> None:
    """Several objects are always counted, single ones sometimes, so that 'one' is not a safe guess."""
    shorts: Counter[str] = Counter()
    for scene, question in of_kind(questions, "count"):
        [kind] = mentioned_kinds(question.text)
        assert question.short == number_word(len(objects(scene, kind))), question
        assert f" {question.short} " in question.answer
        shorts[question.short] += 1
    num_several = sum(len(group.objects) > 1 for scene, _ in questions for group in scene.groups)
    assert shorts.total() - shorts["one"] == num_several
    assert 0.1 < shorts["one"] / shorts.total() < 0.6


def test_positions_are_those_of_the_scene(questions: SceneQuestions) -> None:
    """Only single objects are asked for."""
    for scene, question in of_kind(questions, "position"):
        [kind] = mentioned_kinds(question.text)
        [scene_object] = objects(scene, kind)
        assert question.short == ninth(scene_object), question
        assert question.short in question.answer


def test_relations_are_those_of_the_scene(questions: SceneQuestions) -> None:
    """A choice of two relations, or a claim that is true in half of the questions."""
    shorts: Counter[str] = Counter()
    for scene, question in of_kind(questions, "relation"):
        kinds = mentioned_kinds(question.text)
        [[subject], [reference]] = [objects(scene, kind) for kind in kinds]
        shorts[question.short] += 1
        [relation] = RELATION.findall(question.answer)
        assert holds(subject, relation, reference), question
        assert question.answer.endswith(f" the {kinds[1]}.")
        relations = RELATION.findall(question.text)
        if question.form == "is it beside":
            is_true = holds(subject, relations[0], reference)
            assert question.short == ("yes" if is_true else "no"), question
        else:
            assert question.short == relation
            assert relations in (["left", "right"], ["above", "below"])
    assert shorts.keys() == {"yes", "no", "left", "right", "above", "below"}
    assert shorts["yes"] == shorts["no"]


def test_colors_are_those_of_the_scene(questions: SceneQuestions) -> None:
    """Every colored kind is asked about, and no other."""
    num_colors: Counter[str] = Counter()
    for scene, question in of_kind(questions, "colour"):
        [kind] = mentioned_kinds(question.text)
        [color] = [group.color for group in scene.groups if group.kind.name == kind]
        assert question.short == color, question
        assert re.findall("|".join(COLORS), question.answer) == [color]
        num_colors[scene.name] += 1
    for scene, _ in questions:
        assert num_colors[scene.name] == sum(group.color is not None for group in scene.groups)


def test_the_only_one_of_a_group_is_named(questions: SceneQuestions) -> None:
    """The only animal, vehicle or food."""
    for scene, question in of_kind(questions, "naming"):
        [group] = [group for group in GROUPS if group in question.text]
        kinds = [scene_group.kind.name for scene_group in scene.groups]
        present = [kind for kind in kinds if kind in GROUPS[group]]
        assert present == [question.short] == mentioned_kinds(question.answer), question
        assert not mentioned_kinds(question.text)


def test_the_setting_is_that_of_the_scene(questions: SceneQuestions) -> None:
    """Once for every scene, with the right preposition."""
    by_scene = {scene.name: question for scene, question in of_kind(questions, "setting")}
    assert len(by_scene) == len(questions)
    for scene, _ in questions:
        question = by_scene[scene.name]
        assert question.short == scene.setting
        assert question.answer.endswith(f" {BACKGROUNDS[scene.setting]}.")


def test_reasons_are_objects_of_the_scene(questions: SceneQuestions) -> None:
    """Yes mentions a present object that serves the purpose; no only present ones that do not."""
    for scene, question in of_kind(questions, "reasoning"):
        [purpose] = [purpose for purpose in PURPOSES if question.text in purpose.goals]
        present = {group.kind.name for group in scene.groups}
        serving = present & purpose.categories
        assert question.short == ("yes" if serving else "no"), question
        assert question.answer.startswith(f"{question.short.capitalize()}. ")
        assert question.answer.endswith(f"{purpose.uses}.")
        mentioned = set(mentioned_kinds(question.answer.removesuffix(f"{purpose.uses}.")))
        assert mentioned <= present
        assert len(mentioned & purpose.categories) == (1 if serving else 0)


def test_each_purpose_is_answered_yes_and_no(questions: SceneQuestions) -> None:
    """No purpose implies the answer: of the frequent ones neither answer is rare."""
    shorts: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question in of_kind(questions, "reasoning"):
        shorts[question.form][question.short] += 1
    frequent = {form: counts for form, counts in shorts.items() if counts.total() >= 40}
    assert len(frequent) > 3
    for form, counts in frequent.items():
        assert min(counts["yes"], counts["no"]) > 0.25 * counts.total(), (form, counts)


def test_every_kind_occurs_and_questions_are_sentences(questions: SceneQuestions) -> None:
    """All kinds of the table, by their own names; short answers have at most two words."""
    all_questions = [question for _, scene_questions in questions for question in scene_questions]
    assert {question.kind for question in all_questions} == FORMS.keys()
    for question in all_questions:
        assert re.fullmatch(r"[A-Z].*[?.]", question.text), question
        assert re.fullmatch(r"[A-Z].*\.", question.answer), question
        assert "  " not in question.text + question.answer
        assert len(question.short.split()) <= 2


def test_a_yes_is_paired_with_a_no_of_its_kind_or_omitted() -> None:
    """All other questions are alone; the order is kept."""

    def make_question(kind: str, short: str) -> Question:
        return Question(kind, "form", "Text?", short, "Answer.")

    red, two = make_question("colour", "red"), make_question("count", "two")
    yes, no = make_question("presence", "yes"), make_question("presence", "no")
    relation, reason = make_question("relation", "no"), make_question("reasoning", "yes")
    other_yes = replace(yes, text="Again?")
    pairs = yes_no_pairs([yes, red, other_yes, no, relation, two, reason])
    assert pairs == [[yes, no], [red], [two]]
    assert yes_no_pairs([no, reason, yes, relation]) == [[no, yes]]
    assert yes_no_pairs([]) == []


def test_questions_follow_from_the_seed(scenes: list[Scene]) -> None:
    """The same seed gives the same questions, another one other words."""
    first, same, other = (
        [questions_about(scene_facts(scene), random.Random(seed)) for scene in scenes[:20]]
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_a_description_is_true_and_complete(scenes: list[Scene]) -> None:
    """All objects with number, color and setting; then positions, each with the right number, and a relation."""
    num_spread = num_positions = num_relations = 0
    for scene in scenes:
        description = describe_image(scene_facts(scene), random.Random(scene.name))
        first, *rest = description.removesuffix(".").split(". ")
        assert f" {BACKGROUNDS[scene.setting]}" in first
        for group in scene.groups:
            count = len(group.objects)
            noun = group.kind.name if count == 1 else plural(group.kind.name)
            color = f"{group.color} " if group.color else ""
            assert re.search(rf"\b(a|an|{number_word(count)}) {color}{noun}\b", first), description
        for sentence in rest:
            kind, *other_kinds = mentioned_kinds(sentence)
            expected = Counter(ninth(scene_object) for scene_object in objects(scene, kind))
            if other_kinds:
                [relation] = RELATION.findall(sentence)
                [[subject], [reference]] = [objects(scene, kind), objects(scene, other_kinds[0])]
                assert holds(subject, relation, reference), description
                num_relations += 1
            elif sentence.startswith("Of the "):
                counts = re.findall(rf"(\w+) (?:is|are) (?:at|on|in) the ({POSITION})", sentence)
                assert {position: count for count, position in counts} == {
                    position: number_word(count) for position, count in expected.items()
                }, description
                num_spread += 1
            else:
                [position] = re.findall(rf"(?:is|are) (?:at|on|in) the ({POSITION})$", sentence)
                assert expected == {position: len(objects(scene, kind))}, description
                num_positions += 1
    assert min(num_spread, num_positions, num_relations) > 20


def test_an_image_without_objects_has_no_questions() -> None:
    """And no description, however many categories were labeled."""
    empty = derive_facts(AnnotatedImage("1", Path("x"), 9, 9, ("A wall",), ()), OBJECT_KINDS)
    assert describe_image(empty, random.Random(0)) == ""
    assert questions_about(empty, random.Random(0)) == []


def test_questions_about_real_photos_agree_with_their_boxes(third_party: Path) -> None:
    """Presence and counts in 80 photos, compared with COCO's boxes and captions."""
    annotations = read_coco(third_party / "coco_mini", SkippedItems())
    longest_first = sorted(annotations.categories, key=len, reverse=True)
    num_questions: Counter[str] = Counter()
    for image in annotations.images:
        boxes = Counter(instance.category for instance in image.instances)
        captions = " ".join(image.captions).lower()
        # A teddy bear is not a bear, and a hot dog not a dog.
        captions = re.sub(r"(teddy|stuffed) bear|hot dog", "", captions)
        image_facts = derive_facts(image, annotations.categories)
        for question in questions_about(image_facts, random.Random(image.id)):
            num_questions[question.kind] += 1
            if question.kind == "presence":
                category = next(
                    category
                    for category in longest_first
                    if re.search(rf"\b{category}\b", question.text)
                )
                is_yes = question.short == "yes"
                assert is_yes is (boxes[category] > 0), question
                assert is_yes or not re.search(rf"\b{category}s?\b", captions), question
            elif question.kind == "count":
                [category] = [
                    category for category in boxes if f" {plural(category)} " in question.text
                ]
                assert question.short == number_word(boxes[category]), question
    assert num_questions["presence"] > 100
    assert num_questions["count"] > 50
    assert num_questions.keys() >= {"position", "relation", "naming", "reasoning"}
