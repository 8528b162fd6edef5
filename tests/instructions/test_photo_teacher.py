"""Records about photos use captions and boxes, ask nothing twice, and favor no answer."""

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, Instance
from caldera.annotations.boxes import Box
from caldera.annotations.coco import read_coco
from caldera.annotations.english import count_phrase, join_with_and, sentence
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.dialogues import (
    KINDS,
    Exchange,
    Kind,
    NothingToWrite,
    generate_dialogues,
    plan_dialogues,
)
from caldera.instructions.photo_teacher import PhotoTeacher
from caldera.instructions.request_phrases import SHORT_ANSWER
from caldera.instructions.scripted_teacher import ScriptedTeacher
from caldera.instructions.situations import SITUATIONS

CATEGORIES = (
    "person", "dog", "cat", "car", "bus", "chair", "couch", "tv", "bottle", "cup", "book", "kite", "bench", "umbrella",
    "horse", "sheep", "pizza", "banana", "clock", "vase",
)  # fmt: skip


def random_image(number: int) -> AnnotatedImage:
    """Return an image with one to five categories in random places, and captions that name some of them."""
    rng = random.Random(number)
    counts = {name: rng.choice((1, 1, 2, 3)) for name in rng.sample(CATEGORIES, rng.randint(1, 5))}
    boxes = []
    for name, count in counts.items():
        for _ in range(count):
            left, top = rng.uniform(0, 0.7), rng.uniform(0, 0.7)
            boxes.append(Instance(name, Box(left, top, left + 0.25, top + 0.25)))
    phrases = [count_phrase(count, name) for name, count in counts.items()]
    captions = tuple(
        sentence(join_with_and(rng.sample(phrases, rng.randint(1, len(phrases))))) for _ in range(5)
    )
    return AnnotatedImage(
        f"i{number}", Path(f"/images/{number}.jpg"), 640, 480, captions, tuple(boxes)
    )


def exchanges_of(
    kind: Kind, count: int, seed: int = 0, *, captioned: bool = True
) -> Iterator[tuple[Sequence[AnnotatedImage], list[Exchange]]]:
    """Yield dialogues of a kind about random images."""
    teacher = PhotoTeacher(CATEGORIES, seed)
    images = AnnotationSet(
        tuple(
            image if captioned else replace(image, captions=())
            for image in map(random_image, range(count))
        ),
        CATEGORIES,
    )
    for dialogue in plan_dialogues(images, {kind: 1.0}, seed, shuffle_groups=True):
        try:
            yield dialogue.images, teacher.write(kind, dialogue.images)
        except NothingToWrite:
            continue


def share(counts: Counter[str], answer: str) -> float:
    """Return the share of an answer among at least a thousand."""
    assert counts.total() >= 1000
    return counts[answer] / counts.total()


def test_yes_and_no_are_equally_frequent() -> None:
    """In each record, so that no selection of records changes it."""
    total = 0
    sizes: dict[Kind, int] = {"vqa": 400, "conversation": 200}
    for kind, count in sizes.items():
        for _, exchanges in exchanges_of(kind, count):
            starts = Counter(
                start
                for exchange in exchanges
                if (start := re.split(r"[,.]", exchange.answer.lower())[0]) in ("yes", "no")
            )
            assert starts["yes"] == starts["no"]
            total += starts.total()
    assert total >= 1000


@pytest.mark.slow
def test_neither_option_is_favored() -> None:
    """Of a thousand questions 'left or right' and 'above or below', each option answers about half."""
    firsts: Counter[str] = Counter()
    for kind in ("vqa", "conversation"):
        for _, exchanges in exchanges_of(kind, 2600, 1, captioned=False):
            for exchange in exchanges:
                if match := re.search(
                    r"(?:to the )?(left|above) or (?:to the )?(?:right|below)", exchange.question
                ):
                    firsts["first" if match[1] in exchange.answer else "second"] += 1
    assert 0.45 < share(firsts, "first") < 0.55


@pytest.mark.slow
def test_no_letter_is_favored() -> None:
    """Letters of images are equally frequent answers among those that a question allows."""
    letters: dict[tuple[bool, int], Counter[str]] = defaultdict(Counter)
    for seed in range(2):
        for images, exchanges in exchanges_of("context", 2000, seed, captioned=False):
            for exchange in exchanges:
                if match := re.match(r"(?:Picture )?([A-C])\b", exchange.answer):
                    letters["more" in exchange.question, len(images)][match[1]] += 1
    assert set(letters) == {(True, 2), (True, 3), (False, 2), (False, 3)}
    for (is_more, size), counts in letters.items():
        options = 2 if is_more else size
        for letter in "ABC"[:options]:
            assert abs(share(counts, letter) - 1 / options) < 0.05, (counts, size)


def test_no_question_is_asked_twice() -> None:
    """Over all records about an image, presence, number, place and relation of an object are asked once."""
    questions: dict[str, Counter[object]] = defaultdict(Counter)
    for kind in ("vqa", "conversation"):
        for [image], exchanges in exchanges_of(kind, 120):
            for exchange in exchanges:
                text = exchange.question.removesuffix(f"\n{SHORT_ANSWER}").lower()
                names = frozenset(name for name in CATEGORIES if re.search(rf"\b{name}", text))
                # Groups such as animals are asked for by name; wordings of other questions differ.
                match = re.match(
                    r"how many|where|in which|which colour|(?:what|which|name).*", text
                )
                form = match[0].replace("in which", "where") if match else "is"
                axis = (
                    "down" if re.search("above|below", text) else "across" if "left" in text else ""
                )
                questions[image.id][form, axis, names] += 1
    counts = Counter(count for forms in questions.values() for count in forms.values())
    assert counts[1] > 900
    assert set(counts) == {1}


def test_a_caption_answers_one_record_only(third_party: Path) -> None:
    """The caption that begins a description is not the answer to a request for a caption too."""
    coco = read_coco(third_party / "coco_mini", SkippedItems())
    teacher = PhotoTeacher(coco.categories)
    for image in coco.images:
        try:
            [detail] = teacher.write("detail", [image])
        except NothingToWrite:
            continue
        [caption] = teacher.write("caption", [image])
        assert caption.answer.rstrip(".") not in detail.answer


def test_reasoning_needs_a_reason(third_party: Path) -> None:
    """Most photos give one, not all; questions differ, none is answered yes or no, and what is seen is phrases."""
    coco = read_coco(third_party / "coco_mini", SkippedItems())
    teacher = PhotoTeacher(coco.categories)
    questions: Counter[str] = Counter()
    for image in coco.images:
        try:
            [exchange] = teacher.write("reasoning", [image])
        except NothingToWrite:
            continue
        questions[exchange.question] += 1
        assert not re.match(r"(?:yes|no)\b", exchange.answer, re.IGNORECASE)
        assert "{" not in exchange.answer
    assert 40 < questions.total() < 79
    assert len(questions) > 30
    assert max(questions.values()) < 5


def test_a_plain_image_gives_no_reason() -> None:
    """One object without a situation is not asked about."""
    box = (Instance("clock", Box(0.2, 0.2, 0.8, 0.8)),)
    image = AnnotatedImage("1", Path("1.jpg"), 9, 9, ("A clock.", "A round clock"), box)
    with pytest.raises(NothingToWrite, match="nothing in the image gives a reason"):
        PhotoTeacher(("clock", "dog")).write("reasoning", [image])


@pytest.mark.parametrize(
    "captions",
    [
        ("There is no dog on the couch.", "No dog is on the couch here."),
        ("A dog on the grass", "A dog runs on the grass"),
        ("A white dog", "A black dog", "A red dog"),
        ("Is the dog on the couch?", "What is the dog on the couch doing?"),
    ],
)
def test_captions_state_every_need_of_a_reason(captions: tuple[str, ...]) -> None:
    """Boxes of a dog and a couch do not tell that the dog lies there; captions that say both do."""
    boxes = (Instance("dog", Box(0.1, 0.1, 0.5, 0.6)), Instance("couch", Box(0, 0.4, 0.9, 0.95)))
    image = AnnotatedImage("1", Path("1.jpg"), 640, 480, captions, boxes)
    teacher = PhotoTeacher(("dog", "couch"))
    assert not write(teacher, "reasoning", image)
    assert write(teacher, "caption", image)
    both = replace(
        image, path=Path("2.jpg"), captions=("A dog on a couch", "A dog lies on a couch")
    )
    [exchange] = write(teacher, "reasoning", both)
    assert exchange.answer.endswith("a dog and a couch.")


def test_situations_are_well_formed() -> None:
    """Each has needs, as many answers as questions, and a place for what is seen in every answer."""
    assert len(SITUATIONS) > 40
    for situation in SITUATIONS:
        assert situation.needs
        assert all(situation.needs)
        assert len(situation.questions) == len(situation.answers) == 2
        assert all(text.format(evidence="a dog") != text for text in situation.answers)
        assert all(text.endswith(("?", ".")) for text in situation.questions)


def test_captions_alone_give_records() -> None:
    """Without boxes nothing is said to be absent, and one caption alone makes no description."""
    captions = ("A boy is riding a horse", "A boy riding a horse", "A boy on a horse at the beach")
    image = AnnotatedImage("1", Path("1.jpg"), 0, 0, captions)
    teacher = PhotoTeacher(())
    [exchange] = teacher.write("conversation", [image])
    assert exchange == Exchange("What is the boy riding?", "The boy is riding a horse.")
    with pytest.raises(NothingToWrite):
        teacher.write("vqa", [image])
    for kind in ("detail", "context"):
        with pytest.raises(NothingToWrite):
            teacher.write(kind, [AnnotatedImage("2", Path("2.jpg"), 0, 0, captions[:1])])


def test_any_category_and_caption_can_be_written_about() -> None:
    """Names with signs that mean something in patterns, and captions without words."""
    names = ("c++ (old)", "[x", "a|b", "?", "person", "Hund")
    boxes = [
        Instance(name, Box(0.1 * index, 0.1, 0.1 * index + 0.4, 0.9))
        for index, name in enumerate(names)
        for _ in range(2)
    ]
    for captions in (
        (),
        ("...", "?!", "(", "[x] and c++ (old)", "c++ (olds)"),
        ("a [x", "two [xs", "?s"),
    ):
        image = AnnotatedImage("1", Path(f"{len(captions)}.jpg"), 9, 9, captions, tuple(boxes))
        teacher = PhotoTeacher(names)
        assert write(teacher, "vqa", image)
        assert write(teacher, "detail", image)
        assert bool(write(teacher, "caption", image)) == bool(captions)
        assert len(teacher.write("context", [image, random_image(1)])) > 0


def test_records_follow_from_image_and_seed() -> None:
    """Not from other images or their order."""
    images = [random_image(number) for number in range(12)]
    for kind in ("conversation", "detail", "vqa", "caption"):
        first, second = PhotoTeacher(CATEGORIES, 3), PhotoTeacher(CATEGORIES, 3)
        forwards = {image.id: write(first, kind, image) for image in images}
        backwards = {image.id: write(second, kind, image) for image in images[::-1]}
        assert forwards == backwards
        assert forwards != {
            image.id: write(PhotoTeacher(CATEGORIES, 4), kind, image) for image in images
        }


def write(teacher: PhotoTeacher, kind: Kind, image: AnnotatedImage) -> list[Exchange]:
    """Return a dialogue; an empty one if there is nothing to write."""
    try:
        return teacher.write(kind, [image])
    except NothingToWrite:
        return []


def test_records_of_drawn_scenes_are_as_before() -> None:
    """The scripted teacher of the demo writes the same bytes as version 0.2."""
    annotations = AnnotationSet(tuple(map(random_image, range(40))), CATEGORIES)
    data = generate_dialogues(
        annotations,
        ScriptedTeacher(CATEGORIES, 3),
        dict.fromkeys(KINDS, 1.0),
        seed=3,
        relative_to=Path("/images"),
    )
    content = repr(
        [(item.id, [(turn.role, turn.parts) for turn in item.turns]) for item in data.conversations]
    )
    digest = hashlib.sha256(content.encode()).hexdigest()
    assert (len(data.conversations), digest[:16]) == (235, "d81eaa18335067ff")
