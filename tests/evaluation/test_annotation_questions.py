"""Questions from annotations: balance, exact scores, the majority baseline and shuffled images."""

import random
from collections import Counter, defaultdict
from dataclasses import replace
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
    build_caption_questions,
    build_questions,
    majority_answers,
    normalized,
    with_shuffled_images,
)
from caldera.evaluation.benchmark import Item
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.questions import Question


def build(annotations: AnnotationSet, folder: Path) -> ExactMatch:
    """Build questions with the demo's numbers."""
    return build_questions(
        annotations, name="t", per_image=8, context_per_image=2, seed=5, relative_to=folder
    )


@pytest.fixture
def coco(third_party: Path) -> AnnotationSet:
    """Eighty real images."""
    return read_coco(third_party / "coco_mini", SkippedItems())


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("Yes.", "yes", True),
        ("  TOP  left ", "top left", True),
        ("yes, there is", "yes", False),
        ("", "no", False),
        ("eyes", "yes", False),
    ],
)
def test_answers_are_compared_without_case_and_outer_punctuation(
    answer: str, reference: str, equal: bool
) -> None:
    """Additional words are not accepted."""
    assert (normalized(answer) == normalized(reference)) is equal


def test_yes_and_no_are_balanced_for_each_image(coco: AnnotationSet, tmp_path: Path) -> None:
    """For each image and category there are as many yes as no, and there are many questions."""
    bench = build(coco, tmp_path)
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
    counts = Counter(item.conversation.images for item in bench.items)
    assert max(counts.values()) <= 8


def test_forms_about_several_images_are_chosen_evenly() -> None:
    """The least used form comes first, and a yes is paired with its no, if there is room for both."""
    items = [
        Question("context", form, "Text?", short, "Answer.")
        for form, short in (("often", "A"), ("seldom", "two"), ("place", "yes"), ("place", "no"))
    ]
    use_counts = Counter({"often": 5, "seldom": 1, "place": 2})
    rng = random.Random(0)
    assert _choose_least_used(items, 3, rng, use_counts) == items[1:]
    assert use_counts == {"often": 5, "seldom": 2, "place": 4}
    assert _choose_least_used(items, 2, rng, use_counts) == items[1::-1]


def test_every_item_is_one_turn_with_existing_images(coco: AnnotationSet, tmp_path: Path) -> None:
    """It ends with the instruction to answer briefly; image paths are relative to the folder."""
    for item in build(coco, tmp_path).items:
        [turn] = item.conversation.turns
        assert turn.text.endswith("Answer the question using a single word or phrase.")
        assert all((tmp_path / path).is_file() for path in item.conversation.images)
        assert len(item.conversation.images) == (
            1 if item.category != "context" else len(turn.images)
        )
        assert (len(turn.images) > 1) == (item.category == "context")


def test_scores_are_fractions_by_category() -> None:
    """The overall score is a mean over items, not over categories."""
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
    """Return an image of `count` objects of one category side by side."""
    boxes = tuple(
        Instance(category, Box(0.1 + 0.2 * index, 0.1, 0.25 + 0.2 * index, 0.3))
        for index in range(count)
    )
    return AnnotatedImage(name, folder / f"{name}.jpg", 10, 10, (f"{count} {category}",), boxes)


def test_the_baseline_is_the_most_common_training_answer(tmp_path: Path) -> None:
    """If most training images show two dogs, it answers 'two' to every question of how many."""
    training = AnnotationSet(
        tuple(image(f"t{n}", "dog", 2 if n < 8 else 3, tmp_path) for n in range(10)),
        ("dog", "cat"),
    )
    held_out = AnnotationSet(
        tuple(image(f"h{n}", "cat", 2 + n, tmp_path) for n in range(3)), ("dog", "cat")
    )
    bench = build(held_out, tmp_path)

    answers = majority_answers(bench.items, training, seed=0)

    counting = [item for item in bench.items if item.question_type == "how many"]
    assert len(counting) == 3
    assert {answers[item.id] for item in counting} == {"two"}
    assert bench.score(answers).by_category["count"] == pytest.approx(1 / 3)
    assert bench.score(answers).by_category["presence"] == 0.5


def test_an_image_without_boxes_is_not_asked_about(tmp_path: Path) -> None:
    """Without boxes nothing shows what is absent; questions about the other images are the same."""
    boxed = tuple(image(f"h{n}", "cat", 2 + n, tmp_path) for n in range(3))
    unboxed = replace(boxed[0], id="u", path=tmp_path / "u.jpg", instances=())
    items = build(AnnotationSet((*boxed, unboxed), ("dog", "cat")), tmp_path).items
    assert {item.id.partition("-")[0] for item in items} == {"h0", "h1", "h2"}
    assert not any("u.jpg" in path for item in items for path in item.conversation.images)


def test_shuffled_images_keep_the_question_and_change_every_image(
    coco: AnnotationSet, tmp_path: Path
) -> None:
    """Ids, references and texts are equal, and several images stay different from each shuffled."""
    items = build(coco, tmp_path).items
    for item, shuffled in zip(items, with_shuffled_images(items), strict=True):
        assert (item.id, item.references) == (shuffled.id, shuffled.references)
        assert item.conversation.turns[0].text == shuffled.conversation.turns[0].text
        pairs = zip(item.conversation.images, shuffled.conversation.images, strict=True)
        assert all(first != second for first, second in pairs)
        assert len(set(shuffled.conversation.images)) == len(set(item.conversation.images))


def test_captions_are_scored_against_all_human_captions(
    coco: AnnotationSet, tmp_path: Path
) -> None:
    """Human captions of an image score far above those of other images."""
    bench = build_caption_questions(coco, name="c", relative_to=tmp_path)
    human = {item.id: item.references[0] for item in bench.items}
    shifted = dict(zip(human, [*list(human.values())[1:], next(iter(human.values()))], strict=True))
    assert bench.score(human).overall > 3 * bench.score(shifted).overall
