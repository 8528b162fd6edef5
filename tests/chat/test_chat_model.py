"""Tests of the Python API: complete, streamed and batched answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import caldera
from caldera.chat.chat_model import ChatModel, with_stored_dtype
from caldera.devices import DeviceConfig
from caldera.errors import ImageError, ModelFormatError, UsageError
from caldera.formats.model_folder import save_model_folder
from caldera.inference.engine import EngineConfig
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


def test_invalid_questions_are_rejected(llava: ChatModel, photos: Path) -> None:
    """A missing image, a web address, a setting out of range, an unknown setting, and an empty question."""
    with pytest.raises(ImageError, match=r"no\.png does not exist"):
        llava.chat("what?", photos / "no.png")
    with pytest.raises(ImageError, match="is a web address"):
        llava.chat("what?", "https://x.org/a.png")
    with pytest.raises(UsageError, match="temperature is -1"):
        llava.chat("what?", temperature=-1)
    with pytest.raises(TypeError, match="heat"):
        llava.chat("what?", heat=1)
    with pytest.raises(UsageError, match="the question is empty"):
        llava.chat(" ")


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
    (tmp_path / "half" / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"has no model\.safetensors"):
        with_stored_dtype(tmp_path / "half", fast)
    with pytest.raises(ModelFormatError, match="not a caldera model folder"):
        with_stored_dtype(tmp_path, fast)
