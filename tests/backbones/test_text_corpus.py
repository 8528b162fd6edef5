"""Tests of the text corpus: dialogues in Vicuna's template, with descriptions instead of images."""

import random
from collections.abc import Iterator
from itertools import islice, pairwise

import pytest

from backbones.document_stream import stream_documents
from backbones.patch_words import GRID, center_tokens, patch_labels
from backbones.text_corpus import (
    DescriptionMix,
    Document,
    bags_of_words,
    describe_scene,
    dialogue_document,
    drill_document,
)
from caldera.annotations.boxes import position_of
from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.scenes.captions import captions_of, object_phrase
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import BACKGROUNDS, COLORS, OBJECT_KINDS, Scene, sample_scene
from caldera.templates.registry import find_template
from caldera.templates.template import BoundaryToken, ImageSlot, TextSpan

END = "</s>"
NUMBERS = ("one", "two", "three", "four", "five")
PLACES_AND_NUMBERS = ("top", "bottom", "left", "right", "middle", *NUMBERS)
MIXED = DescriptionMix(bags=0.5)


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    """Sample forty scenes by the paths of their images."""
    return {
        f"{index}.jpg": sample_scene(index, seed=5, split="train", shapes=glyph_shapes())
        for index in range(40)
    }


def dialogue(*images: str, after: bool = False, name: str = "1-vqa") -> Conversation:
    """Return a dialogue of two exchanges about some images."""
    refs: tuple[str | ImageRef, ...] = tuple(ImageRef(path) for path in images)
    question = ("What is it?\n", *refs) if after else (*refs, "\nWhat is it?")
    turns = (
        Turn("user", question),
        Turn("assistant", ("A dog.",)),
        Turn("user", ("Where?",)),
        Turn("assistant", ("On the left.",)),
    )
    return Conversation(name, turns)


def text(document: Document) -> str:
    """Return the text of a document."""
    return "".join(segment.text for segment in document)


def rng() -> random.Random:
    """Return a generator with a fixed seed."""
    return random.Random(3)


def kinds(scene: Scene) -> set[str]:
    """Return the names of the kinds in a scene."""
    return {group.kind.name for group in scene.groups}


def test_a_bag_has_the_words_of_its_cell(scenes: dict[str, Scene]) -> None:
    """One word in ten is dropped; a cell without an object has the setting. The center is never dropped."""
    num_words = num_labels = 0
    for scene in list(scenes.values())[:12]:
        bags = bags_of_words(scene, rng())
        for labels, center, bag in zip(
            patch_labels(scene), center_tokens(scene), bags, strict=True
        ):
            assert bag.endswith(center)
            words = bag.removesuffix(center).removeprefix(" ").split(" ")
            assert words
            assert len(set(words)) == len(words)
            assert set(words) <= set(labels)
            if labels == (scene.setting,):
                assert words == [scene.setting]
            else:
                num_words, num_labels = num_words + len(words), num_labels + len(labels)
    assert 0.87 < num_words / num_labels < 0.93


def test_a_scene_is_described_in_one_of_three_forms(scenes: dict[str, Scene]) -> None:
    """The given fraction as bags, a tenth as captions, the rest as lists of all objects with positions."""
    generator = random.Random(1)
    counts = {"bags": 0, "captions": 0, "list": 0}
    for number in range(1000):
        scene = scenes[f"{number % 40}.jpg"]
        segment = describe_scene(scene, DescriptionMix(bags=0.3), generator)
        if segment.cells:
            assert len(segment.cells) == GRID * GRID
            counts["bags"] += 1
        elif segment.text == " ".join(captions_of(scene)):
            counts["captions"] += 1
        else:
            assert segment.text.endswith(f", {BACKGROUNDS[scene.setting]}.")
            assert all(object_phrase(group, item) in segment.text for group, item in scene.objects)
            counts["list"] += 1
    assert counts["bags"] == pytest.approx(300, abs=50)
    assert counts["captions"] == pytest.approx(100, abs=35)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("images", [("3.jpg",), ("1.jpg", "2.jpg", "4.jpg"), ()])
def test_a_dialogue_equals_the_rendered_template_with_descriptions_for_images(
    scenes: dict[str, Scene], images: tuple[str, ...], after: bool
) -> None:
    """Texts and supervised spans are those that the assistant is later trained with."""
    conversation = dialogue(*images, after=after)
    expected = []
    generator = rng()
    for span in find_template("vicuna_v1").render(conversation):
        if isinstance(span, ImageSlot):
            expected.append((describe_scene(scenes[span.image.path], MIXED, generator).text, False))
        elif isinstance(span, BoundaryToken):
            expected.append((END if span.which == "end" else "", span.supervised))
        elif isinstance(span, TextSpan):
            expected.append((span.text, span.supervised))

    document = dialogue_document(conversation, scenes, end=END, mix=MIXED, rng=rng())

    assert text(document) == "".join(words for words, _ in expected)
    answers = "".join(segment.text for segment in document if segment.answer)
    assert answers == "".join(words for words, supervised in expected if supervised)


def test_only_answers_are_marked_as_answers(scenes: dict[str, Scene]) -> None:
    """Each includes the end token, so that the model learns to stop."""
    document = dialogue_document(dialogue("3.jpg"), scenes, end=END, mix=MIXED, rng=rng())
    assert [segment.text for segment in document if segment.answer] == [
        f" A dog.{END}",
        f" On the left.{END}",
    ]


def test_several_images_stay_in_place(scenes: dict[str, Scene]) -> None:
    """Each is described at its place in the question."""
    question = ("Picture A: ", ImageRef("1.jpg"), "\nPicture B: ", ImageRef("2.jpg"), "\nMore?")
    conversation = Conversation("x", (Turn("user", question), Turn("assistant", ("No.",))))
    segments = [
        segment.text
        for segment in dialogue_document(
            conversation, scenes, end=END, mix=DescriptionMix(), rng=rng()
        )
    ]
    assert segments[2] == "Picture A: "
    assert scenes["1.jpg"].setting in segments[3]
    assert segments[4] == "\nPicture B: "
    assert scenes["2.jpg"].setting in segments[5]
    assert segments[6] == "\nMore?"


def stream(scenes: dict[str, Scene], bags: float = 0.6, seed: int = 9) -> Iterator[Document]:
    """Return a stream of documents about the scenes."""
    dialogues = [dialogue(path, name=f"{path}-vqa") for path in scenes]
    return stream_documents(
        dialogues, scenes, end=END, mix=DescriptionMix(bags=bags, captioned=0.3), seed=seed
    )


def test_no_document_contains_an_image(scenes: dict[str, Scene]) -> None:
    """Neither a placeholder nor a path."""
    for document in islice(stream(scenes), 300):
        assert document
        assert IMAGE_PLACEHOLDER not in text(document)
        assert ".jpg" not in text(document)
        assert any(segment.answer for segment in document)


def test_documents_depend_on_the_seed(scenes: dict[str, Scene]) -> None:
    """The same seed gives the same stream over several epochs, another seed another order."""
    first, again = (list(islice(stream(scenes), 150)) for _ in range(2))
    assert first == again
    assert first != list(islice(stream(scenes, seed=10), 150))


@pytest.mark.parametrize("num_scenes", [1, 2, 3])
def test_a_drill_asks_for_all_present_and_as_many_absent_kinds(
    scenes: dict[str, Scene], num_scenes: int
) -> None:
    """Answers give number, color and position; with several scenes, absent kinds are in another scene."""
    for start in range(0, 36, num_scenes):
        described = list(scenes.values())[start : start + num_scenes]
        segments = drill_document(described, DescriptionMix(bags=0.5), rng())
        answers = {
            question.text: answer.text.removesuffix("\n")
            for question, answer in pairwise(segments)
            if answer.answer
        }
        assert all(not segment.answer for segment in segments[: 3 * num_scenes])
        all_kinds = set().union(*(kinds(scene) for scene in described))
        for letter, scene in zip("ABC", described, strict=False):
            prefix = f" {letter} " if num_scenes > 1 else " "
            scene_answers = {
                question.removeprefix(prefix).removesuffix(":"): answer
                for question, answer in answers.items()
                if question.startswith(prefix)
            }
            assert {name for name, answer in scene_answers.items() if answer != " no"} == kinds(
                scene
            )
            absent = {name for name, answer in scene_answers.items() if answer == " no"}
            candidates = all_kinds - kinds(scene)
            assert absent <= candidates or not candidates
            assert len(absent) == min(len(kinds(scene)), len(candidates) or len(OBJECT_KINDS))
            for group in scene.groups:
                [first, *_] = group.objects
                words = [NUMBERS[len(group.objects) - 1], *([group.color] if group.color else [])]
                words += (position_of(first.box) or "").split() if len(group.objects) == 1 else []
                assert scene_answers[group.kind.name].split() == words


def test_frequency_of_drills(scenes: dict[str, Scene]) -> None:
    """Four between ten dialogues."""
    dialogues = [dialogue(path, name=f"{path}-vqa") for path in scenes]
    documents = stream_documents(dialogues, scenes, end=END, mix=DescriptionMix(drills=0.4), seed=9)
    drills = sum(document[0].text.startswith("Picture") for document in islice(documents, 1400))
    assert drills == pytest.approx(400, abs=60)


def test_every_dialogue_occurs_once_per_epoch(scenes: dict[str, Scene]) -> None:
    """Without bags: 40 dialogues, then the same 40 in another order."""
    dialogues = [
        Conversation(path, (Turn("user", ("Hello",)), Turn("assistant", (path,))))
        for path in scenes
    ]
    documents = stream_documents(dialogues, scenes, end="", mix=DescriptionMix(), seed=9)
    first, second = ([text(document) for document in islice(documents, 40)] for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 40


def test_bags_alone_are_followed_by_a_caption_of_their_scene(scenes: dict[str, Scene]) -> None:
    """They are as frequent as the mix says, and the caption is the answer."""
    documents = list(islice(stream(scenes, bags=0.6), 1300))
    captioned = [document for document in documents if len(document) == 2]
    assert len(captioned) == pytest.approx(300, abs=60)
    for words, caption in captioned:
        assert not words.answer
        assert caption.answer
        assert any(
            {word for cell in words.cells for word in cell.partition("<")[0].split()}
            <= {scene.setting, *COLORS, *kinds(scene), *PLACES_AND_NUMBERS}
            for scene in scenes.values()
            if caption.text.removesuffix("\n") in captions_of(scene)
        )
