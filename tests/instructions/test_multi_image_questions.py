"""Every question about several drawn scenes has the answer that follows from the scenes, and needs more than one."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.boxes import Box
from caldera.annotations.english import number_word, plural
from caldera.conversation import LETTERS
from caldera.instructions.coco_knowledge import GROUPS
from caldera.instructions.facts import Facts, derive_facts
from caldera.instructions.multi_image_questions import FORMS, questions_about_all
from caldera.instructions.questions import Question
from caldera.scenes.scene import BACKGROUNDS, Scene
from tests.instructions.annotated_scenes import mentioned_kinds, sample_scenes, scene_facts

SceneQuestions = list[tuple[list[Scene], Question]]


@pytest.fixture(scope="module")
def questions() -> SceneQuestions:
    """Return all questions about 700 pairs and triples of scenes."""
    scenes = sample_scenes(150, seed=9)
    facts_by_scene = {scene.name: scene_facts(scene) for scene in scenes}
    rng = random.Random(1)
    questions: SceneQuestions = []
    for size in (2, 3) * 350:
        group = rng.sample(scenes, size)
        images = [facts_by_scene[scene.name] for scene in group]
        questions += [(group, question) for question in questions_about_all(images, rng)]
    return questions


def of_form(questions: SceneQuestions, form: str) -> Iterator[tuple[list[Scene], Question]]:
    """Yield every question of a form, and assert that there are many of them."""
    selected = [
        (group, question) for group, question in questions if question.form.startswith(form)
    ]
    assert len(selected) > 30, f"too few questions of form {form}"
    yield from selected


def count_objects(scene: Scene) -> Counter[str]:
    """Return the number of objects of each kind in a scene."""
    return Counter(group.kind.name for group, _ in scene.objects)


def test_exactly_one_image_shows_the_object(questions: SceneQuestions) -> None:
    """The answer is its letter; every letter is sometimes right."""
    letters: Counter[str] = Counter()
    for group, question in of_form(questions, "which of"):
        [kind] = mentioned_kinds(question.text)
        expected = [
            letter
            for letter, scene in zip(LETTERS, group, strict=False)
            if count_objects(scene)[kind]
        ]
        assert expected == [question.short], question
        assert question.answer.startswith(f"Picture {question.short} shows "), question
        assert question.form == f"which of {len(group)}"
        letters[question.short] += 1
    assert letters.keys() == {"A", "B", "C"}
    assert letters["A"] == pytest.approx(letters["B"], rel=0.3)


def test_a_common_category_is_the_only_one(questions: SceneQuestions) -> None:
    """Two images have one category in common, or none."""
    shorts: Counter[bool] = Counter()
    for group, question in of_form(questions, "in both"):
        shared = count_objects(group[0]).keys() & count_objects(group[1]).keys()
        is_nothing = question.short == "nothing"
        assert shared == (set() if is_nothing else {question.short}), question
        assert mentioned_kinds(question.answer) == sorted(shared)
        shorts[is_nothing] += 1
    assert min(shorts.values()) > 10


def test_shared_categories_are_in_the_third_image(questions: SceneQuestions) -> None:
    """Of the animals (vehicles, foods) of A and B: the only one that is in C, both, or none."""
    shorts: Counter[str] = Counter()
    for scenes, question in of_form(questions, "found again"):
        kinds_a, kinds_b, kinds_c = (count_objects(scene).keys() for scene in scenes)
        [group] = [group for group in GROUPS if group in question.text]
        first, second = kinds_a & {*GROUPS[group]}, kinds_b & {*GROUPS[group]}
        either = first | second
        shared = sorted(either & kinds_c)
        both, none = ("both", "neither") if len(either) == 2 else ("", "none")
        expected = shared[0] if len(shared) == 1 else both if shared else none
        assert first
        assert second
        assert len(either) > 1
        assert ("each show one kind" not in question.text) or len(first) == len(second) == 1
        assert question.short == expected, question
        assert question.short in question.answer.lower()
        shorts["one" if mentioned_kinds(question.short) else question.short] += 1
    assert min(shorts["neither"], shorts["none"], shorts["one"]) > 5


def test_the_image_with_more_objects_is_right(questions: SceneQuestions) -> None:
    """Of A and B, also in groups of three; the answer has both numbers."""
    for group, question in of_form(questions, "more"):
        [kind] = mentioned_kinds(question.text)
        count_a, count_b = (count_objects(scene)[kind] for scene in group[:2])
        assert question.short == ("A" if count_a > count_b else "B"), question
        assert count_a != count_b
        fewer, more = sorted((count_a, count_b))
        numbers = f"{number_word(more)} against {number_word(fewer) if fewer else 'none'}"
        assert question.answer == f"Picture {question.short} has more: {numbers}."


def test_totals_are_sums_over_all_images(questions: SceneQuestions) -> None:
    """At least two of them have objects of the kind."""
    for group, question in of_form(questions, "altogether"):
        [kind] = mentioned_kinds(question.text)
        counts = [count_objects(scene)[kind] for scene in group]
        assert question.short == number_word(sum(counts)), question
        assert f" {question.short} {plural(kind)}." in question.answer
        assert sum(map(bool, counts)) >= 2


def test_settings_are_compared_once_with_yes_and_once_with_no(questions: SceneQuestions) -> None:
    """Yes if the settings are the same; otherwise the answer mentions both."""
    shorts: dict[tuple[str, ...], list[str]] = {}
    for group, question in of_form(questions, "same place"):
        letter, other_letter = re.findall(r"\b[ABC]\b", question.text)
        setting, other_setting = (
            group[LETTERS.index(name)].setting for name in (letter, other_letter)
        )
        assert question.short == ("yes" if setting == other_setting else "no"), question
        assert question.answer.lower().startswith(question.short)
        if question.short == "no":
            first, second = BACKGROUNDS[setting], BACKGROUNDS[other_setting]
            assert f"{letter} was taken {first} and {other_letter} {second}." in question.answer
        shorts.setdefault(tuple(scene.name for scene in group), []).append(question.short)
    assert len(shorts) > 40
    assert all(sorted(answers) == ["no", "yes"] for answers in shorts.values())


def test_every_form_occurs_at_most_once_for_the_same_images(questions: SceneQuestions) -> None:
    """Except for the pair about settings. All are of the kind 'context' and are sentences."""
    # There are two forms of "which of": of 2 images, and of 3.
    assert len({question.form for _, question in questions}) == len(FORMS) + 1
    for _, question in questions:
        assert question.kind == "context"
        assert re.fullmatch(r"[A-Z].*\?", question.text)
        assert re.fullmatch(r"[A-Z].*\.", question.answer)
    images = [scene_facts(scene) for scene in sample_scenes(3, seed=9)]
    group = questions_about_all(images, random.Random(2))
    forms = Counter(question.form for question in group)
    assert all(count == 1 for form, count in forms.items() if form != "same place")


def image(*categories: str, caption: str = "", crowd: bool = False) -> Facts:
    """Return the facts about an image with a box for each category."""
    box = Box(0.1, 0.1, 0.3, 0.3)
    instances = tuple(Instance(category, box, crowd) for category in categories)
    annotated = AnnotatedImage("1", Path("x"), 9, 9, (caption,), instances)
    return derive_facts(annotated, ("dog", "cat", "bird", "cup", "person", "car"))


def answers(*images: Facts) -> dict[str, str]:
    """Return the short answer of each form of question about some images."""
    questions = questions_about_all(images, random.Random(0))
    return {question.form: question.short for question in questions}


def test_a_caption_that_may_refer_to_an_object_prevents_the_question() -> None:
    """A puppy without a box may be a second dog."""
    certain = answers(image("dog"), image("cup"))
    assert certain.keys() == {"which of 2", "in both", "more"}
    assert certain["in both"] == "nothing"
    assert answers(image("dog"), image(caption="A puppy")) == {}


def test_a_crowd_has_no_count() -> None:
    """It is present, but there is neither a comparison nor a total."""
    crowd, single = image("person", crowd=True), image("person")
    assert answers(crowd, single) == {"in both": "person"}
    assert answers(single, image("person", "person")) == {
        "in both": "person",
        "more": "B",
        "altogether": "three",
    }


def test_two_common_categories_are_not_asked_for() -> None:
    """The question has one answer."""
    assert "in both" not in answers(image("dog", "cup"), image("cup", "dog"))
    assert answers(image("dog", "cup"), image("cat", "cup"))["in both"] == "cup"


@pytest.mark.parametrize(
    ("third", "short"),
    [
        (("dog",), "dog"),
        (("cat", "cup"), "cat"),
        (("cat", "dog"), "both"),
        (("cup",), "neither"),
        ((), "neither"),
    ],
)
def test_sharing_has_four_answers(third: tuple[str, ...], short: str) -> None:
    """The animal of A, that of B, both, or neither."""
    assert answers(image("dog"), image("cat"), image(*third))["found again"] == short


def test_an_image_may_have_several_categories_of_a_group() -> None:
    """The answer is then one of them, or none; never a list."""
    pair = image("dog", "cat"), image("bird")
    assert answers(*pair, image("cat"))["found again"] == "cat"
    assert answers(*pair, image("cup"))["found again"] == "none"
    assert "found again" not in answers(*pair, image("cat", "bird"))


def test_sharing_needs_two_certain_categories_of_a_group() -> None:
    """Not the same one in A and B, not none in one of them, none that is uncertain in C, and three images."""
    dog, cat = image("dog"), image("cat")
    for group in (
        (dog, dog, cat),
        (image("dog", "cat"), image("cup"), dog),
        (dog, cat, image("cup", caption="A kitten")),
        (dog, cat),
    ):
        assert "found again" not in answers(*group)
