"""lmms-eval's questions become conversations, and are answered in order; lmms-eval itself is not needed."""

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
from caldera.inference.likelihood import LikelihoodScorer
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from tests.engine_answers import generate

DEVICE = choose_device("cpu", "float32")


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    """Return a random image."""
    values = np.random.default_rng(seed).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def question_about(text: str, *images: object) -> LmmsQuestion:
    """Return a question about images."""
    return LmmsQuestion("task t, split test, document 3", text, lambda: images)


def answerer(assistant: LlavaBundle, batch_size: int = 2, seed: int = 0) -> LmmsAnswerer:
    """Return an answerer with a random assistant."""
    return LmmsAnswerer(assistant, DEVICE, batch_size=batch_size, seed=seed, progress=NoProgress())


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
def test_images_replace_their_placeholders(
    tmp_path: Path, text: str, images: int, expected: Sequence[str | int]
) -> None:
    """They precede a text without placeholders, as for lmms-eval's LLaVA; without images a placeholder is text."""
    pixels = [noise(number) for number in range(images)]
    [turn] = conversation_from(question_about(text, *pixels), tmp_path).turns
    assert turn.role == "user"
    assert [part for part in turn.parts if isinstance(part, str)] == [
        part for part in expected if isinstance(part, str)
    ]
    assert [isinstance(part, ImageRef) for part in turn.parts] == [
        isinstance(part, int) for part in expected
    ]
    for image_ref, image in zip(turn.images, pixels, strict=True):
        assert open_image(Path(image_ref.path)).tobytes() == image.tobytes()


def test_invalid_questions_are_rejected_with_the_reason(tmp_path: Path) -> None:
    """A wrong number of placeholders, other media than images, and an empty question."""
    with pytest.raises(UsageError, match=r"has 1 <image> mark\(s\) but 2 image\(s\)"):
        conversation_from(question_about("<image> What?", noise(0), noise(1)), tmp_path)
    with pytest.raises(UsageError, match="given str, but it accepts images only"):
        conversation_from(question_about("What?", "video.mp4"), tmp_path)
    with pytest.raises(ConversationError, match="turn 1 is empty"):
        conversation_from(question_about(" "), tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_of_image_is_written(tmp_path: Path, mode: str) -> None:
    """Pillow's modes that PNG does not support become RGB."""
    [turn] = conversation_from(question_about("What?", noise(1, mode)), tmp_path).turns
    assert open_image(Path(turn.images[0].path)).size == (11, 7)


def test_an_image_is_written_upright(tmp_path: Path) -> None:
    """The EXIF orientation is applied, as for a file."""
    turned = noise(1)
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif(), quality=100)
    with Image.open(tmp_path / "turned.jpg") as image:
        [turn] = conversation_from(question_about("What?", image), tmp_path / "prompt_text").turns
    written = open_image(Path(turn.images[0].path))
    assert written.size == (7, 11)
    assert written.tobytes() == open_image(tmp_path / "turned.jpg").tobytes()


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    """A truncated file is an ImageError."""
    noise(1).save(tmp_path / "complete.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "complete.png").read_bytes()[:90])
    with (
        Image.open(tmp_path / "cut.png") as cut,
        pytest.raises(ImageError, match="of the data set cannot be decoded"),
    ):
        conversation_from(question_about("What?", cut), tmp_path / "prompt_text")


@pytest.mark.parametrize(
    ("settings", "sampling", "stops", "unsupported"),
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
    settings: dict[str, object],
    sampling: SamplingParams,
    stops: tuple[str, ...],
    unsupported: list[str],
) -> None:
    """A task's settings apply; unsupported ones are reported, never dropped."""
    assert decoding_from(settings) == (LmmsGeneration(sampling, stops), unsupported)


def test_settings_out_of_range_are_rejected() -> None:
    """The checks are those of SamplingParams."""
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
    """The first of several stops counts."""
    assert truncate_at_stops(text, stops) == expected


def single_answerer(assistant: LlavaBundle, folder: Path) -> Callable[[LmmsQuestion, int], str]:
    """Return a function that answers a single question."""

    def answer(question: LmmsQuestion, max_new_tokens: int) -> str:
        conversation = conversation_from(question, folder / question.text)
        sampling = SamplingParams(max_new_tokens=max_new_tokens)
        [text] = generate(assistant, [conversation], sampling=sampling)
        return text

    return answer


def test_answers_come_in_the_order_of_questions(assistant: LlavaBundle, tmp_path: Path) -> None:
    """With any length and settings, each question gets the same answer as alone."""
    requests = [
        (question_about("what " * length, *[noise(length)] * (length % 3)), max_new_tokens)
        for length, max_new_tokens in [(5, 3), (1, 4), (4, 3), (2, 4), (3, 3), (6, 4)]
    ]
    answers = answerer(assistant).answer(
        [
            (question, LmmsGeneration(SamplingParams(max_new_tokens=max_new_tokens)))
            for question, max_new_tokens in requests
        ]
    )
    single = single_answerer(assistant, tmp_path)
    assert answers == [single(question, max_new_tokens) for question, max_new_tokens in requests]
    assert len(set(answers)) > 2, "equal answers would prove nothing"


def test_truncated_answers_are_counted(
    assistant: LlavaBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stops that shorten answers are logged, since lmms-eval adds a blank line as a stop by default."""
    question = question_about("what", noise(0))
    answer = single_answerer(assistant, tmp_path)(question, 5)
    stop = answer[-1]
    assert answer.index(stop) > 0
    requests = [
        (question, LmmsGeneration(SamplingParams(max_new_tokens=5), stops))
        for stops in [(stop,), ()]
    ]
    with caplog.at_level(logging.WARNING):
        assert answerer(assistant).answer(requests) == [
            answer[: answer.index(stop)].rstrip(),
            answer,
        ]
    assert "1 of 2 answers were cut" in caplog.text


def test_a_repeated_question_is_sampled_again(assistant: LlavaBundle) -> None:
    """With a temperature, a repeated question gets different answers, which another run with the seed repeats."""
    requests = [
        (question_about("what"), LmmsGeneration(SamplingParams(temperature=2.0, max_new_tokens=6)))
    ] * 5
    first = answerer(assistant, batch_size=1, seed=7).answer(requests)
    assert len(set(first)) > 1
    assert answerer(assistant, batch_size=1, seed=7).answer(requests) == first
    assert answerer(assistant, batch_size=1, seed=8).answer(requests) != first


def test_log_likelihoods_are_in_the_order_of_requests(assistant: LlavaBundle) -> None:
    """Each equals that of a single request."""
    texts = ["two cats on the left", "a", "the dog is in the meadow"]
    requests = [
        (question_about("what is there?" * number), text)
        for number, text in zip((3, 1, 2), texts, strict=True)
    ]
    scorer = LikelihoodScorer(assistant, DecodedImages(assistant.processor))
    likelihoods = answerer(assistant).log_likelihoods(
        [(question, f" {text}") for question, text in requests]
    )
    for (question, text), likelihood in zip(requests, likelihoods, strict=True):
        conversation = Conversation("c", (Turn("user", (question.text,)),))
        [single] = scorer.score([scorer.prompt(conversation, text)])
        assert likelihood.sum == pytest.approx(single.sum, abs=1e-4)
        assert (likelihood.num_tokens, likelihood.greedy) == (single.num_tokens, False)


def test_an_invalid_question_is_named(assistant: LlavaBundle) -> None:
    """A note on the error names the task and document."""
    requests = [(question_about("what " * 3000), LmmsGeneration(SamplingParams(max_new_tokens=4)))]
    with pytest.raises(UsageError, match="the model has room for 2048") as caught:
        answerer(assistant).answer(requests)
    assert caught.value.__notes__ == ["question: task t, split test, document 3"]
    with pytest.raises(UsageError, match="accepts images only") as caught:
        answerer(assistant).log_likelihoods([(question_about("what", b"sound"), "a dog")])
    assert caught.value.__notes__ == ["question: task t, split test, document 3"]
