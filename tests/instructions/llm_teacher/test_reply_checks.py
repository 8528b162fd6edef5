"""Replies that break a rule are rejected by its name, all others are accepted."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, Instance
from caldera.annotations.boxes import Box
from caldera.annotations.coco import read_coco
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.dialogues import Dialogue, Exchange, Kind
from caldera.instructions.llm_teacher.grounding import check_grounding
from caldera.instructions.llm_teacher.prompts import TeacherPrompt, load_prompts
from caldera.instructions.llm_teacher.reply_checks import reply_checker
from caldera.llm_client.client import RejectedReply, Reply
from tests.teacher_server import format_exchanges

CATEGORIES = ("dog", "cat", "person", "bus", "bear", "teddy bear", "hot dog", "umbrella", "car")
KINDS: dict[str, Kind] = {"conv": "conversation", "detail": "detail", "complex": "reasoning"}
EXAMPLE = "A long red train stands at the platform of a small station and waits."
PROMPTS: dict[Kind, TeacherPrompt] = {
    kind: TeacherPrompt(
        "Look.\nAnswer:\nthe answer",
        (
            (
                EXAMPLE,
                "A guard in a dark coat looks along it, his whistle ready, and nobody gets on.",
            ),
        ),
    )
    for kind in ("conversation", "detail", "reasoning", "context")
}


def park() -> AnnotatedImage:
    """Return an image of two dogs and a man in a park, with a teddy bear."""
    boxes = [
        ("dog", Box(0.1, 0.2, 0.33, 0.54)),
        ("dog", Box(0.5, 0.2, 0.73, 0.55)),
        ("person", Box(0.7, 0.1, 0.92, 0.97)),
        ("teddy bear", Box(0.2, 0.7, 0.31, 0.83)),
    ]
    captions = ("Two dogs and a man in a park.", "Dogs play with a teddy bear.")
    instances = tuple(Instance(category, box) for category, box in boxes)
    return AnnotatedImage("7", Path("/7.jpg"), 640, 480, captions, instances)


def check(
    answer: str,
    question: str = "What is there?",
    kind: Kind = "conversation",
    images: Sequence[AnnotatedImage] = (),
) -> str:
    """Return the rule that an answer breaks, or an empty string."""
    exchanges = [Exchange(question, answer)]
    return check_all(kind, exchanges, tuple(images) or (park(),), CATEGORIES, PROMPTS)


def check_all(
    kind: Kind,
    exchanges: Sequence[Exchange],
    images: tuple[AnnotatedImage, ...],
    categories: tuple[str, ...],
    prompts: dict[Kind, TeacherPrompt],
) -> str:
    """Return the rule that exchanges break, or an empty string."""
    check = reply_checker(AnnotationSet(images, categories), prompts)
    text = exchanges[0].answer if kind == "detail" else format_exchanges(exchanges)
    try:
        check(Dialogue("7", kind, images, random.Random(0)), Reply(text, "stop"))
    except RejectedReply as rejection:
        return rejection.rule
    return ""


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        ("source", "The caption says that there are two dogs."),
        ("source", "According to the description, a man is there."),
        ("source", "As the bounding boxes show, they are near."),
        ("source", "根据描述，图中有两只狗。"),
        ("coordinates", "The dog is at [0.1, 0.2, 0.33, 0.54]."),
        ("coordinates", "It stands at 0.125 from the left."),
        ("declines", "As an AI language model, I do not see."),
        ("declines", "I'm sorry, but I can't view the image."),
        ("marks", "A dog. </picture>"),
        ("marks", "A dog.\n====\nIt barks."),
        ("marks", "A dog.\nQuestion: and what else?"),
        ("task", "A dog, but this is not what you asked for."),
        ("task", "Here is a detailed description of the scene: two dogs play."),
        ("nothing definite", "The name of the dog is not mentioned."),
        ("nothing definite", "The name of the dog isn't known."),
        ("nothing definite", "It isn\u2019t mentioned who owns the dogs."),
        ("nothing definite", "The sign doesn\u2019t say when the park shuts."),
        ("declines", "I\u2019m sorry, this is too small to read."),
        ("nothing definite", "There is no information about the man."),
        ("nothing definite", "狗的名字无法确定。"),
        ("circles", "The man walks the two dogs. They are fine. The man walks the two dogs. They are fine."),
        ("circles", "男人带着两只狗散步。男人带着两只狗散步。"),
        ("example", "A guard in a dark coat looks along it, his whistle ready."),
        ("example", "It is a long red train stands at the platform of a small station."),
        ("absent object", "There is a cat on the bench."),
        ("absent object", "The image shows two red umbrellas, and it rains."),
        ("absent object", "A man is here. There are several buses parked near him."),
        ("absent object", "I can see a bear behind the man."),
        ("absent object", "Two dogs play. A car is driving by."),
        ("absent object", "There are cats in the park."),
        ("absent object", "In front, to the left, a black cat lies in the grass."),
        ("count", "There are 12 dogs."),
        ("placeholder", "The answer"),
        ("task", "The answer is a dog."),
        ("absent object", "Two dogs play, and an umbrella lies in the grass."),
        ("count", "There are three dogs in the park."),
        ("count", "Five brown dogs run about."),
        ("breaks off", "The man has come to the park with both of his two big dogs and throws them something, and the"),
    ],
)  # fmt: skip
def test_a_bad_answer_is_rejected_by_its_rule(rule: str, answer: str) -> None:
    """By one rule each."""
    assert check(answer) == rule


@pytest.mark.parametrize(
    "answer",
    [
        "There are two dogs.",
        "There is a teddy bear in the grass.",
        "There is a hot dog stand.",
        "There is a bus stop nearby.",
        "There is no cat in the park.",
        "I do not see a cat here.",
        "The dogs don\u2019t mind that there is a cat behind the fence of a garden far away.",
        "There could be a car near the park.",
        "If there is a cat around, the dogs would chase it.",
        "Dogs and cats are animals, and a bus is a vehicle.",
        "One dog is on the left.",
        "The ratio is 0.5 and it is 12.30 pm.",
        "The man has come to the park with both of his two big dogs and throws them something, and all are happy 😀",
        "Two men play with three balls.",
        "Things to take along:\n\n1. a lead, water, and a bowl for each dog\n2. a ball, so that they come back",
        "A bus is a large vehicle. The cat is on the whole an animal of its own will, and cats sit where they like.",
        "第一只狗在左边。",
        "Yes, they do. Yes, they do. The question of who owns the park is an old one.",
        "A long red train stands at the platform.",
        "Title\n---\nTwo dogs.",
    ],
)  # fmt: skip
def test_a_good_answer_is_accepted(answer: str) -> None:
    """No rule rejects true, possible, negated or general statements."""
    assert check(answer) == ""


@pytest.mark.parametrize(
    ("question", "answer", "rule"),
    [
        ("Is there a cat in the picture?", "Yes, it sits there.", "absent object"),
        ("Is there a dog in the image?", "No, I see none.", "denied object"),
        ("Are there any dogs?", "No, there are none.", "denied object"),
        ("Is there a cat?", "No, there is none.", ""),
        ("Is there a dog on a chair?", "No, they stand on the grass.", ""),
        ("How many dogs are there?", "There are four dogs.", "count"),
        ("How many dogs are there?", "There are two dogs.", ""),
        ("How many teddy bears are there?", "I count two teddy bears.", ""),
    ],
)
def test_yes_no_and_counts_are_compared_with_the_boxes(
    question: str, answer: str, rule: str
) -> None:
    """A number that a caption mentions is accepted, too."""
    assert check(answer, question) == rule


def test_a_word_of_the_captions_is_not_a_mention_of_the_source() -> None:
    """An answer about a poster with a caption may mention the caption."""
    poster = AnnotatedImage("8", Path("/8.jpg"), 9, 9, ("A poster with a caption.",), ())
    assert check("The caption is at the bottom.", images=[poster]) == ""
    assert check("The caption is at the bottom of the bounding box.", images=[poster]) == "source"


def test_an_object_in_one_of_several_images_is_not_absent() -> None:
    """Only an object that is in none of them is; counts are not checked."""
    street = AnnotatedImage(
        "8", Path("/8.jpg"), 9, 9, ("A cat.",), (Instance("cat", Box(0, 0, 1, 1)),)
    )
    both = [park(), street]
    assert check("There is a cat in B and none in A.", kind="context", images=both) == ""
    assert check("There is an umbrella in both.", kind="context", images=both) == "absent object"
    assert check("Both show umbrellas.", kind="context", images=both) == "absent object"
    assert check("There are three dogs in A, but B has none.", kind="context", images=both) == ""


def test_a_repeated_question_is_rejected() -> None:
    """Whatever the answers; equal answers to different questions are accepted."""
    repeated = [Exchange("What is there?", "A dog."), Exchange("What is there?", "A man.")]
    assert check_all("conversation", repeated, (park(),), CATEGORIES, PROMPTS) == "circles"
    different = [Exchange("What is there?", "A dog."), Exchange("What else is there?", "A dog.")]
    assert check_all("conversation", different, (park(),), CATEGORIES, PROMPTS) == ""


@pytest.mark.parametrize(
    ("question", "answer", "rule"),
    [
        ("What do the pictures have in common?", "A dog.", ""),
        ("Which one is darker?", "B.", ""),
        ("Is A brighter than B?", "Yes.", ""),
        ("A和B有什么不同？", "B更暗。", ""),
        ("What is in picture A?", "A dog, and in B a cat.", ""),
        ("What does a dog eat?", "A bone.", "one image"),
        ("What is in picture B?", "A cat.", "one image"),
        ("What are they doing?", "They sit.", "one image"),
    ],
)
def test_a_question_about_several_images_needs_two(question: str, answer: str, rule: str) -> None:
    """By their letters, where A is not an article, or in words for several at once."""
    exchanges = [Exchange(question, answer)]
    assert check_all("context", exchanges, (park(), park()), CATEGORIES, PROMPTS) == rule


def test_a_repetitive_answer_is_rejected() -> None:
    """Even if no two sentences are equal; a text that repeats a noun is accepted."""
    repetitive = " ".join(
        f"Then the man on the hill looks at the dog {number}." for number in range(9)
    )
    assert check(repetitive) == "circles"
    varied = (
        "The man walks along the lake with his dog. The dog has seen a duck, and the man holds the dog back while "
        "children feed the duck. Behind the lake stands a row of houses; the man may live in one of the houses."
    )
    assert check(varied) == ""


def test_a_description_of_copied_captions_is_rejected() -> None:
    """A description that uses their words is accepted, and so are copied captions in a conversation."""
    copied = "Two dogs and a man in a park. Dogs play with a teddy bear in it."
    assert check(copied, kind="detail") == "pasted"
    assert check(copied) == ""
    own = "In a park, a man stands to the right of his two dogs. They play with a teddy bear that lies at their feet."
    assert check(own, kind="detail") == ""


def test_a_short_description_is_rejected() -> None:
    """By words, or Chinese characters; answers of other kinds may be short."""
    assert check("Two dogs.", kind="detail") == "too short"
    assert check("公园里有狗。", kind="detail") == "too short"
    assert check("公园里有两只狗在草地上奔跑玩耍，一个男人站在旁边。", kind="detail") == ""
    assert check("Two dogs.") == ""


def test_gpt4s_answers_for_llavas_benchmark_are_accepted(third_party: Path) -> None:
    """All of the ninety, which people reviewed, checked against the annotations they were written from."""
    folder = third_party / "llava_bench_coco"
    images = {}
    for line in (folder / "caps_boxes_coco2014_val_80.jsonl").read_text().splitlines():
        record = json.loads(line)
        instances = tuple(
            Instance(instance["category"], Box(*instance["bbox"]))
            for instance in record["instances"]
        )
        captions = tuple(record["captions"])
        images[record["id"]] = AnnotatedImage(
            record["id"], Path("/x.jpg"), 1, 1, captions, instances
        )
    categories = read_coco(third_party / "coco_mini", SkippedItems()).categories
    records = (folder / "coco2014_val_gpt4_qa_30x3.jsonl").read_text().splitlines()
    rules: Counter[str] = Counter()
    prompts = load_prompts(["conversation", "detail", "reasoning"])
    for record in map(json.loads, records):
        exchanges = [Exchange(record["instruction"], record["output"])]
        image = images[record["id"]]
        rules[check_all(KINDS[record["type"]], exchanges, (image,), categories, prompts)] += 1
    assert len(records) == 90
    assert rules == {"": 90}


def test_absent_objects_in_real_images_are_rejected(third_party: Path) -> None:
    """For each of eighty real images, two statements about objects that are rarely in one."""
    annotations = read_coco(third_party / "coco_mini", SkippedItems())
    rejected: Counter[tuple[str, str]] = Counter()
    for image in annotations.images:
        for answer in ("There is a toaster near the wall.", "There is a giraffe near the wall."):
            try:
                check_grounding([Exchange("What?", answer)], [image], annotations.categories)
            except RejectedReply as rejection:
                rejected[rejection.rule, str(rejection).split(": ")[1]] += 1
    giraffes = sum("giraffe" in image.counts for image in annotations.images)
    toasters = sum("toaster" in image.counts for image in annotations.images)
    assert rejected["absent object", "giraffe"] >= 78 - giraffes
    assert rejected["absent object", "toaster"] >= 78 - toasters
