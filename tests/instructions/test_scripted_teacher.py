"""The scripted teacher writes every kind from annotations alone, always the same, and nothing without certain facts."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.boxes import Box
from caldera.annotations.caption_pairs import read_pairs
from caldera.annotations.coco import read_coco
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.dialogues import KINDS, Exchange, Kind, NothingToWrite
from caldera.instructions.facts import derive_facts
from caldera.instructions.multi_image_questions import questions_about_all
from caldera.instructions.questions import questions_about
from caldera.instructions.request_phrases import CAPTION_REQUESTS, DETAIL_REQUESTS, SHORT_ANSWER
from caldera.instructions.scripted_teacher import ScriptedTeacher
from caldera.scenes.scene import OBJECT_KINDS, SIDE
from tests.instructions.annotated_scenes import annotate, sample_scenes

SINGLE_IMAGE_KINDS: tuple[Kind, ...] = ("caption", "conversation", "detail", "reasoning", "vqa")


@pytest.fixture(scope="module")
def images() -> list[AnnotatedImage]:
    """Return eighty annotated scenes."""
    return [annotate(scene) for scene in sample_scenes(80, seed=8)]


@pytest.fixture
def teacher() -> ScriptedTeacher:
    """Return a teacher for all kinds of objects in scenes."""
    return ScriptedTeacher(tuple(OBJECT_KINDS), seed=3)


def write(teacher: ScriptedTeacher, kind: Kind, *images: AnnotatedImage) -> list[Exchange]:
    """Return a dialogue; an empty one if there is nothing to write."""
    try:
        return teacher.write(kind, images)
    except NothingToWrite:
        return []


def possible_answers(image: AnnotatedImage) -> dict[str, set[str]]:
    """Return the answers of each kind of question about an image, over many wordings."""
    facts = derive_facts(image, tuple(OBJECT_KINDS))
    answers: dict[str, set[str]] = {}
    for seed in range(40):
        for question in questions_about(facts, random.Random(seed)):
            answers.setdefault(question.kind, set()).update((question.short, question.answer))
    return answers


@pytest.mark.parametrize("kind", KINDS)
def test_dialogues_follow_from_images_and_seed(
    teacher: ScriptedTeacher, images: list[AnnotatedImage], kind: Kind
) -> None:
    """Not from earlier dialogues or the instance of the teacher; another seed gives other words."""
    groups = [
        tuple(images[index : index + 3]) if kind == "context" else (images[index],)
        for index in range(60)
    ]
    first = [write(teacher, kind, *group) for group in groups]
    same = [write(ScriptedTeacher(tuple(OBJECT_KINDS), 3), kind, *group) for group in groups[::-1]]
    other = [write(ScriptedTeacher(tuple(OBJECT_KINDS), 4), kind, *group) for group in groups]
    assert first == same[::-1]
    assert first != other
    assert sum(map(bool, first)) > 30
    assert all(
        exchange.question and exchange.answer for exchanges in first for exchange in exchanges
    )


def test_a_caption_is_one_of_the_annotations(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """The request is one of eleven."""
    for image in images:
        [exchange] = teacher.write("caption", [image])
        assert exchange.question in CAPTION_REQUESTS
        assert exchange.answer in image.captions


def test_a_conversation_has_a_few_sentences(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """At most five, with one yes and one no about presence, and no question twice."""
    for image in images:
        exchanges = teacher.write("conversation", [image])
        assert 2 < len(exchanges) <= 5
        matches = [
            re.match(r"(Yes|No), (?:there|the picture|I see)", exchange.answer)
            for exchange in exchanges
        ]
        assert sorted(match[1] for match in matches if match) == ["No", "Yes"]
        assert all(exchange.answer.endswith(".") for exchange in exchanges)
        assert len({exchange.question for exchange in exchanges}) == len(exchanges)


def test_a_detailed_description_answers_one_request(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """The request is one of sixteen; most descriptions have several sentences."""
    lengths = []
    for image in images:
        [exchange] = teacher.write("detail", [image])
        assert exchange.question in DETAIL_REQUESTS
        lengths.append(exchange.answer.count("."))
    assert sum(length > 1 for length in lengths) > 60


def test_reasoning_is_one_question_with_its_reason(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """Over all images yes and no are about equally frequent."""
    starts: Counter[str] = Counter()
    for image in images:
        exchanges = write(teacher, "reasoning", image)
        assert len(exchanges) <= 1
        for exchange in exchanges:
            assert exchange.answer in possible_answers(image)["reasoning"]
            starts[exchange.answer.split(".")[0]] += 1
    assert starts.keys() == {"Yes", "No"}
    assert min(starts.values()) > 15


def test_vqa_has_short_answers_and_requests_them_once(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """At most twelve, as many yes as no; the first question has the request."""
    for image in images:
        exchanges = teacher.write("vqa", [image])
        assert 1 <= len(exchanges) <= 12
        assert exchanges[0].question.endswith(f"\n{SHORT_ANSWER}")
        assert not any(SHORT_ANSWER in exchange.question for exchange in exchanges[1:])
        assert all(len(exchange.answer.split()) <= 2 for exchange in exchanges)
        counts = Counter(exchange.answer for exchange in exchanges)
        assert counts["yes"] == counts["no"], exchanges


def test_context_is_about_all_its_images(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """Every answer follows from the facts of all images; all are short or all are sentences."""
    num_short = 0
    for index in range(60):
        group = images[index : index + 2 + index % 2]
        facts = [derive_facts(image, tuple(OBJECT_KINDS)) for image in group]
        questions = [
            question
            for seed in range(40)
            for question in questions_about_all(facts, random.Random(seed))
        ]
        exchanges = write(teacher, "context", *group)
        if not exchanges:
            assert not questions
            continue
        is_short = SHORT_ANSWER in exchanges[0].question
        num_short += is_short
        for exchange in exchanges:
            text = exchange.question.removesuffix(f"\n{SHORT_ANSWER}")
            answers = [
                question.short if is_short else question.answer
                for question in questions
                if question.text == text
            ]
            assert exchange.answer in answers
    assert 25 < num_short < 57


def test_context_needs_several_images(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """The reason names what is missing."""
    with pytest.raises(NothingToWrite, match="needs at least two"):
        teacher.write("context", images[:1])


@pytest.mark.parametrize("kind", SINGLE_IMAGE_KINDS)
def test_an_image_without_certain_facts_has_only_a_caption(
    teacher: ScriptedTeacher, kind: Kind
) -> None:
    """All other kinds have nothing to write."""
    tiny = Instance("dog", Box(0, 0, 0.01, 0.01))
    image = AnnotatedImage("1", Path("1.jpg"), 9, 9, ("Something",), (tiny,))
    if kind == "caption":
        assert teacher.write(kind, [image])[0].answer == "Something"
        return
    with pytest.raises(NothingToWrite, match="no certain fact to ask about"):
        teacher.write(kind, [image])


def test_images_with_equal_names_in_two_folders_are_different(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """Facts are cached by path, not by id or file name."""
    first, second = (
        AnnotatedImage("1", Path(folder) / "1.jpg", SIDE, SIDE, image.captions, image.instances)
        for folder, image in zip("ab", images, strict=False)
    )
    assert teacher.write("detail", [first]) != teacher.write("detail", [second])


def test_each_kind_needs_captions_or_boxes(
    images: list[AnnotatedImage], teacher: ScriptedTeacher
) -> None:
    """An image without boxes has a caption only; nothing is absent from it. Without captions it has all others."""
    unboxed, uncaptioned = replace(images[0], instances=()), replace(images[0], captions=())
    assert write(teacher, "caption", unboxed)
    assert write(teacher, "vqa", uncaptioned)
    with pytest.raises(NothingToWrite, match="the image has no caption"):
        teacher.write("caption", [uncaptioned])
    for kind in ("conversation", "detail", "reasoning", "vqa"):
        with pytest.raises(NothingToWrite, match="an image has no boxes"):
            teacher.write(kind, [replace(unboxed, path=Path("unboxed.jpg"))])


def test_there_are_as_many_requests_as_in_the_paper() -> None:
    """Eleven for captions and sixteen for descriptions, all different."""
    assert (len(CAPTION_REQUESTS), len(DETAIL_REQUESTS)) == (11, 16)
    assert len({*CAPTION_REQUESTS, *DETAIL_REQUESTS}) == 27


def test_real_photos_have_dialogues(third_party: Path) -> None:
    """Nearly every COCO photo has a conversation, a description and VQA, every Flickr photo a caption."""
    coco = read_coco(third_party / "coco_mini", SkippedItems())
    teacher = ScriptedTeacher(coco.categories)
    for kind in ("conversation", "vqa", "detail"):
        dialogues = [write(teacher, kind, image) for image in coco.images]
        assert sum(map(bool, dialogues)) >= 78, kind
    flickr = read_pairs(third_party / "flickr8k" / "captions.csv", SkippedItems())
    without_boxes = ScriptedTeacher(flickr.categories)
    assert all(write(without_boxes, "caption", image) for image in flickr.images)
    assert not write(without_boxes, "vqa", flickr.images[0])
