"""The rules: what is no whole text of one who looks, or what annotations contradict, is refused; all else is kept."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import pytest

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, Instance
from caldera.annotations.boxes import Box
from caldera.annotations.coco import read_coco
from caldera.files.skipped import SkippedItems
from caldera.instructions.dialogues import Dialogue, Exchange, Kind
from caldera.instructions.llm_teacher.collect import NearDuplicateIndex
from caldera.instructions.llm_teacher.grounding import check_grounding
from caldera.instructions.llm_teacher.prompts import TeacherPrompt, load_prompts
from caldera.instructions.llm_teacher.reply_checks import ReplyChecker
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
    """Two dogs and a man in a park, with a teddy bear."""
    things = [
        ("dog", Box(0.1, 0.2, 0.33, 0.54)),
        ("dog", Box(0.5, 0.2, 0.73, 0.55)),
        ("person", Box(0.7, 0.1, 0.92, 0.97)),
        ("teddy bear", Box(0.2, 0.7, 0.31, 0.83)),
    ]
    captions = ("Two dogs and a man in a park.", "Dogs play with a teddy bear.")
    boxes = tuple(Instance(*thing) for thing in things)
    return AnnotatedImage("7", Path("/7.jpg"), 640, 480, captions, boxes)


def judge(
    answer: str, question: str = "What is there?", kind: Kind = "conversation",
    images: Sequence[AnnotatedImage] = (),
) -> str:  # fmt: skip
    """Return the rule that an answer breaks, or nothing."""
    shown = tuple(images) or (park(),)
    return judge_all(kind, [Exchange(question, answer)], shown, CATEGORIES, PROMPTS)


def judge_all(
    kind: Kind,
    exchanges: Sequence[Exchange],
    images: tuple[AnnotatedImage, ...],
    categories: tuple[str, ...],
    prompts: dict[Kind, TeacherPrompt],
) -> str:
    """Return the rule that exchanges break, or nothing."""
    rules = ReplyChecker(AnnotationSet(images, categories), prompts)
    text = exchanges[0].answer if kind == "detail" else format_exchanges(exchanges)
    try:
        rules(Dialogue("7", kind, images, random.Random(0)), Reply(text, "stop"))
    except RejectedReply as refusal:
        return refusal.rule
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
def test_what_cannot_stand_is_refused_by_its_rule(rule: str, answer: str) -> None:
    """One rule each."""
    assert judge(answer) == rule


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
def test_what_is_open_is_left_alone(answer: str) -> None:
    """No rule is broken by what is so, might be so, is denied, or is said of the world."""
    assert judge(answer) == ""


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
def test_yes_no_and_numbers_are_compared(question: str, answer: str, rule: str) -> None:
    """With the boxes, unless a caption says the number too."""
    assert judge(answer, question) == rule


def test_a_word_of_the_captions_themselves_is_no_leak() -> None:
    """An image of a poster with a caption may be said to have one."""
    poster = AnnotatedImage("8", Path("/8.jpg"), 9, 9, ("A poster with a caption.",), ())
    assert judge("The caption is at the bottom.", images=[poster]) == ""
    assert judge("The caption is at the bottom of the bounding box.", images=[poster]) == "source"


def test_a_thing_in_one_of_several_images_is_not_absent() -> None:
    """Only what stands in none of them is; numbers are left alone."""
    street = AnnotatedImage(
        "8", Path("/8.jpg"), 9, 9, ("A cat.",), (Instance("cat", Box(0, 0, 1, 1)),)
    )
    both = [park(), street]
    assert judge("There is a cat in B and none in A.", kind="context", images=both) == ""
    assert judge("There is an umbrella in both.", kind="context", images=both) == "absent object"
    assert judge("Both show umbrellas.", kind="context", images=both) == "absent object"
    assert judge("There are three dogs in A, but B has none.", kind="context", images=both) == ""


def test_a_conversation_goes_forward() -> None:
    """No question comes twice, whatever the answers."""
    twice = [Exchange("What is there?", "A dog."), Exchange("What is there?", "A man.")]
    assert judge_all("conversation", twice, (park(),), CATEGORIES, PROMPTS) == "circles"
    other = [Exchange("What is there?", "A dog."), Exchange("What else is there?", "A dog.")]
    assert judge_all("conversation", other, (park(),), CATEGORIES, PROMPTS) == ""


@pytest.mark.parametrize(
    ("question", "answer", "rule"),
    [
        ("What do the pictures have in common?", "A dog.", ""),
        ("Which one is darker?", "B.", ""),
        ("Is A brighter than B?", "Yes.", ""),
        ("A和B有什么不同？", "B更暗。", ""),
        ("What is in picture A?", "A dog, and in B a cat.", ""),
        ("What does a dog eat?", "A bone.", "one picture"),
        ("What is in picture B?", "A cat.", "one picture"),
        ("What are they doing?", "They sit.", "one picture"),
    ],
)
def test_a_question_about_several_images_needs_two(question: str, answer: str, rule: str) -> None:
    """By their letters, of which A is no article, or in words for several at once."""
    asked = [Exchange(question, answer)]
    assert judge_all("context", asked, (park(), park()), CATEGORIES, PROMPTS) == rule


def test_a_text_that_goes_round_is_a_circle() -> None:
    """Also where no two sentences are the same; a text that calls a thing by its name often is none."""
    turns = " ".join(f"Then the man on the hill looks at the dog {number}." for number in range(9))
    assert judge(turns) == "circles"
    fine = (
        "The man walks along the lake with his dog. The dog has seen a duck, and the man holds the dog back while "
        "children feed the duck. Behind the lake stands a row of houses; the man may live in one of the houses."
    )
    assert judge(fine) == ""


def test_a_description_is_more_than_captions() -> None:
    """One that puts them one after the other is refused, one that uses their words is not."""
    pasted = "Two dogs and a man in a park. Dogs play with a teddy bear in it."
    assert judge(pasted, kind="detail") == "pasted"
    assert judge(pasted) == ""
    told = "In a park, a man stands to the right of his two dogs. They play with a teddy bear that lies at their feet."
    assert judge(told, kind="detail") == ""


def test_a_description_has_some_length() -> None:
    """In words, or in Chinese characters; other kinds may be short."""
    assert judge("Two dogs.", kind="detail") == "too short"
    assert judge("公园里有狗。", kind="detail") == "too short"
    assert judge("公园里有两只狗在草地上奔跑玩耍，一个男人站在旁边。", kind="detail") == ""
    assert judge("Two dogs.") == ""


def test_what_gpt4_wrote_for_llavas_benchmark_is_kept(third_party: Path) -> None:
    """Of ninety answers that people went through, judged by the annotations they were written from, none is refused."""
    folder = third_party / "llava_bench_coco"
    images = {}
    for line in (folder / "caps_boxes_coco2014_val_80.jsonl").read_text().splitlines():
        row = json.loads(line)
        boxes = tuple(Instance(each["category"], Box(*each["bbox"])) for each in row["instances"])
        image = AnnotatedImage(row["id"], Path("/x.jpg"), 1, 1, tuple(row["captions"]), boxes)
        images[row["id"]] = image
    looked_for = read_coco(third_party / "coco_mini", SkippedItems()).categories
    rows = (folder / "coco2014_val_gpt4_qa_30x3.jsonl").read_text().splitlines()
    refused: Counter[str] = Counter()
    prompts = load_prompts(["conversation", "detail", "reasoning"])
    for row in map(json.loads, rows):
        asked = [Exchange(row["instruction"], row["output"])]
        shown = (images[row["id"]],)
        refused[judge_all(KINDS[row["type"]], asked, shown, looked_for, prompts)] += 1
    assert len(rows) == 90
    assert refused == {"": 90}


def test_what_contradicts_real_annotations_is_refused(third_party: Path) -> None:
    """About each of eighty real images: a thing that nobody found there, and one more than there are."""
    looked = read_coco(third_party / "coco_mini", SkippedItems())
    told: Counter[tuple[str, str]] = Counter()
    for image in looked.images:
        for answer in ("There is a toaster near the wall.", "There is a giraffe near the wall."):
            try:
                check_grounding([Exchange("What?", answer)], [image], looked.categories)
            except RejectedReply as refusal:
                told[refusal.rule, str(refusal).split(": ")[1]] += 1
    giraffes = sum("giraffe" in image.counts for image in looked.images)
    toasters = sum("toaster" in image.counts for image in looked.images)
    assert told["absent object", "giraffe"] >= 78 - giraffes
    assert told["absent object", "toaster"] >= 78 - toasters


TEXT = "A man in a red coat walks his two dogs through a park full of old trees while it snows."


def test_words_that_every_text_has_are_no_reason_to_compare_them() -> None:
    """A run in all texts whose hash is small does not make each a candidate for every other; near ones are found."""
    usual = min((f"what stands {number}" for number in range(5000)), key=lambda one: crc32(one.encode()))  # fmt: skip
    seen = NearDuplicateIndex()
    texts = [
        " ".join([usual, *(f"word{number}x{at}" for at in range(40))]) for number in range(300)
    ]
    for number, text in enumerate(texts):
        assert seen.find(str(number), text) is None
    assert seen.compared < 300
    assert [seen.find("again", f"{text} once more") for text in texts] == [*map(str, range(300))]  # fmt: skip


def test_near_duplicates_are_found_whatever_came_between() -> None:
    """A word more or another case is near, other words are not; short texts only when equal."""
    seen = NearDuplicateIndex()
    assert seen.find("a", TEXT) is None
    for number in range(200):
        assert (
            seen.find(
                f"n{number}", f"Picture {number} shows {number * 7} things on {number * 3} tables."
            )
            is None
        )
    assert seen.find("b", TEXT.upper() + " Nice!") == "a"
    assert (
        seen.find("c", "A woman in a blue coat walks her cat over a bridge near old houses.")
        is None
    )
    assert seen.find("d", "A red dog.") is None
    assert seen.find("e", "A red dog!") == "d"
    assert seen.find("f", "A red cat.") is None
    assert seen.find("g", "公园里有两只狗在草地上奔跑玩耍") is None
    assert seen.find("h", "公园里有两只狗在草地上奔跑玩耍。") == "g"
