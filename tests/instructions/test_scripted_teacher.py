"""The scripted teacher: every kind from annotations alone, the same each time, and a refusal where they say nothing."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.boxes import Box
from caldera.annotations.caption_pairs import read_pairs
from caldera.annotations.coco import read_coco
from caldera.errors import UnknownNameError, UsageError
from caldera.files.skipped import SkippedItems
from caldera.instructions.dialogues import KINDS, Exchange, Kind
from caldera.instructions.facts import derive_facts
from caldera.instructions.generate import TEACHERS, find_teacher, parse_kinds
from caldera.instructions.multi_image_questions import questions_about_all
from caldera.instructions.questions import questions_about
from caldera.instructions.request_phrases import CAPTION_REQUESTS, DETAIL_REQUESTS, SHORT_ANSWER
from caldera.instructions.scripted_teacher import ScriptedTeacher
from caldera.llm_client.client import NothingToWrite
from caldera.scenes.captions import captions_of
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import OBJECT_KINDS, SIDE, Scene, sample_scene

ALONE: tuple[Kind, ...] = ("caption", "conversation", "detail", "reasoning", "vqa")


def annotated(scene: Scene) -> AnnotatedImage:
    """Return a scene as annotators would hand it over."""
    instances = tuple(Instance(group.kind.name, thing.box) for group, thing in scene.objects)
    path = Path(f"{scene.name}.jpg")
    return AnnotatedImage(scene.name, path, SIDE, SIDE, captions_of(scene), instances)


@pytest.fixture(scope="module")
def images() -> list[AnnotatedImage]:
    """Eighty annotated scenes."""
    return [
        annotated(sample_scene(index, seed=8, split="train", shapes=glyph_shapes()))
        for index in range(80)
    ]


@pytest.fixture
def teacher() -> ScriptedTeacher:
    """A teacher that knows what can be drawn."""
    return ScriptedTeacher(tuple(OBJECT_KINDS), seed=3)


def write(teacher: ScriptedTeacher, kind: Kind, *images: AnnotatedImage) -> list[Exchange]:
    """Have a dialogue written; an empty one where the teacher declines."""
    try:
        return teacher.write(kind, images)
    except NothingToWrite:
        return []


def about(image: AnnotatedImage) -> dict[str, set[str]]:
    """Return the kind of every question about an image by its answers, over many wordings."""
    known = derive_facts(image, tuple(OBJECT_KINDS))
    found: dict[str, set[str]] = {}
    for seed in range(40):
        for item in questions_about(known, random.Random(seed)):
            found.setdefault(item.kind, set()).update((item.short, item.answer))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written_the_same_each_time(
    teacher: ScriptedTeacher, images: list[AnnotatedImage], kind: Kind
) -> None:
    """Whatever was written before, and by another teacher of the same seed; another seed writes another way."""
    several = [
        tuple(images[at : at + 3]) if kind == "context" else (images[at],) for at in range(60)
    ]
    first = [write(teacher, kind, *each) for each in several]
    again = [write(ScriptedTeacher(tuple(OBJECT_KINDS), 3), kind, *each) for each in several[::-1]]
    other = [write(ScriptedTeacher(tuple(OBJECT_KINDS), 4), kind, *each) for each in several]
    assert first == again[::-1]
    assert first != other
    assert sum(map(bool, first)) > 30
    assert all(item.question and item.answer for exchanges in first for item in exchanges)


def test_a_caption_is_one_that_people_wrote(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """Asked for in one of the eleven ways."""
    for image in images:
        [exchange] = teacher.write("caption", [image])
        assert exchange.question in CAPTION_REQUESTS
        assert exchange.answer in image.captions


def test_a_conversation_is_a_handful_of_sentences(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """At most five, with one yes and one no about what is there, and nothing asked twice."""
    for image in images:
        exchanges = teacher.write("conversation", [image])
        assert 2 < len(exchanges) <= 5
        told = [re.match(r"(Yes|No), (?:there|the picture|I see)", one.answer) for one in exchanges]
        assert sorted(found[1] for found in told if found) == ["No", "Yes"]
        assert all(one.answer.endswith(".") for one in exchanges)
        assert len({one.question for one in exchanges}) == len(exchanges)


def test_a_detailed_description_answers_one_request(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """Asked for in one of the sixteen ways; it says more than a sentence wherever things have places."""
    lengths = []
    for image in images:
        [exchange] = teacher.write("detail", [image])
        assert exchange.question in DETAIL_REQUESTS
        lengths.append(exchange.answer.count("."))
    assert sum(length > 1 for length in lengths) > 60


def test_reasoning_is_one_question_with_its_reason(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """About as often yes as no over all images."""
    starts: Counter[str] = Counter()
    for image in images:
        for exchange in write(teacher, "reasoning", image):
            assert exchange.answer in about(image)["reasoning"]
            starts[exchange.answer.split(".")[0]] += 1
        assert len(write(teacher, "reasoning", image)) <= 1
    assert starts.keys() == {"Yes", "No"}
    assert min(starts.values()) > 15


def test_a_quiz_has_short_answers_and_asks_for_them_once(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """At most twelve, as many yes as no; the first question says how to answer."""
    for image in images:
        exchanges = teacher.write("vqa", [image])
        assert 1 <= len(exchanges) <= 12
        assert exchanges[0].question.endswith(f"\n{SHORT_ANSWER}")
        assert not any(SHORT_ANSWER in one.question for one in exchanges[1:])
        assert all(len(one.answer.split()) <= 2 for one in exchanges)
        balance = Counter(one.answer for one in exchanges)
        assert balance["yes"] == balance["no"], exchanges


def test_context_is_about_all_its_images(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """Every answer is one that the facts of the images together give; in short or in sentences, not mixed."""
    short = 0
    for at in range(60):
        several = images[at : at + 2 + at % 2]
        known = [derive_facts(image, tuple(OBJECT_KINDS)) for image in several]
        items = [
            item for seed in range(40) for item in questions_about_all(known, random.Random(seed))
        ]
        exchanges = write(teacher, "context", *several)
        if not exchanges:
            assert not items
            continue
        asked_short = SHORT_ANSWER in exchanges[0].question
        short += asked_short
        for one in exchanges:
            question = one.question.removesuffix(f"\n{SHORT_ANSWER}")
            answers = [
                item.short if asked_short else item.answer
                for item in items
                if item.text == question
            ]
            assert one.answer in answers
    assert 25 < short < 57


def test_one_image_gives_no_context(teacher: ScriptedTeacher, images: list[AnnotatedImage]) -> None:
    """The teacher says what it needs."""
    with pytest.raises(NothingToWrite, match="needs at least two"):
        teacher.write("context", images[:1])


@pytest.mark.parametrize("kind", ALONE)
def test_a_image_of_nothing_known_is_refused(teacher: ScriptedTeacher, kind: Kind) -> None:
    """But a caption is always there to be asked for."""
    speck = Instance("dog", Box(0, 0, 0.01, 0.01))
    image = AnnotatedImage("1", Path("1.jpg"), 9, 9, ("Something",), (speck,))
    if kind == "caption":
        assert teacher.write(kind, [image])[0].answer == "Something"
        return
    with pytest.raises(NothingToWrite, match="nothing beyond doubt to ask about"):
        teacher.write(kind, [image])


def test_images_of_one_name_in_two_folders_are_told_apart(
    teacher: ScriptedTeacher, images: list[AnnotatedImage]
) -> None:
    """What is known of one is not said of the other, even where ids are the same."""
    [one, other] = (
        AnnotatedImage("1", Path(folder) / "1.jpg", SIDE, SIDE, image.captions, image.instances)
        for folder, image in zip("ab", images, strict=False)
    )
    assert teacher.write("detail", [one]) != teacher.write("detail", [other])


def test_wordings_are_as_many_as_the_papers() -> None:
    """Eleven for captions and sixteen for descriptions, none twice, none of both."""
    assert (len(CAPTION_REQUESTS), len(DETAIL_REQUESTS)) == (11, 16)
    assert len({*CAPTION_REQUESTS, *DETAIL_REQUESTS}) == 27


def test_every_teacher_is_found_by_its_exact_name() -> None:
    """And knows its name."""
    for name in TEACHERS:
        assert find_teacher(name, ("dog",), 0).name == name
    with pytest.raises(UnknownNameError, match="no teacher is called 'script'; did you mean"):
        find_teacher("script", ("dog",), 0)


def test_kinds_are_read_with_their_shares() -> None:
    """A kind without a share is written for every image."""
    assert parse_kinds("conversation, detail:0.5,vqa:1") == {
        "conversation": 1.0,
        "detail": 0.5,
        "vqa": 1.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("detial", "no kind of instruction is called 'detial'; did you mean 'detail'?"),
        ("", "no kind of instruction is called ''"),
        ("vqa,", "no kind of instruction is called ''"),
        ("vqa:half", "the share of vqa is 'half'; write a number such as vqa:0.5"),
        ("vqa:0", "the share of vqa is 0; it must lie between 0 and 1"),
        ("vqa:1.5", "the share of vqa is 1.5; it must lie"),
        ("vqa:-1", "the share of vqa is -1; it must lie"),
        ("vqa:nan", "the share of vqa is nan; it must lie"),
    ],
)
def test_wrong_kinds_are_answered_in_one_line(text: str, message: str) -> None:
    """With the name, the share, and what it should be."""
    with pytest.raises(UsageError) as caught:
        parse_kinds(text)
    assert message in str(caught.value)


def test_real_photos_are_taught(third_party: Path) -> None:
    """Every COCO photo yields a conversation and a quiz, every Flickr photo a caption."""
    coco = read_coco(third_party / "coco_mini", SkippedItems())
    teacher = ScriptedTeacher(coco.categories)
    for kind in ("conversation", "vqa", "detail"):
        written = [write(teacher, kind, image) for image in coco.images]
        assert sum(map(bool, written)) >= 78, kind
    flickr = read_pairs(third_party / "flickr8k" / "captions.csv", SkippedItems())
    unboxed = ScriptedTeacher(flickr.categories)
    assert all(write(unboxed, "caption", image) for image in flickr.images)
    assert not write(unboxed, "vqa", flickr.images[0])
