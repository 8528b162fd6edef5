"""Tests of the Python API: complete, streamed and batched answers."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import caldera
from caldera.chat.chat_model import ChatModel, with_stored_dtype
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import DeviceConfig
from caldera.errors import CalderaError, ImageError, ModelFormatError, UsageError
from caldera.formats.model_folder import save_model_folder
from caldera.inference.engine import Engine, EngineConfig
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle


@pytest.fixture
def llava(assistant: LlavaBundle, tmp_path: Path) -> Iterator[ChatModel]:
    """The random model, saved and loaded by the public function."""
    save_model_folder(tmp_path / "model", assistant)
    with caldera.load(tmp_path / "model", settings=EngineConfig(slots=2)) as model:
        yield model


def test_complete_and_streamed_answers_agree(llava: ChatModel, photos: Path) -> None:
    """By file or decoded image, with the fields of SamplingParams by name."""
    complete = llava.chat("what is it?", photos / "1.png", max_new_tokens=12)
    texts = list(llava.stream("what is it?", str(photos / "1.png"), max_new_tokens=12))
    with Image.open(photos / "1.png") as opened:
        assert llava.chat("what is it?", opened, max_new_tokens=12) == complete
    assert "".join(texts) == complete != ""
    assert len(texts) > 1
    assert llava.chat("what is it?", max_new_tokens=12) != complete


def test_batched_questions_are_answered_in_order(llava: ChatModel, photos: Path) -> None:
    """More questions than slots, with one image, two and none; sampled answers differ by question."""
    questions: list[tuple[str | Path, ...]] = [
        ("what is it?", photos / "1.png"),
        ("what are they?", photos / "2.png", photos / "3.png"),
        ("what?",),
        ("what is it?", photos / "4.png"),
        ("what is it?", photos / "1.png"),
    ]
    answers = llava.chat_batch(questions, max_new_tokens=9)
    assert answers == [
        llava.chat(str(text), *images, max_new_tokens=9) for text, *images in questions
    ]
    assert answers[0] == answers[4]
    sampled = llava.chat_batch([("what?",)] * 3, max_new_tokens=9, temperature=2.0)
    assert len(set(sampled)) == 3


def test_a_conversation_remembers(llava: ChatModel, photos: Path) -> None:
    """The second answer follows the first turn, which comes from the cache."""
    conversation = llava.start_conversation(photos / "1.png", max_new_tokens=9)
    "".join(conversation.ask("what is it?"))
    before = llava.engine.stats().cached_tokens
    second = "".join(conversation.ask("and now?"))
    assert llava.engine.stats().cached_tokens - before > 9, "at least the image"
    assert second == conversation.conversation.turns[3].text
    assert len(conversation.conversation.turns) == 4


def test_images_and_messages_are_taken_as_users_write_them(llava: ChatModel, photos: Path) -> None:
    """Positional, in a list, by name, in OpenAI's and in transformers' messages: one prompt, one answer."""
    photo = photos / "1.png"
    expected = llava.chat("what is it?", photo, max_new_tokens=9)
    text = {"type": "text", "text": "what is it?"}
    url = {"type": "image_url", "image_url": {"url": str(photo)}}
    array = np.array(Image.open(photo).convert("RGB"))
    conversation = Conversation("c", (Turn("user", (ImageRef(str(photo)), "\nwhat is it?")),))
    answers = [
        llava.chat("what is it?", [photo.read_bytes()], max_new_tokens=9),
        llava.chat("what is it?", images=[array], max_new_tokens=9),
        llava.chat("what is it?", image=torch.from_numpy(array).permute(2, 0, 1), max_new_tokens=9),
        llava.chat([{"role": "user", "content": [url, text]}], max_new_tokens=9),
        llava.chat({"role": "user", "content": [{"type": "image"}, text]}, photo, max_new_tokens=9),
        llava.chat(conversation, max_new_tokens=np.int64(9)),
        "".join(llava.start_conversation(array, max_new_tokens=9).ask("what is it?")),
        *llava.chat_batch(["what is it?"], images=[photo], max_new_tokens=9),
    ]
    assert answers == [expected] * 8


def test_answers_are_awaited(llava: ChatModel, photos: Path) -> None:
    """Awaited together, more than there are slots, they equal the blocking ones; the event loop is free meanwhile."""
    questions = ("what is it?", "what?", "where is the dog?")

    async def ask() -> tuple[list[str], list[str], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        pending = [llava.achat(text, photos / "1.png", max_new_tokens=9) for text in questions]
        answers = await asyncio.gather(*pending)
        stream = llava.astream("what is it?", photos / "1.png", max_new_tokens=9)
        texts = [text async for text in stream]
        ticking.cancel()
        with pytest.raises(UsageError, match="did you mean 'max_new_tokens'"):
            await llava.achat("what?", max_tokens=9)
        return answers, texts, ticks

    answers, texts, ticks = asyncio.run(ask())
    assert answers == [llava.chat(text, photos / "1.png", max_new_tokens=9) for text in questions]
    assert "".join(texts) == answers[0]
    assert len(texts) > 1
    assert ticks > 9


def test_any_number_of_answers_is_awaited(assistant: LlavaBundle) -> None:
    """More than the engine's queue takes wait for their turn."""
    engine = Engine(assistant, EngineConfig(slots=1, max_waiting=1))

    async def ask() -> list[str]:
        pending = [model.achat("what?", max_new_tokens=2) for _ in range(7)]
        return await asyncio.gather(*pending)

    with ChatModel(engine) as model:
        assert asyncio.run(ask()) == [model.chat("what?", max_new_tokens=2)] * 7


def test_a_stream_that_is_left_frees_its_slot(llava: ChatModel) -> None:
    """Closing an iterator, blocking or not, cancels the answer."""

    async def leave() -> None:
        stream = llava.astream("what?", max_new_tokens=1500)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined] # a generator

    asyncio.run(leave())
    texts = llava.stream("what?", max_new_tokens=1500)
    next(texts)
    texts.close()  # type: ignore[attr-defined] # a generator
    llava.chat("what?", max_new_tokens=1)
    assert llava.engine.stats().running == 0
    assert llava.engine.stats().cancelled == 2


def test_logits_and_embeddings_are_those_of_the_model(
    llava: ChatModel, assistant: LlavaBundle, photos: Path
) -> None:
    """Hidden states give the logits, the last of which is the first token of the greedy answer."""
    question = ("what is it?", photos / "1.png")
    prompt = llava.engine.build_prompt(
        Conversation("c", (Turn("user", (ImageRef("a"), "\nwhat is it?")),)),
        [llava.engine.prepare_image(Image.open(photos / "1.png").convert("RGB"))],
    )
    views, model = prompt.images[0].views, assistant.model
    with torch.inference_mode():
        features = model.patch_features(views)
        embedded = model.embed(torch.tensor([prompt.ids]), views, [prompt.images[0].layout])
        expected = model.language(inputs_embeds=embedded).logits[0]
    logits, states = llava.logits(*question), llava.hidden_states(*question)
    torch.testing.assert_close(logits, expected)
    assert states.shape == (len(prompt.ids), 12)
    assert torch.equal(llava.embed(*question), states[-1])
    torch.testing.assert_close(llava.image_features(question[1]), features)
    start = prompt.starts[0]
    torch.testing.assert_close(llava.image_embeddings(question[1]), embedded[0, start : start + 9])
    [stream] = [llava.engine.submit(caldera.Request(prompt, SamplingParams(max_new_tokens=1)))]
    assert [token for piece in stream for token in piece.tokens] == [int(logits[-1].argmax())]


WRONG: tuple[tuple[tuple[Any, ...], dict[str, Any], str], ...] = (
    (("what?", "no.png"), {}, r"no\.png does not exist"),
    (("what?", "https://x.org/a.png"), {}, "is a web address"),
    (("what?", b"x" * 200_000), {}, "is a text file, not an image"),
    (("what?", None), {}, "an image cannot be None"),
    ((" ",), {}, "the question is empty"),
    ((b"what?" * 50_000,), {}, "a question cannot be b'what.* of type bytes"),
    ((["a", "b"],), {}, "several questions to chat_batch"),
    (("what?",), {"temperature": -1}, "temperature is -1"),
    (("what?",), {"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
    (("what?",), {"max_new_tokens": 2.5}, "max_new_tokens is 2.5; it must be a whole number"),
    (("what?",), {"max_new_tokens": True}, "must be a whole number"),
    (("what?",), {"logprobs": 1}, "logprobs is 1; it must be True or False"),
    (("what?",), {"stop": 5}, "stop is 5; it must be a text or a list"),
    (("what?",), {"max_tokens": 5}, "'max_tokens'; did you mean 'max_new_tokens'?"),
    (("what?",), {"temprature": 5}, "'temprature'; did you mean 'temperature'?"),
    (("what?",), {"heat": 1}, "no setting is called 'heat'; known: ignore_template_stop"),
    (("what?",), {"max_new_tokens": 99_999}, "the model has room for 2048"),
)  # fmt: skip
"""Positional arguments and settings of `chat`, and what the message must hold."""


def test_wrong_types_and_names_are_one_short_line(llava: ChatModel) -> None:
    """The message says what was got and what to give, whatever was passed."""
    for arguments, settings, message in WRONG:
        with pytest.raises(CalderaError, match=message) as caught:
            llava.chat(*arguments, **settings)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 250


def test_batches_and_conversations_reject_the_same(llava: ChatModel) -> None:
    """A single question, images of another number, and questions that are no text are named."""
    with pytest.raises(UsageError, match="chat_batch takes a list of questions, got 'what"):
        llava.chat_batch("what?")
    with pytest.raises(UsageError, match="there are 2 questions and 1 images"):
        llava.chat_batch(["a", "b"], images=["a.jpg"])
    conversation = llava.start_conversation()
    with pytest.raises(UsageError, match="a question must be a text, got 5"):
        next(conversation.ask(5))  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="an image cannot be 5"):
        conversation.add_image(5)  # type: ignore[arg-type]


def test_a_model_is_loaded_as_users_write_it(tmp_path: Path, assistant: LlavaBundle) -> None:
    """Devices and dtypes of torch are taken; other values are one line."""
    save_model_folder(tmp_path / "model", assistant)
    device, dtype = torch.device("cpu"), torch.float32
    with caldera.load(tmp_path, device=device, dtype=dtype) as model:
        assert model.chat("what?", max_new_tokens=2, stop=".", seed=None) is not None
    for arguments, message in (
        ({"folder": 5}, "a model folder cannot be 5 of type int"),
        ({"folder": tmp_path, "dtype": torch.float64}, "no dtype is called 'float64'"),
        ({"folder": tmp_path, "settings": {"slots": 2}}, "settings is .*caldera.EngineConfig"),
        ({"folder": tmp_path, "fetch_image": True}, "fetch_image is True; give a function"),
        ({"folder": tmp_path, "device": "gpu"}, "device 'gpu' cannot be used"),
    ):
        with pytest.raises(UsageError, match=message):
            caldera.load(**arguments)


def test_other_names_of_the_package_are_missing() -> None:
    """An unknown name raises AttributeError, as in any module."""
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        caldera.lode  # noqa: B018 - the access is the test


def test_the_precision_follows_the_stored_one(tmp_path: Path, assistant: LlavaBundle) -> None:
    """A model stored in fp32 runs in fp32, one stored in half precision in the fastest precision of the device."""
    fast = DeviceConfig(torch.device("cpu"), torch.bfloat16)
    save_model_folder(tmp_path / "full", assistant)
    assistant.model.bfloat16()
    save_model_folder(tmp_path / "half", assistant)
    assert with_stored_dtype(tmp_path / "full", fast).dtype == torch.float32
    assert with_stored_dtype(tmp_path / "half", fast).dtype == torch.bfloat16
    assistant.model.half()
    save_model_folder(tmp_path / "fp16", assistant)
    assert with_stored_dtype(tmp_path / "fp16", fast).dtype == torch.bfloat16
    gpu = DeviceConfig(torch.device("cuda"), torch.bfloat16)
    assert with_stored_dtype(tmp_path / "fp16", gpu).dtype == torch.float16
    assert with_stored_dtype(tmp_path / "half", gpu).dtype == torch.bfloat16
    (tmp_path / "half" / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match="has no weights"):
        with_stored_dtype(tmp_path / "half", fast)
    with pytest.raises(ModelFormatError, match="is not a model folder itself"):
        with_stored_dtype(tmp_path, fast)


def test_a_model_stored_in_fp16_runs_in_it(
    tmp_path: Path, assistant: LlavaBundle, photos: Path
) -> None:
    """Its logits are near those in fp32; weights that exceed fp16 are an error, not an infinity."""
    assistant.model.half()
    save_model_folder(tmp_path / "model", assistant)
    logits = []
    for dtype in ("float32", "float16"):
        with caldera.load(tmp_path, dtype=dtype) as model:
            logits.append(model.logits("what is it?", photos / "0.png").float())
            assert model.chat("what is it?", photos / "0.png", max_new_tokens=3)
    assert 1e-6 < float((logits[1] - logits[0]).norm() / logits[0].norm()) < 0.02
    assistant.model.float()
    with torch.no_grad():
        assistant.model.projector.layers[0].weight[0, 0] = 7e4
    save_model_folder(tmp_path / "wide", assistant)
    with pytest.raises(UsageError, match="weights beyond 65504, where float16 ends; use --dtype"):
        caldera.load(tmp_path / "wide", dtype="float16")
