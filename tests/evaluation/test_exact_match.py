"""Questions are balanced and answerable, scoring is exact, and the comparisons compare what they say."""

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, Instance
from caldera.annotations.boxes import Box
from caldera.annotations.coco import read_coco
from caldera.conversation import Conversation, Turn
from caldera.errors import InputError
from caldera.evaluation.annotation_questions import (
    ExactMatch,
    _choose_least_used,
    build_caption_task,
    build_questions,
    majority_answers,
    normalized,
    with_shuffled_images,
)
from caldera.evaluation.benchmark import Item
from caldera.files.skipped import SkippedItems
from caldera.instructions.questions import Question


def asked(annotations: AnnotationSet, beside: Path) -> ExactMatch:
    """Write questions with the demo's numbers."""
    return build_questions(
        annotations, name="t", per_image=8, context_per_image=2, seed=5, beside=beside
    )


@pytest.fixture
def coco(third_party: Path) -> AnnotationSet:
    """Eighty real images."""
    return read_coco(third_party / "coco_mini", SkippedItems())


@pytest.mark.parametrize(
    ("said", "meant", "same"),
    [
        ("Yes.", "yes", True),
        ("  TOP  left ", "top left", True),
        ("yes, there is", "yes", False),
        ("", "no", False),
        ("eyes", "yes", False),
    ],
)
def test_answers_are_compared_without_case_and_closing_marks(
    said: str, meant: str, same: bool
) -> None:
    """Only what is around a word is forgiven, never another word."""
    assert (normalized(said) == normalized(meant)) is same


def test_yes_and_no_are_balanced_for_each_image(coco: AnnotationSet, tmp_path: Path) -> None:
    """Each kind asks each image as many yes as no, and there are many questions."""
    bench = asked(coco, tmp_path)
    answers: dict[str, dict[tuple[str, ...], Counter[str]]] = defaultdict(
        lambda: defaultdict(Counter)
    )
    for item in bench.items:
        if item.references[0] in ("yes", "no"):
            answers[item.category][item.conversation.images][item.references[0]] += 1
    assert answers.keys() >= {"presence", "reasoning", "relation"}
    assert len(answers["presence"] | answers["reasoning"]) > 60
    for kind, by_image in answers.items():
        assert len(by_image) >= (1 if kind == "context" else 8), kind
        assert all(count["yes"] == count["no"] > 0 for count in by_image.values()), kind
    assert len({item.id for item in bench.items}) == len(bench.items) > 400
    most = Counter(item.conversation.images for item in bench.items).most_common(1)[0][1]
    assert most <= 8


def test_forms_about_several_images_are_chosen_evenly() -> None:
    """What was asked least so far comes first, and a yes brings its no, if there is room for both."""
    items = [
        Question("context", form, "Text?", short, "Answer.")
        for form, short in (("often", "A"), ("seldom", "two"), ("place", "yes"), ("place", "no"))
    ]
    met = Counter({"often": 5, "seldom": 1, "place": 2})
    chance = random.Random(0)
    assert _choose_least_used(items, 3, chance, met) == items[1:]
    assert met == {"often": 5, "seldom": 2, "place": 4}
    assert _choose_least_used(items, 2, chance, met) == items[1::-1]


def test_every_item_is_asked_alone_and_finds_its_images(
    coco: AnnotationSet, tmp_path: Path
) -> None:
    """One turn, ending with the request for a short answer; image paths start from the given folder."""
    for item in asked(coco, tmp_path).items:
        [turn] = item.conversation.turns
        assert turn.text.endswith("Answer the question using a single word or phrase.")
        assert all((tmp_path / path).is_file() for path in item.conversation.images)
        assert len(item.conversation.images) == (
            1 if item.category != "context" else len(turn.images)
        )
        assert (len(turn.images) > 1) == (item.category == "context")


def test_scores_are_shares_by_kind() -> None:
    """Overall is over items, not over kinds."""
    items = [
        Item(str(number), kind, "f", Conversation("c", (Turn("user", ("?",)),)), ("yes",))
        for number, kind in enumerate(("a", "a", "a", "b"))
    ]
    bench = ExactMatch("t", items)

    score = bench.score({"0": "Yes", "1": "no", "2": "yes.", "3": "no"})

    assert score.overall == 0.5
    assert score.by_category == {"a": 2 / 3, "b": 0.0}
    assert score.counts == {"a": 3, "b": 1}
    with pytest.raises(InputError, match="2 of 4 items have no answer: 2, 3"):
        bench.score({"0": "x", "1": "x"})
    with pytest.raises(InputError, match="1 answers belong to no item: 9"):
        bench.score({"0": "", "1": "", "2": "", "3": "", "9": ""})


def image(name: str, category: str, count: int, folder: Path) -> AnnotatedImage:
    """Return an image of `count` things of one category side by side."""
    boxes = tuple(
        Instance(category, Box(0.1 + 0.2 * at, 0.1, 0.25 + 0.2 * at, 0.3)) for at in range(count)
    )
    return AnnotatedImage(name, folder / f"{name}.jpg", 10, 10, (f"{count} {category}",), boxes)


def test_the_prior_is_the_commonest_training_answer(tmp_path: Path) -> None:
    """Where most training images show two dogs, it answers 'two' to how many, whatever is asked about."""
    training = AnnotationSet(
        tuple(image(f"t{at}", "dog", 2 if at < 8 else 3, tmp_path) for at in range(10)),
        ("dog", "cat"),
    )
    held_out = AnnotationSet(
        tuple(image(f"h{at}", "cat", 2 + at, tmp_path) for at in range(3)), ("dog", "cat")
    )
    bench = asked(held_out, tmp_path)

    prior = majority_answers(bench.items, training, seed=0)

    counting = [item for item in bench.items if item.question_type == "how many"]
    assert len(counting) == 3
    assert {prior[item.id] for item in counting} == {"two"}
    assert bench.score(prior).by_category["count"] == pytest.approx(1 / 3)
    assert bench.score(prior).by_category["presence"] == 0.5


def test_other_images_keep_the_question_and_change_every_image(
    coco: AnnotationSet, tmp_path: Path
) -> None:
    """Only what is seen differs, and several images stay different from each other."""
    items = asked(coco, tmp_path).items
    for item, other in zip(items, with_shuffled_images(items), strict=True):
        assert (item.id, item.references) == (other.id, other.references)
        assert item.conversation.turns[0].text == other.conversation.turns[0].text
        pairs = zip(item.conversation.images, other.conversation.images, strict=True)
        assert all(one != two for one, two in pairs)
        assert len(set(other.conversation.images)) == len(set(item.conversation.images))


def test_captions_are_scored_against_all_that_people_wrote(
    coco: AnnotationSet, tmp_path: Path
) -> None:
    """People's own captions score far above other images' captions."""
    bench = build_caption_task(coco, name="c", beside=tmp_path)
    own = {item.id: item.references[0] for item in bench.items}
    shifted = dict(zip(own, [*list(own.values())[1:], next(iter(own.values()))], strict=True))
    assert bench.score(own).overall > 3 * bench.score(shifted).overall
