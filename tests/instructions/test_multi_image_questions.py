"""Questions about several images: each answer is read off the drawn scenes again, and needs more than one of them."""

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
from caldera.scenes.captions import captions_of
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import BACKGROUNDS, OBJECT_KINDS, SIDE, Scene, sample_scene

Asked = list[tuple[list[Scene], Question]]
NOUNS = {noun: name for name in OBJECT_KINDS for noun in (name, plural(name))}
NOUN = re.compile(rf"\b(?:{'|'.join(sorted(NOUNS, key=len, reverse=True))})\b")


def facts(scene: Scene) -> Facts:
    """Return the facts about a scene, as annotators would hand it over."""
    instances = tuple(Instance(group.kind.name, thing.box) for group, thing in scene.objects)
    annotated = AnnotatedImage(scene.name, Path("x"), SIDE, SIDE, captions_of(scene), instances)
    return derive_facts(annotated, OBJECT_KINDS)


@pytest.fixture(scope="module")
def asked() -> Asked:
    """All questions about 700 pairs and triples of scenes."""
    scenes = [sample_scene(n, seed=9, split="train", shapes=glyph_shapes()) for n in range(150)]
    known = {scene.name: facts(scene) for scene in scenes}
    chance = random.Random(1)
    found: Asked = []
    for number_of in (2, 3) * 350:
        several = chance.sample(scenes, number_of)
        images = [known[scene.name] for scene in several]
        found += [(several, item) for item in questions_about_all(images, chance)]
    return found


def of_form(asked: Asked, form: str) -> Iterator[tuple[list[Scene], Question]]:
    """Yield every question of a form, and assert that there are some of them."""
    found = [(several, item) for several, item in asked if item.form.startswith(form)]
    assert len(found) > 30, f"too few questions of form {form}"
    yield from found


def counts(scene: Scene) -> Counter[str]:
    """Return how many things of each kind a scene shows."""
    return Counter(group.kind.name for group, _ in scene.objects)


def named(text: str) -> list[str]:
    """Return the kinds that a text names, in order."""
    return [NOUNS[noun] for noun in NOUN.findall(text)]


def test_the_image_that_shows_a_thing_is_the_only_one(asked: Asked) -> None:
    """Its letter is its place in the row; every letter is sometimes right."""
    letters: Counter[str] = Counter()
    for several, item in of_form(asked, "which of"):
        [kind] = named(item.text)
        showing = [LETTERS[at] for at, scene in enumerate(several) if counts(scene)[kind]]
        assert showing == [item.short], item
        assert item.answer.startswith(f"Picture {item.short} shows "), item
        assert item.form == f"which of {len(several)}"
        letters[item.short] += 1
    assert letters.keys() == {"A", "B", "C"}
    assert letters["A"] == pytest.approx(letters["B"], rel=0.3)


def test_what_two_images_share_is_in_both_and_alone(asked: Asked) -> None:
    """One kind, or nothing at all."""
    shorts: Counter[bool] = Counter()
    for several, item in of_form(asked, "in both"):
        shared = counts(several[0]).keys() & counts(several[1]).keys()
        assert shared == ({item.short} if item.short != "nothing" else set()), item
        assert named(item.answer) == sorted(shared)
        shorts[item.short == "nothing"] += 1
    assert min(shorts.values()) > 10


def test_what_is_found_again_is_in_the_third_image(asked: Asked) -> None:
    """Of the animals (vehicles, foods) of A and B: the only one that is in C, both, or none."""
    shorts: Counter[str] = Counter()
    for several, item in of_form(asked, "found again"):
        a, b, c = (counts(scene).keys() for scene in several)
        [group] = [group for group in GROUPS if group in item.text]
        first, second = a & {*GROUPS[group]}, b & {*GROUPS[group]}
        either = first | second
        again = sorted(either & c)
        both, none = ("both", "neither") if len(either) == 2 else ("", "none")
        expected = again[0] if len(again) == 1 else both if again else none
        assert first
        assert second
        assert len(either) > 1
        assert ("each show one kind" not in item.text) or len(first) == len(second) == 1
        assert item.short == expected, item
        assert item.short in item.answer.lower()
        shorts["one" if named(item.short) else item.short] += 1
    assert min(shorts["neither"], shorts["none"], shorts["one"]) > 5


def test_the_image_with_more_has_more(asked: Asked) -> None:
    """Of A and B, also among three; the answer gives both numbers."""
    for several, item in of_form(asked, "more"):
        [kind] = named(item.text)
        one, other = (counts(scene)[kind] for scene in several[:2])
        assert item.short == ("A" if one > other else "B"), item
        assert one != other
        most, least = max(one, other), min(one, other)
        told = f"has more: {number_word(most)} against {number_word(least) if least else 'none'}."
        assert item.answer == f"Picture {item.short} {told}"


def test_numbers_are_added_over_all_images(asked: Asked) -> None:
    """Only of what at least two of them show."""
    for several, item in of_form(asked, "altogether"):
        [kind] = named(item.text)
        numbers = [counts(scene)[kind] for scene in several]
        assert item.short == number_word(sum(numbers)), item
        assert f" {item.short} {plural(kind)}." in item.answer
        assert sum(map(bool, numbers)) >= 2


def test_places_are_compared_once_with_yes_and_once_with_no(asked: Asked) -> None:
    """Yes where the settings are one; else the answer names both."""
    shorts: dict[tuple[str, ...], list[str]] = {}
    for several, item in of_form(asked, "same place"):
        one, other = re.findall(r"\b[ABC]\b", item.text)
        first, second = (several[LETTERS.index(letter)].setting for letter in (one, other))
        assert item.short == ("yes" if first == second else "no"), item
        assert item.answer.lower().startswith(item.short)
        if item.short == "no":
            told = f"{one} was taken {BACKGROUNDS[first]} and {other} {BACKGROUNDS[second]}."
            assert told in item.answer
        shorts.setdefault(tuple(scene.name for scene in several), []).append(item.short)
    assert len(shorts) > 40
    assert all(sorted(answers) == ["no", "yes"] for answers in shorts.values())


def test_every_form_is_met_at_most_once_for_the_same_images(asked: Asked) -> None:
    """But for the pair about places. All are of the kind 'context', and say so in whole sentences."""
    assert len({item.form for _, item in asked}) == len(FORMS) + 1  # which of 2, which of 3
    for _, item in asked:
        assert item.kind == "context"
        assert re.fullmatch(r"[A-Z].*\?", item.text)
        assert re.fullmatch(r"[A-Z].*\.", item.answer)
    chance = random.Random(2)
    scenes = [sample_scene(n, seed=9, split="train", shapes=glyph_shapes()) for n in range(3)]
    forms = [item.form for item in questions_about_all([facts(scene) for scene in scenes], chance)]
    assert all(times == 1 for form, times in Counter(forms).items() if form != "same place")


def image(*categories: str, caption: str = "", crowd: bool = False) -> Facts:
    """Return the facts about an image with a box for each category."""
    box = Box(0.1, 0.1, 0.3, 0.3)
    things = tuple(Instance(category, box, crowd) for category in categories)
    annotated = AnnotatedImage("1", Path("x"), 9, 9, (caption,), things)
    return derive_facts(annotated, ("dog", "cat", "bird", "cup", "person", "car"))


def forms(*images: Facts) -> dict[str, str]:
    """Return the short answer of each form of question about some images."""
    return {item.form: item.short for item in questions_about_all(images, random.Random(0))}


def test_a_caption_that_hints_at_a_thing_forbids_the_question() -> None:
    """A puppy that nobody drew a box around may be a second dog in the row."""
    sure = forms(image("dog"), image("cup"))
    assert sure == {"which of 2": sure["which of 2"], "in both": "nothing", "more": sure["more"]}
    hinted = forms(image("dog"), image(caption="A puppy"))
    assert hinted == {}


def test_a_crowd_has_no_number() -> None:
    """Neither more nor altogether, but it is there."""
    crowd, single = image("person", crowd=True), image("person")
    assert forms(crowd, single) == {"in both": "person"}
    assert forms(single, image("person", "person")) == {
        "in both": "person",
        "more": "B",
        "altogether": "three",
    }


def test_two_things_in_common_are_not_asked_for() -> None:
    """The question wants one answer."""
    assert "in both" not in forms(image("dog", "cup"), image("cup", "dog"))
    assert forms(image("dog", "cup"), image("cat", "cup"))["in both"] == "cup"


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
def test_found_again_has_four_answers(third: tuple[str, ...], short: str) -> None:
    """The animal of A, that of B, both, or neither."""
    assert forms(image("dog"), image("cat"), image(*third))["found again"] == short


def test_found_again_takes_several_of_a_group_in_one_image() -> None:
    """With a list to choose from the answer is one of them, or none; never a list."""
    several = image("dog", "cat"), image("bird")
    assert forms(*several, image("cat"))["found again"] == "cat"
    assert forms(*several, image("cup"))["found again"] == "none"
    assert "found again" not in forms(*several, image("cat", "bird"))


def test_found_again_wants_two_of_a_group_and_no_doubt() -> None:
    """Not the same alone in both, none in one of them, nothing uncertain in the third, and three images."""
    dog, cat = image("dog"), image("cat")
    for several in (
        (dog, dog, cat),
        (image("dog", "cat"), image("cup"), dog),
        (dog, cat, image("cup", caption="A kitten")),
        (dog, cat),
    ):
        assert "found again" not in forms(*several)
