"""Facts are what boxes and captions leave beyond doubt; what they leave open is neither there nor missing."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.boxes import Box
from caldera.annotations.coco import read_coco
from caldera.files.skipped import SkippedItems
from caldera.instructions.coco_knowledge import (
    GROUPS,
    OTHER_NAMES,
    PURPOSES,
    SETTINGS,
    Purpose,
    group_of,
    mentioned_categories,
)
from caldera.instructions.facts import derive_facts

LOOKED_FOR = ("dog", "cat", "cup", "scissors", "hot dog", "dining table", "person", "car")


def image(*things: tuple[str, float, float], captions: tuple[str, ...] = ()) -> AnnotatedImage:
    """Return an image with a box of a tenth of each side around every (category, across, down)."""
    instances = tuple(
        Instance(category, Box(across - 0.05, down - 0.05, across + 0.05, down + 0.05))
        for category, across, down in things
    )
    return AnnotatedImage("1", Path("1.jpg"), 100, 100, captions, instances)


def test_boxes_say_what_is_there_how_many_and_where() -> None:
    """Two dogs and a cup: places are of single things, instances of all that stand in one place."""
    facts = derive_facts(
        image(("dog", 0.1, 0.1), ("cup", 0.9, 0.5), ("dog", 0.35, 0.9)), LOOKED_FOR
    )
    assert facts.present == ("dog", "cup")
    assert facts.counts == {"dog": 2, "cup": 1}
    assert facts.places == {"cup": "right"}
    assert facts.instances == (("dog", "top left"), ("cup", "right"))
    assert facts.absent == ("cat", "scissors", "hot dog", "dining table", "person", "car")


def test_relations_are_between_single_things() -> None:
    """Each pair from both sides; with a second dog there is none."""
    one = derive_facts(image(("dog", 0.1, 0.1), ("cup", 0.9, 0.1)), LOOKED_FOR)
    assert one.relations == (("dog", "left of", "cup"), ("cup", "right of", "dog"))
    two = derive_facts(image(("dog", 0.1, 0.1), ("cup", 0.9, 0.1), ("dog", 0.5, 0.5)), LOOKED_FOR)
    assert two.relations == ()


def test_what_is_too_small_to_see_is_neither_there_nor_missing() -> None:
    """A speck alone is no dog to ask about; beside a dog it makes the number uncertain."""
    speck = Instance("dog", Box(0.5, 0.5, 0.52, 0.52))
    alone = derive_facts(AnnotatedImage("1", Path("1.jpg"), 9, 9, (), (speck,)), LOOKED_FOR)
    assert alone.present == ()
    assert "dog" not in alone.absent
    beside = image(("dog", 0.1, 0.1))
    both = derive_facts(
        AnnotatedImage("1", Path("1.jpg"), 9, 9, (), (*beside.instances, speck)), LOOKED_FOR
    )
    assert both.present == ("dog",)
    assert both.counts == {}
    assert both.places == {}


def test_crowds_and_great_numbers_are_not_counted() -> None:
    """A crowd is there without a number; so are seven cups, and scissors, which have no singular."""
    crowd = Instance("person", Box(0, 0, 1, 1), is_crowd=True)
    facts = derive_facts(AnnotatedImage("1", Path("1.jpg"), 9, 9, (), (crowd,)), LOOKED_FOR)
    assert facts.present == ("person",)
    assert facts.counts == {}
    cups = [("cup", 0.1 + n / 10, 0.5) for n in range(7)]
    assert derive_facts(image(*cups), LOOKED_FOR).counts == {}
    assert derive_facts(image(*cups[:6]), LOOKED_FOR).counts == {"cup": 6}
    assert derive_facts(image(("scissors", 0.5, 0.5)), LOOKED_FOR).counts == {}


@pytest.mark.parametrize(
    ("caption", "hinted"),
    [
        ("A puppy sleeps", {"dog"}),
        ("Two DOGS", {"dog"}),
        ("A hot dog with mustard", {"hot dog"}),
        ("A man at a table", {"person", "dining table"}),
        ("A mug", {"cup"}),
        ("Traffic in the rain", {"car"}),
        ("A caterpillar and a dogma", set()),
        ("A cat's paw", {"cat"}),
        ("", set()),
    ],
)
def test_a_caption_vetoes_what_boxes_seem_to_deny(caption: str, hinted: set[str]) -> None:
    """Any word that may mean a category keeps it from being called absent, without making it present."""
    facts = derive_facts(image(captions=("A thing", caption)), LOOKED_FOR)
    assert set(LOOKED_FOR) - set(facts.absent) == hinted
    assert facts.present == ()


def test_categories_may_be_written_with_capitals() -> None:
    """As some tools write them: captions veto them just so."""
    facts = derive_facts(image(captions=("A puppy and a red apple",)), ("Dog", "Apple", "Cat"))
    assert facts.absent == ("Cat",)


def test_what_nobody_looked_for_is_still_possible() -> None:
    """A zebra in a caption counts, though the annotators drew boxes around dogs alone."""
    facts = derive_facts(image(("dog", 0.1, 0.1), captions=("A dog meets a zebra",)), ("dog",))
    assert facts.possible >= {"dog", "zebra"}


@pytest.mark.parametrize(
    ("captions", "color"),
    [
        (("A red car", "A car"), "red"),
        (("A Red car", "a red car."), "red"),
        (("A red car", "A blue car"), None),
        (("A black and white car",), None),
        (("A black, white car",), None),
        (("A blue-red car",), None),
        (("A red old car",), None),
        (("A tired car",), None),
        (("Red cars",), None),
        (("A car",), None),
    ],
)
def test_a_color_is_what_captions_agree_on(captions: tuple[str, ...], color: str | None) -> None:
    """It stands right before the noun, is not one of several, and no caption gives another."""
    facts = derive_facts(image(("car", 0.5, 0.5), captions=captions), LOOKED_FOR)
    assert facts.colors.get("car") == color


def test_a_color_of_several_things_is_that_of_their_plural() -> None:
    """'A red car' among two cars says nothing of the other."""
    cars = (("car", 0.2, 0.5), ("car", 0.8, 0.5))
    assert derive_facts(image(*cars, captions=("Two red cars",)), LOOKED_FOR).colors == {
        "car": "red"
    }
    assert derive_facts(image(*cars, captions=("A red car",)), LOOKED_FOR).colors == {}


@pytest.mark.parametrize(
    ("captions", "setting"),
    [
        (("A dog in a kitchen", "Dog in the kitchen."), "kitchen"),
        (("A kitchen with a dog", "A dog in a Kitchen"), "kitchen"),
        (("A dog in the snow", "Dog on snow", "in the snow"), "snow"),
        (("A dog in a living room", "Room in a living room"), "living room"),
        (("A dog in a kitchen", "A dog"), None),
        (("A dog in a kitchen, in a kitchen", "A dog"), None),
        (("A dog in a kitchen", "A dog in a kitchen", "A dog on a beach"), None),
        (("A kitchen knife", "A kitchen knife"), None),
        (("At an airport", "at the airport"), "airport"),
    ],
)
def test_a_setting_is_what_two_captions_name_and_none_denies(
    captions: tuple[str, ...], setting: str | None
) -> None:
    """Named by 'in a', 'on the', 'at an', or by opening the caption."""
    assert derive_facts(image(captions=captions), LOOKED_FOR).setting == setting


spots = st.tuples(st.sampled_from(LOOKED_FOR), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
words = st.sampled_from(["A dog", "two puppies", "in a kitchen", "red car", "people", "mugs"])


@given(things=st.lists(spots, max_size=9), captions=st.lists(words, max_size=4))
def test_facts_never_contradict_each_other_or_the_boxes(
    things: list[tuple[str, float, float]], captions: list[str]
) -> None:
    """What is there is possible, what is absent is not; numbers, places and relations are of what is there."""
    facts = derive_facts(image(*things, captions=tuple(captions)), LOOKED_FOR)
    boxed = [category for category, _, _ in things]
    assert set(facts.present) == set(boxed)
    assert facts.possible >= set(boxed)
    assert not facts.possible & set(facts.absent)
    assert facts.possible | set(facts.absent) >= set(LOOKED_FOR)
    assert all(boxed.count(category) == number for category, number in facts.counts.items())
    single = {category for category, number in facts.counts.items() if number == 1}
    assert facts.places.keys() <= single
    assert set(facts.places.items()) <= set(facts.instances)
    assert facts.colors.keys() <= facts.counts.keys()
    found = {category: (across, down) for category, across, down in things}
    for one, how, other in facts.relations:
        assert {one, other} <= single
        (x1, y1), (x2, y2) = found[one], found[other]
        truth = {"left of": x1 < x2, "right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}
        assert truth[how]


@pytest.mark.parametrize("purpose", PURPOSES, ids=lambda purpose: purpose.uses)
def test_a_wish_does_not_name_what_serves_it(purpose: Purpose) -> None:
    """Else the question would give its answer away."""
    assert len(purpose.goals) >= 2
    assert not any(mentioned_categories(wish, purpose.categories) for wish in purpose.goals)


def test_purposes_groups_and_settings_are_consistent() -> None:
    """A category is in one group; wishes and what serves them are told apart; all names are COCO-like."""
    grouped = [category for members in GROUPS.values() for category in members]
    assert len(set(grouped)) == len(grouped)
    assert [group_of(category) for category in ("dog", "car", "pizza", "person")] == [
        "animal", "vehicle", "food", None,
    ]  # fmt: skip
    wishes = [wish for purpose in PURPOSES for wish in purpose.goals]
    assert len(set(wishes)) == len(wishes)
    assert len({purpose.uses for purpose in PURPOSES}) == len(PURPOSES)
    assert set(SETTINGS.values()) == {"in", "on", "at"}


def test_real_categories_have_all_the_knowledge(third_party: Path) -> None:
    """Every name in the tables is one of COCO's 80, and real facts are found in every photo."""
    read = read_coco(third_party / "coco_mini", SkippedItems())
    known = {
        *OTHER_NAMES,
        *(category for members in GROUPS.values() for category in members),
        *(category for purpose in PURPOSES for category in purpose.categories),
    }
    assert known <= set(read.categories)
    facts = [derive_facts(each, read.categories) for each in read.images]
    assert all(each.absent for each in facts)
    assert sum(len(each.present) > 0 for each in facts) > 75
    assert sum(each.setting is not None for each in facts) > 5
