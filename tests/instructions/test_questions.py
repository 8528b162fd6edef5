"""Every question about a drawn scene has the answer that the scene itself gives, read off it without the facts."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.coco import read_coco
from caldera.annotations.english import number_word, plural
from caldera.files.skipped import SkippedItems
from caldera.instructions.coco_knowledge import COLORS, GROUPS, PURPOSES
from caldera.instructions.facts import Facts, derive_facts
from caldera.instructions.questions import FORMS, Question, describe, questions_about, yes_no_pairs
from caldera.scenes.captions import captions_of
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import BACKGROUNDS, OBJECT_KINDS, SIDE, Scene, SceneObject, sample_scene

NOUNS = {noun: name for name in OBJECT_KINDS for noun in (name, plural(name))}
PLACE = "top left|top right|bottom left|bottom right|top|bottom|left|right|middle"
NOUN = re.compile(rf"\b(?:{'|'.join(sorted(NOUNS, key=len, reverse=True))})\b")


def annotated(scene: Scene) -> AnnotatedImage:
    """Return a scene as annotators would hand it over."""
    instances = tuple(Instance(group.kind.name, thing.box) for group, thing in scene.objects)
    return AnnotatedImage(scene.name, Path("x.jpg"), SIDE, SIDE, captions_of(scene), instances)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Two hundred scenes of either split."""
    return [
        sample_scene(index, seed=8, split=split, shapes=glyph_shapes())
        for index in range(100)
        for split in ("train", "held_out")
    ]


@pytest.fixture(scope="module")
def asked(scenes: list[Scene]) -> list[tuple[Scene, list[Question]]]:
    """All questions about each."""
    return [(scene, questions_about(facts(scene), random.Random(scene.name))) for scene in scenes]


def facts(scene: Scene) -> Facts:
    """Return the facts about a scene."""
    return derive_facts(annotated(scene), OBJECT_KINDS)


def of_kind(
    asked: list[tuple[Scene, list[Question]]], kind: str
) -> Iterator[tuple[Scene, Question]]:
    """Yield every question of a kind, and assert that there are some of them."""
    found = [(scene, item) for scene, items in asked for item in items if item.kind == kind]
    assert len(found) > 50, f"too few questions of kind {kind}"
    yield from found


def things(scene: Scene, kind: str) -> tuple[SceneObject, ...]:
    """Return all things of a kind."""
    return next((group.objects for group in scene.groups if group.kind.name == kind), ())


def named(text: str) -> list[str]:
    """Return the kinds that a text names, in order."""
    return [NOUNS[noun] for noun in NOUN.findall(text)]


def ninth(thing: SceneObject) -> str:
    """Name the ninth of the image that a thing's middle lies in."""
    across = (thing.left + thing.width / 2) / SIDE
    down = (thing.top + thing.height / 2) / SIDE
    row = "top" if down < 0.36 else "bottom" if down > 0.64 else ""
    column = "left" if across < 0.36 else "right" if across > 0.64 else ""
    return f"{row} {column}".strip() or "middle"


def stands(one: SceneObject, word: str, other: SceneObject) -> bool:
    """Tell whether one thing stands so to another."""
    x1, x2 = one.left + one.width / 2, other.left + other.width / 2
    y1, y2 = one.top + one.height / 2, other.top + other.height / 2
    return {"left": x1 < x2, "right": x1 > x2, "above": y1 < y2, "below": y1 > y2}[word]


def test_presence_is_that_of_the_scene(asked: list[tuple[Scene, list[Question]]]) -> None:
    """Yes for what stands there, with its number; no for what does not."""
    for scene, item in of_kind(asked, "presence"):
        [kind] = named(item.text)
        count = len(things(scene, kind))
        assert item.short == ("yes" if count else "no"), item
        assert item.answer.lower().startswith(item.short)
        assert named(item.answer) == [kind]
        if count > 1:
            assert f" {number_word(count)} {plural(kind)}." in item.answer


@pytest.mark.parametrize("kind", ["presence", "reasoning"])
def test_yes_and_no_are_balanced_in_every_image(
    asked: list[tuple[Scene, list[Question]]], kind: str
) -> None:
    """As many of either, and they come in pairs, so that a cut after any pair stays balanced."""
    images = 0
    for _, items in asked:
        answers = [item.short for item in items if item.kind == kind]
        images += bool(answers)
        assert all(
            {*pair} == {"yes", "no"} for pair in zip(answers[::2], answers[1::2], strict=True)
        )
    assert images > 60


def test_nothing_is_asked_for_twice(asked: list[tuple[Scene, list[Question]]]) -> None:
    """Presence asks for each kind once, and an image has no question twice."""
    for _, items in asked:
        kinds = [named(item.text)[0] for item in items if item.kind == "presence"]
        assert len(set(kinds)) == len(kinds)
        assert len({item.text for item in items}) == len(items)


def test_counts_are_those_of_the_scene(asked: list[tuple[Scene, list[Question]]]) -> None:
    """Several things are always counted, single ones now and then, so that 'one' is no safe guess."""
    shorts: Counter[str] = Counter()
    for scene, item in of_kind(asked, "count"):
        [kind] = named(item.text)
        assert item.short == number_word(len(things(scene, kind))), item
        assert f" {item.short} " in item.answer
        shorts[item.short] += 1
    several = sum(len(group.objects) > 1 for scene, _ in asked for group in scene.groups)
    assert shorts.total() - shorts["one"] == several
    assert 0.1 < shorts["one"] / shorts.total() < 0.6


def test_positions_are_those_of_the_scene(asked: list[tuple[Scene, list[Question]]]) -> None:
    """Only single things have one."""
    for scene, item in of_kind(asked, "position"):
        [kind] = named(item.text)
        [thing] = things(scene, kind)
        assert item.short == ninth(thing), item
        assert item.short in item.answer


def test_relations_are_those_of_the_scene(asked: list[tuple[Scene, list[Question]]]) -> None:
    """A choice between two sides, or a claim that holds about half of the time."""
    shorts: Counter[str] = Counter()
    for scene, item in of_kind(asked, "relation"):
        one, other = named(item.text)
        [first], [second] = things(scene, one), things(scene, other)
        shorts[item.short] += 1
        [told] = re.findall(r"\b(left|right|above|below)\b", item.answer)
        assert stands(first, told, second), item
        assert item.answer.endswith(f" the {other}.")
        sides = re.findall(r"\b(left|right|above|below)\b", item.text)
        if item.form == "is it beside":
            assert item.short == ("yes" if stands(first, sides[0], second) else "no"), item
        else:
            assert item.short == told
            assert sides in (["left", "right"], ["above", "below"])
    assert shorts.keys() == {"yes", "no", "left", "right", "above", "below"}
    assert shorts["yes"] == shorts["no"]


def test_colors_are_those_of_the_scene(asked: list[tuple[Scene, list[Question]]]) -> None:
    """Every painted kind is asked about, and no other."""
    met: Counter[str] = Counter()
    for scene, item in of_kind(asked, "colour"):
        [kind] = named(item.text)
        [color] = [group.color for group in scene.groups if group.kind.name == kind]
        assert item.short == color, item
        assert re.findall("|".join(COLORS), item.answer) == [color]
        met[scene.name] += 1
    for scene, _ in asked:
        assert met[scene.name] == sum(group.color is not None for group in scene.groups)


def test_the_one_of_its_group_is_named(asked: list[tuple[Scene, list[Question]]]) -> None:
    """The only animal, vehicle or food."""
    for scene, item in of_kind(asked, "naming"):
        [group] = [group for group in GROUPS if group in item.text]
        there = [one.kind.name for one in scene.groups if one.kind.name in GROUPS[group]]
        assert there == [item.short] == named(item.answer), item
        assert not named(item.text)


def test_the_setting_is_that_of_the_scene(asked: list[tuple[Scene, list[Question]]]) -> None:
    """Once for every scene, with the right preposition."""
    found = {scene.name: item for scene, item in of_kind(asked, "setting")}
    assert len(found) == len(asked)
    for scene, _ in asked:
        item = found[scene.name]
        assert item.short == scene.setting
        assert item.answer.endswith(f" {BACKGROUNDS[scene.setting]}.")


def test_reasons_are_things_of_the_scene(asked: list[tuple[Scene, list[Question]]]) -> None:
    """Yes names a thing that serves the purpose and is there; no names only what is there and does not."""
    for scene, item in of_kind(asked, "reasoning"):
        [purpose] = [purpose for purpose in PURPOSES if item.text in purpose.goals]
        there = {group.kind.name for group in scene.groups}
        serving = there & purpose.categories
        assert item.short == ("yes" if serving else "no"), item
        assert item.answer.startswith(f"{item.short.capitalize()}. ")
        assert item.answer.endswith(f"{purpose.uses}.")
        told = set(named(item.answer.removesuffix(f"{purpose.uses}.")))
        assert told <= there
        assert len(told & purpose.categories) == (1 if serving else 0)


def test_each_purpose_is_asked_for_with_yes_and_with_no(
    asked: list[tuple[Scene, list[Question]]],
) -> None:
    """So that no purpose gives the answer away: of those asked often, neither answer is rare."""
    shorts: dict[str, Counter[str]] = defaultdict(Counter)
    for _, item in of_kind(asked, "reasoning"):
        shorts[item.form][item.short] += 1
    often = {form: answers for form, answers in shorts.items() if answers.total() >= 40}
    assert len(often) > 3
    for form, answers in often.items():
        assert min(answers["yes"], answers["no"]) > 0.25 * answers.total(), (form, answers)


def test_every_form_is_met_and_questions_are_sentences(
    asked: list[tuple[Scene, list[Question]]],
) -> None:
    """All kinds of the table, under their own names; answers are short or whole sentences."""
    items = [item for _, items in asked for item in items]
    assert {item.kind for item in items} == FORMS.keys()
    for item in items:
        assert re.fullmatch(r"[A-Z].*[?.]", item.text), item
        assert re.fullmatch(r"[A-Z].*\.", item.answer), item
        assert "  " not in item.text + item.answer
        assert len(item.short.split()) <= 2


def test_a_yes_is_kept_with_a_no_of_its_kind_or_not_at_all() -> None:
    """All others stand alone; the order stays."""

    def asked(kind: str, short: str) -> Question:
        return Question(kind, "form", "Text?", short, "Answer.")

    red, two = asked("colour", "red"), asked("count", "two")
    there, missing = asked("presence", "yes"), asked("presence", "no")
    beside, reason = asked("relation", "no"), asked("reasoning", "yes")
    again = replace(there, text="Again?")
    assert yes_no_pairs([there, red, again, missing, beside, two, reason]) == [
        [there, missing], [red], [two],
    ]  # fmt: skip
    assert yes_no_pairs([missing, reason, there, beside]) == [[missing, there]]
    assert yes_no_pairs([]) == []


def test_questions_follow_from_the_source_of_chance(scenes: list[Scene]) -> None:
    """The same seed gives the same questions, another one other words."""
    first, again, other = (
        [questions_about(facts(scene), random.Random(seed)) for scene in scenes[:20]]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_description_is_true_and_whole(scenes: list[Scene]) -> None:
    """All that is there with number, color and setting; then places, each met by that many things."""
    spread = placed = related = 0
    for scene in scenes:
        told = describe(facts(scene), random.Random(scene.name))
        first, *rest = told.removesuffix(".").split(". ")
        assert f" {BACKGROUNDS[scene.setting]}" in first
        for group in scene.groups:
            noun = group.kind.name if len(group.objects) == 1 else plural(group.kind.name)
            color = f"{group.color} " if group.color else ""
            assert re.search(
                rf"\b(a|an|{number_word(len(group.objects))}) {color}{noun}\b", first
            ), told
        for sentence in rest:
            kind, *other = named(sentence)
            there = Counter(ninth(thing) for thing in things(scene, kind))
            if other:
                [word] = re.findall(r"\b(left|right|above|below)\b", sentence)
                [one], [another] = things(scene, kind), things(scene, other[0])
                assert stands(one, word, another), told
                related += 1
            elif sentence.startswith("Of the "):
                spots = re.findall(rf"(\w+) (?:is|are) (?:at|on|in) the ({PLACE})", sentence)
                assert {place: amount for amount, place in spots} == {
                    place: number_word(amount) for place, amount in there.items()
                }, told
                spread += 1
            else:
                [place] = re.findall(rf"(?:is|are) (?:at|on|in) the ({PLACE})$", sentence)
                assert there == {place: len(things(scene, kind))}, told
                placed += 1
    assert min(spread, placed, related) > 20


def test_nothing_there_is_not_described() -> None:
    """Neither described nor asked about, however many things were looked for."""
    empty = derive_facts(AnnotatedImage("1", Path("x"), 9, 9, ("A wall",), ()), OBJECT_KINDS)
    assert describe(empty, random.Random(0)) == ""
    assert questions_about(empty, random.Random(0)) == []


def test_questions_about_real_photos_agree_with_their_boxes(third_party: Path) -> None:
    """Presence and numbers of 80 photos, against COCO's boxes and captions alone."""
    read = read_coco(third_party / "coco_mini", SkippedItems())
    met: Counter[str] = Counter()
    for image in read.images:
        boxed = Counter(thing.category for thing in image.instances)
        said = " ".join(image.captions).lower()
        said = re.sub(r"(teddy|stuffed) bear|hot dog", "", said)  # no bear, no dog
        known = derive_facts(image, read.categories)
        for item in questions_about(known, random.Random(image.id)):
            met[item.kind] += 1
            if item.kind == "presence":
                [category] = [
                    each
                    for each in sorted(read.categories, key=len, reverse=True)
                    if re.search(rf"\b{each}\b", item.text)
                ][:1]
                assert (item.short == "yes") is (boxed[category] > 0), item
                assert item.short == "yes" or not re.search(rf"\b{category}s?\b", said), item
            elif item.kind == "count":
                [category] = [each for each in boxed if f" {plural(each)} " in item.text]
                assert item.short == number_word(boxed[category]), item
    assert met["presence"] > 100
    assert met["count"] > 50
    assert met.keys() >= {"position", "relation", "naming", "reasoning"}
