"""Facts are certain by boxes and captions; an uncertain object is neither present nor absent."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.boxes import Box
from caldera.instructions.facts import derive_facts

LABELED = ("dog", "cat", "cup", "scissors", "hot dog", "dining table", "person", "car")


def image(*objects: tuple[str, float, float], captions: tuple[str, ...] = ()) -> AnnotatedImage:
    """Return an image with a box of a tenth of each side around every (category, x, y)."""
    instances = tuple(
        Instance(category, Box(x - 0.05, y - 0.05, x + 0.05, y + 0.05))
        for category, x, y in objects
    )
    return AnnotatedImage("1", Path("1.jpg"), 100, 100, captions, instances)


def test_boxes_give_presence_counts_and_positions() -> None:
    """Of two dogs and a cup: positions are of single objects, instances of all in one ninth of the image."""
    facts = derive_facts(image(("dog", 0.1, 0.1), ("cup", 0.9, 0.5), ("dog", 0.35, 0.9)), LABELED)
    assert facts.present == ("dog", "cup")
    assert facts.counts == {"dog": 2, "cup": 1}
    assert facts.positions == {"cup": "right"}
    assert facts.instances == (("dog", "top left"), ("cup", "right"))
    assert facts.absent == ("cat", "scissors", "hot dog", "dining table", "person", "car")


def test_relations_are_between_single_objects() -> None:
    """Each pair in both directions; with a second dog there are none."""
    single = derive_facts(image(("dog", 0.1, 0.1), ("cup", 0.9, 0.1)), LABELED)
    assert single.relations == (("dog", "left of", "cup"), ("cup", "right of", "dog"))
    two = derive_facts(image(("dog", 0.1, 0.1), ("cup", 0.9, 0.1), ("dog", 0.5, 0.5)), LABELED)
    assert two.relations == ()


def test_a_tiny_object_is_neither_present_nor_absent() -> None:
    """A tiny dog is not asked about; next to another dog it makes the count uncertain."""
    speck = Instance("dog", Box(0.5, 0.5, 0.52, 0.52))
    alone = derive_facts(AnnotatedImage("1", Path("1.jpg"), 9, 9, (), (speck,)), LABELED)
    assert alone.present == ()
    assert "dog" not in alone.absent
    visible = image(("dog", 0.1, 0.1))
    both = derive_facts(
        AnnotatedImage("1", Path("1.jpg"), 9, 9, (), (*visible.instances, speck)), LABELED
    )
    assert both.present == ("dog",)
    assert both.counts == {}
    assert both.positions == {}


def test_a_category_with_dropped_boxes_is_neither_counted_nor_absent() -> None:
    """A dog may be one of several, and a cat may be there although no box shows it."""
    photo = replace(
        image(("dog", 0.1, 0.1), ("cup", 0.9, 0.1)), uncounted=frozenset({"dog", "cat"})
    )
    facts = derive_facts(photo, LABELED)
    assert facts.present == ("dog", "cup")
    assert facts.counts == {"cup": 1}
    assert facts.relations == ()
    assert not {"dog", "cat"} & {*facts.absent}
    assert {"dog", "cat"} <= facts.possible


def test_crowds_and_large_numbers_are_not_counted() -> None:
    """A crowd is present without a count; so are seven cups, and scissors, which have no singular."""
    crowd = Instance("person", Box(0, 0, 1, 1), is_crowd=True)
    facts = derive_facts(AnnotatedImage("1", Path("1.jpg"), 9, 9, (), (crowd,)), LABELED)
    assert facts.present == ("person",)
    assert facts.counts == {}
    cups = [("cup", 0.1 + n / 10, 0.5) for n in range(7)]
    assert derive_facts(image(*cups), LABELED).counts == {}
    assert derive_facts(image(*cups[:6]), LABELED).counts == {"cup": 6}
    assert derive_facts(image(("scissors", 0.5, 0.5)), LABELED).counts == {}


@pytest.mark.parametrize(
    ("caption", "mentioned"),
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
def test_a_caption_vetoes_absence(caption: str, mentioned: set[str]) -> None:
    """A category that any word may refer to is not absent, but not present either."""
    facts = derive_facts(image(captions=("A thing", caption)), LABELED)
    assert set(LABELED) - set(facts.absent) == mentioned
    assert facts.present == ()


def test_categories_may_be_capitalized() -> None:
    """As some tools write them; captions veto their absence all the same."""
    facts = derive_facts(image(captions=("A puppy and a red apple",)), ("Dog", "Apple", "Cat"))
    assert facts.absent == ("Cat",)


def test_an_unlabeled_category_is_possible() -> None:
    """A zebra in a caption counts, though the annotators labeled only dogs."""
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
def test_a_color_is_one_that_captions_agree_on(
    captions: tuple[str, ...], color: str | None
) -> None:
    """It is directly before the noun and not one of several, and no caption mentions another."""
    facts = derive_facts(image(("car", 0.5, 0.5), captions=captions), LABELED)
    assert facts.colors.get("car") == color


def test_a_color_of_several_objects_needs_the_plural() -> None:
    """'A red car' does not give the color of both of two cars."""
    cars = (("car", 0.2, 0.5), ("car", 0.8, 0.5))
    assert derive_facts(image(*cars, captions=("Two red cars",)), LABELED).colors == {"car": "red"}
    assert derive_facts(image(*cars, captions=("A red car",)), LABELED).colors == {}


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
def test_a_setting_needs_two_captions_and_no_other_setting(
    captions: tuple[str, ...], setting: str | None
) -> None:
    """It follows 'in a', 'on the', 'at an', or begins the caption."""
    assert derive_facts(image(captions=captions), LABELED).setting == setting


objects = st.tuples(st.sampled_from(LABELED), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
captions = st.sampled_from(["A dog", "two puppies", "in a kitchen", "red car", "people", "mugs"])


@given(objects=st.lists(objects, max_size=9), captions=st.lists(captions, max_size=4))
def test_facts_never_contradict_each_other_or_the_boxes(
    objects: list[tuple[str, float, float]], captions: list[str]
) -> None:
    """Present categories are possible, absent ones are not; counts, positions and relations are of present ones."""
    facts = derive_facts(image(*objects, captions=tuple(captions)), LABELED)
    boxed = [category for category, _, _ in objects]
    assert set(facts.present) == set(boxed)
    assert facts.possible >= set(boxed)
    assert not facts.possible & set(facts.absent)
    assert facts.possible | set(facts.absent) >= set(LABELED)
    assert all(boxed.count(category) == number for category, number in facts.counts.items())
    single = {category for category, number in facts.counts.items() if number == 1}
    assert facts.positions.keys() <= single
    assert set(facts.positions.items()) <= set(facts.instances)
    assert facts.colors.keys() <= facts.counts.keys()
    centers = {category: (x, y) for category, x, y in objects}
    for subject, relation, reference in facts.relations:
        assert {subject, reference} <= single
        (x1, y1), (x2, y2) = centers[subject], centers[reference]
        truth = {"left of": x1 < x2, "right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}
        assert truth[relation]
