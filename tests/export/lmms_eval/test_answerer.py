"""What lmms-eval asks becomes a conversation, and is answered in its order; lmms-eval itself is not needed."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import choose_device
from caldera.errors import ConversationError, ImageError, UsageError
from caldera.export.lmms_eval.answerer import (
    LmmsAnswerer,
    LmmsGeneration,
    LmmsQuestion,
    conversation_from,
    decoding_from,
    truncate_at_stops,
)
from caldera.images.decoding import open_image
from caldera.inference.batch_generator import BatchGenerator
from caldera.inference.likelihood import LikelihoodScorer
from caldera.inference.sampling import SamplingParams
from caldera.model.assistant import LlavaBundle
from caldera.progress import NoProgress

COMPUTE = choose_device("cpu", "float32")


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    """Return an image like no other."""
    values = np.random.default_rng(seed).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def asking(text: str, *images: object) -> LmmsQuestion:
    """Ask a text about images."""
    return LmmsQuestion("task t, split test, document 3", text, lambda: images)


def answerer(assistant: LlavaBundle, batch_size: int = 2, seed: int = 0) -> LmmsAnswerer:
    """Answer with a random assistant."""
    return LmmsAnswerer(assistant, COMPUTE, batch_size=batch_size, seed=seed, progress=NoProgress())


@pytest.mark.parametrize(
    ("text", "images", "expected"),
    [
        ("What?", 0, ("What?",)),
        ("What?", 1, (0, "\nWhat?")),
        ("What?", 2, (0, " ", 1, "\nWhat?")),
        ("<image>\nWhat?", 1, (0, "\nWhat?")),
        ("A <image> B <image>", 2, ("A ", 0, " B ", 1)),
        ("Say <image>.", 0, ("Say <image>.",)),
    ],
)
def test_images_stand_at_their_marks(
    tmp_path: Path, text: str, images: int, expected: Sequence[str | int]
) -> None:
    """Before a text without marks, as LLaVA is asked there; without images a mark is text."""
    seen = [noise(number) for number in range(images)]
    [turn] = conversation_from(asking(text, *seen), tmp_path).turns
    assert turn.role == "user"
    assert [part for part in turn.parts if isinstance(part, str)] == [
        part for part in expected if isinstance(part, str)
    ]
    assert [isinstance(part, ImageRef) for part in turn.parts] == [
        isinstance(part, int) for part in expected
    ]
    for image, one in zip(turn.images, seen, strict=True):
        assert open_image(Path(image.path)).tobytes() == one.tobytes()


def test_what_cannot_be_asked_says_why(tmp_path: Path) -> None:
    """Marks that do not fit, sounds and videos, and nothing at all."""
    with pytest.raises(UsageError, match=r"has 1 <image> mark\(s\) but 2 image\(s\)"):
        conversation_from(asking("<image> What?", noise(0), noise(1)), tmp_path)
    with pytest.raises(UsageError, match="given str, but it sees images only"):
        conversation_from(asking("What?", "video.mp4"), tmp_path)
    with pytest.raises(ConversationError, match="turn 1 is empty"):
        conversation_from(asking(" "), tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_of_image_is_written(tmp_path: Path, mode: str) -> None:
    """PNG has no place for some modes of Pillow's; those become RGB."""
    [turn] = conversation_from(asking("What?", noise(1, mode)), tmp_path).turns
    assert open_image(Path(turn.images[0].path)).size == (11, 7)


def test_a_image_lies_upright(tmp_path: Path) -> None:
    """A photograph's orientation holds as it does for a file."""
    turned = noise(1)
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif(), quality=100)
    with Image.open(tmp_path / "turned.jpg") as given:
        [turn] = conversation_from(asking("What?", given), tmp_path / "prompt_text").turns
    written = open_image(Path(turn.images[0].path))
    assert written.size == (7, 11)
    assert written.tobytes() == open_image(tmp_path / "turned.jpg").tobytes()


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    """A file that ends too early is no fault of the program."""
    noise(1).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:90])
    with (
        Image.open(tmp_path / "cut.png") as cut,
        pytest.raises(ImageError, match="of the data set cannot be decoded"),
    ):
        conversation_from(asking("What?", cut), tmp_path / "prompt_text")


@pytest.mark.parametrize(
    ("settings", "sampling", "stops", "left"),
    [
        ({}, SamplingParams(max_new_tokens=1024), (), []),
        ({"max_new_tokens": 16, "until": "\n"}, SamplingParams(max_new_tokens=16), ("\n",), []),
        (
            {"until": None, "top_p": None, "num_beams": 1},
            SamplingParams(max_new_tokens=1024),
            (),
            [],
        ),
        ({"until": ["", "Q:", "A:"]}, SamplingParams(max_new_tokens=1024), ("Q:", "A:"), []),
        (
            {"temperature": 0.7, "top_p": 0.9, "do_sample": True},
            SamplingParams(temperature=0.7, top_p=0.9, max_new_tokens=1024),
            (),
            [],
        ),
        ({"temperature": 0.7, "do_sample": False}, SamplingParams(max_new_tokens=1024), (), []),
        ({"temperature": 0, "top_p": 0}, SamplingParams(max_new_tokens=1024), (), []),
        (
            {"num_beams": 3, "top_k": 5},
            SamplingParams(max_new_tokens=1024),
            (),
            ["num_beams=3", "top_k=5"],
        ),
    ],
)
def test_generation_settings_are_followed_or_named(
    settings: dict[str, object], sampling: SamplingParams, stops: tuple[str, ...], left: list[str]
) -> None:
    """What a task sets holds; what is not followed is told, never dropped."""
    assert decoding_from(settings) == (LmmsGeneration(sampling, stops), left)


def test_settings_out_of_range_are_refused() -> None:
    """By the same checks as everywhere."""
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        decoding_from({"max_new_tokens": 0})


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("a dog", (), "a dog"),
        ("a dog\n\nQ: what", ("Q:", "\n\n"), "a dog"),
        ("a dog", ("cat",), "a dog"),
        ("dog", ("d",), ""),
    ],
)
def test_an_answer_ends_before_the_first_stop(
    text: str, stops: tuple[str, ...], expected: str
) -> None:
    """Whichever of them comes first."""
    assert truncate_at_stops(text, stops) == expected


def alone(assistant: LlavaBundle, folder: Path) -> Callable[[LmmsQuestion, int], str]:
    """Answer a question without lmms-eval's ways."""
    generator = BatchGenerator(assistant, DecodedImages(assistant.processor))

    def answer(question: LmmsQuestion, longest: int) -> str:
        prompt = generator.prompt(conversation_from(question, folder / question.text))
        [text] = generator.generate([prompt], SamplingParams(max_new_tokens=longest))
        return text

    return answer


def test_answers_come_in_the_order_of_questions(assistant: LlavaBundle, tmp_path: Path) -> None:
    """However long they are, and whatever settings they are asked with, each gets the answer it gets alone."""
    asked = [
        (asking("what " * length, *[noise(length)] * (length % 3)), longest)
        for length, longest in [(5, 3), (1, 4), (4, 3), (2, 4), (3, 3), (6, 4)]
    ]
    answers = answerer(assistant).answer(
        [
            (question, LmmsGeneration(SamplingParams(max_new_tokens=longest)))
            for question, longest in asked
        ]
    )
    single = alone(assistant, tmp_path)
    assert answers == [single(question, longest) for question, longest in asked]
    assert len(set(answers)) > 2, "all alike would prove nothing"


def test_cut_answers_are_counted(
    assistant: LlavaBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stop that shortens answers is told, as lmms-eval puts a blank line there unasked."""
    question = asking("what", noise(0))
    whole = alone(assistant, tmp_path)(question, 5)
    stop = whole[-1]
    assert whole.index(stop) > 0
    asked = [
        (question, LmmsGeneration(SamplingParams(max_new_tokens=5), stops))
        for stops in [(stop,), ()]
    ]
    with caplog.at_level(logging.WARNING):
        assert answerer(assistant).answer(asked) == [
            whole[: whole.index(stop)].rstrip(),
            whole,
        ]
    assert "1 of 2 answers were cut" in caplog.text


def test_what_is_asked_again_is_drawn_again(assistant: LlavaBundle) -> None:
    """With a temperature a repeated question gets other answers, and the same ones in another run with the seed."""
    asked = [
        (asking("what"), LmmsGeneration(SamplingParams(temperature=2.0, max_new_tokens=6)))
    ] * 5
    first = answerer(assistant, batch_size=1, seed=7).answer(asked)
    assert len(set(first)) > 1
    assert answerer(assistant, batch_size=1, seed=7).answer(asked) == first
    assert answerer(assistant, batch_size=1, seed=8).answer(asked) != first


def test_given_answers_are_weighed_in_their_order(assistant: LlavaBundle) -> None:
    """As they are alone."""
    texts = ["two cats on the left", "a", "the dog is in the meadow"]
    asked = [
        (asking("what is there?" * number), text)
        for number, text in zip((3, 1, 2), texts, strict=True)
    ]
    weigher = LikelihoodScorer(assistant, DecodedImages(assistant.processor))
    weights = answerer(assistant).log_likelihoods(
        [(question, f" {text}") for question, text in asked]
    )
    for (question, text), weight in zip(asked, weights, strict=True):
        conversation = Conversation("c", (Turn("user", (question.text,)),))
        [single] = weigher.score([weigher.prompt(conversation, text)])
        assert weight.sum == pytest.approx(single.total, abs=1e-4)
        assert (weight.tokens, weight.greedy) == (single.tokens, False)


def test_a_question_that_cannot_be_asked_is_named(assistant: LlavaBundle) -> None:
    """The error says what is wrong, and a note which document of which task it is."""
    asked = [(asking("what " * 3000), LmmsGeneration(SamplingParams(max_new_tokens=4)))]
    with pytest.raises(UsageError, match="the model has room for 2048") as caught:
        answerer(assistant).answer(asked)
    assert caught.value.__notes__ == ["asked: task t, split test, document 3"]
    with pytest.raises(UsageError, match="sees images only") as caught:
        answerer(assistant).log_likelihoods([(asking("what", b"sound"), "a dog")])
    assert caught.value.__notes__ == ["asked: task t, split test, document 3"]
