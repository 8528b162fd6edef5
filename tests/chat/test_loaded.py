"""Three lines of Python get an answer, whole, streamed or many; all the same as the engine's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import caldera
from caldera.chat.chat_model import ChatModel
from caldera.errors import ImageError, UsageError
from caldera.formats.model_folder import save_model_folder
from caldera.inference.engine import EngineConfig
from caldera.model.assistant import LlavaBundle


@pytest.fixture
def llava(assistant: LlavaBundle, tmp_path: Path) -> Iterator[ChatModel]:
    """The random assistant, saved and loaded by the public name."""
    save_model_folder(tmp_path / "model", assistant)
    with caldera.load(tmp_path / "model", settings=EngineConfig(slots=2)) as loaded:
        yield loaded


def test_a_question_is_answered_whole_and_in_pieces(llava: ChatModel, photos: Path) -> None:
    """By file or opened image, with the settings of Sampling by name."""
    whole = llava.chat("what is it?", photos / "1.png", max_new_tokens=12)
    pieces = list(llava.stream("what is it?", str(photos / "1.png"), max_new_tokens=12))
    with Image.open(photos / "1.png") as opened:
        assert llava.chat("what is it?", opened, max_new_tokens=12) == whole
    assert "".join(pieces) == whole != ""
    assert len(pieces) > 1
    assert llava.chat("what is it?", max_new_tokens=12) != whole


def test_many_questions_get_their_own_answers_in_order(llava: ChatModel, photos: Path) -> None:
    """More than fit side by side, with one image, two and none; drawn ones differ by question."""
    asked: list[tuple[str | Path, ...]] = [
        ("what is it?", photos / "1.png"),
        ("what are they?", photos / "2.png", photos / "3.png"),
        ("what?",),
        ("what is it?", photos / "4.png"),
        ("what is it?", photos / "1.png"),
    ]
    answers = llava.chat_batch(asked, max_new_tokens=9)
    assert answers == [llava.chat(str(words), *shown, max_new_tokens=9) for words, *shown in asked]
    assert answers[0] == answers[4]
    drawn = llava.chat_batch([("what?",)] * 3, max_new_tokens=9, temperature=2.0)
    assert len(set(drawn)) == 3


def test_a_talk_remembers(llava: ChatModel, photos: Path) -> None:
    """The second answer knows the first turn, and does not read it again."""
    talk = llava.start_conversation(photos / "1.png", max_new_tokens=9)
    "".join(talk.ask("what is it?"))
    before = llava.engine.stats().cached_tokens
    second = "".join(talk.ask("and now?"))
    assert llava.engine.stats().cached_tokens - before > 9  # the image, at least
    assert second == talk.conversation.turns[3].text
    assert len(talk.conversation.turns) == 4


def test_what_cannot_be_asked_is_refused(llava: ChatModel, photos: Path) -> None:
    """A missing image, a web address, a setting out of range, an unknown one, nothing asked."""
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
    """Only what is documented is there."""
    assert caldera.__all__ == ["__version__", "load"]
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        caldera.lode  # noqa: B018 - looking is the test
