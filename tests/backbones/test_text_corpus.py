"""Documents for the language model: dialogues in Vicuna's words, scenes told in words, never an image."""

import random
from collections.abc import Iterator
from itertools import islice, pairwise

import pytest

from backbones.patch_words import GRID, patch_labels
from backbones.text_corpus import (
    DescriptionMix,
    Document,
    bags_of_words,
    describe_scene,
    dialogue_document,
    drill_document,
    stream_documents,
)
from caldera.annotations.boxes import position_of
from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.scenes.captions import captions_of, object_phrase
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import BACKGROUNDS, COLORS, OBJECT_KINDS, Scene, sample_scene
from caldera.templates.template import BoundaryToken, ImageSlot, TextSpan, find_template

END = "</s>"
NUMBERS = ("one", "two", "three", "four", "five")
PLACES_AND_NUMBERS = ("top", "bottom", "left", "right", "middle", *NUMBERS)
MIXED = DescriptionMix(bags=0.5)


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    """Forty scenes by the paths of their images."""
    return {
        f"{index}.jpg": sample_scene(index, seed=5, split="train", shapes=glyph_shapes())
        for index in range(40)
    }


def talk(*images: str, after: bool = False, name: str = "1-vqa") -> Conversation:
    """Return a dialogue of two exchanges about some images."""
    shown: tuple[str | ImageRef, ...] = tuple(ImageRef(path) for path in images)
    asked = ("What is it?\n", *shown) if after else (*shown, "\nWhat is it?")
    turns = (
        Turn("user", asked),
        Turn("assistant", ("A dog.",)),
        Turn("user", ("Where?",)),
        Turn("assistant", ("On the left.",)),
    )
    return Conversation(name, turns)


def text(document: Document) -> str:
    """Return a document's whole text."""
    return "".join(piece.text for piece in document)


def rng() -> random.Random:
    """Return the same source of chance each time."""
    return random.Random(3)


def kinds(scene: Scene) -> set[str]:
    """Return the names of what a scene shows."""
    return {group.kind.name for group in scene.groups}


def test_a_bag_says_what_there_is_to_say_of_its_cell(scenes: dict[str, Scene]) -> None:
    """Kind, number, place and color of what fills it, one word in ten left out; or the setting."""
    said = possible = 0
    for scene in list(scenes.values())[:12]:
        told = bags_of_words(scene, rng())
        for whole, bag in zip(patch_labels(scene), told, strict=True):
            words = bag.removeprefix(" ").split(" ")
            assert words
            assert len(set(words)) == len(words)
            assert set(words) <= set(whole)
            if whole == (scene.setting,):
                assert words == [scene.setting]
            else:
                said, possible = said + len(words), possible + len(whole)
    assert 0.87 < said / possible < 0.93


def test_a_scene_is_told_in_one_of_three_ways(scenes: dict[str, Scene]) -> None:
    """The stated share as bags, a tenth as captions, the rest as lists of everything with its place."""
    chance = random.Random(1)
    ways = {"bags": 0, "captions": 0, "list": 0}
    for number in range(1000):
        scene = scenes[f"{number % 40}.jpg"]
        piece = describe_scene(scene, DescriptionMix(bags=0.3), chance)
        if piece.cells:
            assert len(piece.cells) == GRID * GRID
            ways["bags"] += 1
        elif piece.text == " ".join(captions_of(scene)):
            ways["captions"] += 1
        else:
            assert piece.text.endswith(f", {BACKGROUNDS[scene.setting]}.")
            assert all(object_phrase(group, thing) in piece.text for group, thing in scene.things)
            ways["list"] += 1
    assert ways["bags"] == pytest.approx(300, abs=50)
    assert ways["captions"] == pytest.approx(100, abs=35)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("images", [("3.jpg",), ("1.jpg", "2.jpg", "4.jpg"), ()])
def test_a_dialogue_is_what_the_template_writes_with_scenes_in_the_images_places(
    scenes: dict[str, Scene], images: tuple[str, ...], after: bool
) -> None:
    """What the backbone reads is what the assistant is later asked with, to the letter, and learns from as much."""
    spoken = talk(*images, after=after)
    expected = []
    chance = rng()
    for span in find_template("vicuna_v1").render(spoken):
        if isinstance(span, ImageSlot):
            expected.append((describe_scene(scenes[span.image.path], MIXED, chance).text, False))
        elif isinstance(span, BoundaryToken):
            expected.append((END if span.which == "end" else "", span.supervised))
        elif isinstance(span, TextSpan):
            expected.append((span.text, span.supervised))

    written = dialogue_document(spoken, scenes, end=END, telling=MIXED, rng=rng())

    assert text(written) == "".join(words for words, _ in expected)
    answers = "".join(piece.text for piece in written if piece.answer)
    assert answers == "".join(words for words, learned in expected if learned)


def test_answers_and_only_answers_are_marked(scenes: dict[str, Scene]) -> None:
    """Each with its end mark, so that the model learns to stop."""
    written = dialogue_document(talk("3.jpg"), scenes, end=END, telling=MIXED, rng=rng())
    assert [piece.text for piece in written if piece.answer] == [
        f" A dog.{END}",
        f" On the left.{END}",
    ]


def test_several_images_stay_in_their_places(scenes: dict[str, Scene]) -> None:
    """Each is told where it is shown, in order."""
    question = ("Picture A: ", ImageRef("1.jpg"), "\nPicture B: ", ImageRef("2.jpg"), "\nMore?")
    spoken = Conversation("x", (Turn("user", question), Turn("assistant", ("No.",))))
    pieces = [
        piece.text
        for piece in dialogue_document(spoken, scenes, end=END, telling=DescriptionMix(), rng=rng())
    ]
    assert pieces[2] == "Picture A: "
    assert scenes["1.jpg"].setting in pieces[3]
    assert pieces[4] == "\nPicture B: "
    assert scenes["2.jpg"].setting in pieces[5]
    assert pieces[6] == "\nMore?"


def stream(scenes: dict[str, Scene], share: float = 0.6, seed: int = 9) -> Iterator[Document]:
    """Return documents about the scenes."""
    spoken = [talk(path, name=f"{path}-vqa") for path in scenes]
    return stream_documents(spoken, scenes, end=END, telling=DescriptionMix(bags=share), seed=seed)


def test_no_document_holds_a_image(scenes: dict[str, Scene]) -> None:
    """Neither a placeholder nor a path: the language model never sees an image."""
    for document in islice(stream(scenes), 300):
        assert document
        assert IMAGE_PLACEHOLDER not in text(document)
        assert ".jpg" not in text(document)
        assert any(piece.answer for piece in document)


def test_documents_follow_from_the_seed(scenes: dict[str, Scene]) -> None:
    """The same again, over several times around; another seed gives another order."""
    first, again = (list(islice(stream(scenes), 150)) for _ in range(2))
    assert first == again
    assert first != list(islice(stream(scenes, seed=10), 150))


@pytest.mark.parametrize("several", [1, 2, 3])
def test_a_drill_asks_for_what_is_there_and_for_as_much_that_is_not(
    scenes: dict[str, Scene], several: int
) -> None:
    """Each kind once with all there is to say of it; with several scenes, what is missing in one is in another."""
    for start in range(0, 36, several):
        told = list(scenes.values())[start : start + several]
        pieces = drill_document(told, DescriptionMix(bags=0.5), rng())
        asked = {
            question.text: answer.text.removesuffix("\n")
            for question, answer in pairwise(pieces)
            if answer.answer
        }
        assert all(not piece.answer for piece in pieces[: 3 * several])
        elsewhere = set().union(*(kinds(scene) for scene in told))
        for letter, scene in zip("ABC", told, strict=False):
            opening = f" {letter} " if several > 1 else " "
            own = {
                question.removeprefix(opening).removesuffix(":"): answer
                for question, answer in asked.items()
                if question.startswith(opening)
            }
            assert {name for name, answer in own.items() if answer != " no"} == kinds(scene)
            missing = {name for name, answer in own.items() if answer == " no"}
            pool = elsewhere - kinds(scene)
            assert missing <= pool or not pool
            assert len(missing) == min(len(kinds(scene)), len(pool) or len(OBJECT_KINDS))
            for group in scene.groups:
                [first, *_] = group.things
                words = [NUMBERS[len(group.things) - 1], *([group.color] if group.color else [])]
                words += (position_of(first.box) or "").split() if len(group.things) == 1 else []
                assert own[group.kind.name].split() == words


def test_drills_come_as_often_as_told(scenes: dict[str, Scene]) -> None:
    """Four between ten dialogues."""
    spoken = [talk(path, name=f"{path}-vqa") for path in scenes]
    read = stream_documents(spoken, scenes, end=END, telling=DescriptionMix(drills=0.4), seed=9)
    drills = sum(document[0].text.startswith("Picture") for document in islice(read, 1400))
    assert drills == pytest.approx(400, abs=60)


def test_every_dialogue_is_read_once_each_time_around(scenes: dict[str, Scene]) -> None:
    """Without bags there is nothing else: 40 dialogues, then the same 40 in another order."""
    spoken = [
        Conversation(path, (Turn("user", ("Hello",)), Turn("assistant", (path,))))
        for path in scenes
    ]
    read = stream_documents(spoken, scenes, end="", telling=DescriptionMix(), seed=9)
    first, second = ([text(document) for document in islice(read, 40)] for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 40


def test_bags_come_with_a_caption_of_their_own_scene(scenes: dict[str, Scene]) -> None:
    """Half as often as the share of bags, each followed by a true caption as the answer."""
    read = list(islice(stream(scenes, share=0.6), 1300))
    captioned = [document for document in read if len(document) == 2]
    assert len(captioned) == pytest.approx(300, abs=60)
    for words, caption in captioned:
        assert not words.answer
        assert caption.answer
        assert any(
            {word for cell in words.cells for word in cell.split()}
            <= {scene.setting, *COLORS, *kinds(scene), *PLACES_AND_NUMBERS}
            for scene in scenes.values()
            if caption.text.removesuffix("\n") in captions_of(scene)
        )
