"""Messages of OpenAI's API and of transformers are the conversation that they mean, or one short line."""

from typing import Any

import pytest

from caldera.chat.messages import read_messages
from caldera.chat.session import user_turn
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import UsageError

Messages = list[dict[str, Any]]

TEXT = {"type": "text", "text": "What is it?"}

IMAGE_PARTS: dict[str, dict[str, Any]] = {
    "OpenAI": {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}},
    "OpenAI, short": {"type": "image_url", "image_url": "a.jpg"},
    "OpenAI, responses": {"type": "input_image", "image_url": "a.jpg"},
    "transformers, path": {"type": "image", "path": "a.jpg"},
    "transformers, url": {"type": "image", "url": "a.jpg"},
    "transformers, image": {"type": "image", "image": "a.jpg"},
    "separate image": {"type": "image"},
}


@pytest.mark.parametrize("form", IMAGE_PARTS)
def test_every_form_of_an_image_is_read(form: str) -> None:
    """The image is in the part, or the next of the separate ones."""
    part = IMAGE_PARTS[form]
    separate = ["a.jpg"] if part == {"type": "image"} else []
    conversation, images = read_messages([{"role": "user", "content": [part, TEXT]}], separate)
    assert images == ["a.jpg"]
    assert conversation.turns == (Turn("user", (ImageRef("0"), "What is it?")),)


@pytest.mark.parametrize(
    ("labeled", "parts"),
    [
        (True, ("Picture A: ", ImageRef("0"), "\nPicture B: ", ImageRef("1"), "\nWhat is it?")),
        (False, (ImageRef("0"), ImageRef("1"), "\nWhat is it?")),
    ],
)
def test_several_images_have_letters_where_the_models_data_had_them(
    labeled: bool, parts: tuple[str | ImageRef, ...]
) -> None:
    """LLaVA's own code shows images alone; a line end separates them from the text, whatever the way they came."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, TEXT]}
    conversation, _ = read_messages([message], ["a", "b"], labeled=labeled)
    [turn] = conversation.turns
    assert joined(turn) == parts
    same_turn = user_turn("What is it?", [ImageRef("0"), ImageRef("1")], labeled=labeled)
    assert joined(same_turn) == parts


def joined(turn: Turn) -> tuple[str | ImageRef, ...]:
    """Return the parts of a turn with adjacent texts joined."""
    parts: list[str | ImageRef] = []
    for part in turn.parts:
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def test_turns_are_joined() -> None:
    """A system text comes before the question, messages of one role are one turn, an empty answer is a turn."""
    conversation, images = read_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, TEXT]},
            {"role": "assistant", "content": "A bus."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": None},
            {"role": "developer", "content": "One word."},
            {"role": "user", "content": ["And", {"type": "text", "text": "here?"}, {"type": "image"}]},
        ],
        ["a", "b"],
    )  # fmt: skip
    assert images == ["a", "b"]
    assert conversation == Conversation(
        "chat",
        (
            Turn("user", (ImageRef("0"), "Be brief.", "\n", "What is it?")),
            Turn("assistant", ("A bus.",)),
            Turn("user", ("Sure?",)),
            Turn("assistant", ()),
            Turn("user", ("One word.", "\n", "And", "\n", "here?", ImageRef("1"))),
        ),
        allow_empty_turns=True,
    )


def test_several_images_are_labeled() -> None:
    """As in the training data; separate images are put before a single question."""
    conversation, images = read_messages([{"role": "user", "content": "Which?"}], ["a", "b"])
    assert images == ["a", "b"]
    [turn] = conversation.turns
    assert turn.parts[:2] == ("Picture A: ", ImageRef("0"))
    assert turn.parts[-1] == "Which?"


@pytest.mark.parametrize(
    ("messages", "images", "message"),
    [
        ([], [], "the last message must be a question"),
        (["hi"], [], "message 1 is 'hi'; write"),
        ([{"role": "user"}], [], "message 1 is .*; write"),
        ([{"from": "human", "value": "a"}], [], "message 1 is .*; write"),
        ([{"role": "user", "contents": "a"}], [], "message 1 is .*; write"),
        ([{"role": "users", "content": "a"}], [], "has the role 'users'; did you mean 'user'?"),
        ([{"role": "tool", "content": "a"}], [], "has the role 'tool'; known: assistant"),
        ([{"role": "user", "content": 5}], [], "has the content 5"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], [], "has the text 5"),
        ([{"role": "user", "content": [{"type": "audio"}]}], [], "its type must be one of text"),
        ([{"role": "user", "content": [{"type": "image"}, TEXT]}], [], "there is no image for it"),
        ([{"role": "user", "content": [{"type": "image"}, TEXT]}], ["a", "b"], "1 of 2 images have no part"),
        ([{"role": "assistant", "content": "a"}], [], "the last message"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], [], "the last message"),
        ([{"role": "user", "content": " "}], [], "message 1, the user's, is empty"),
        ([{"role": "user", "content": "a\ud800"}], [], "half a character"),
    ],
)  # fmt: skip
def test_other_messages_are_one_short_line(
    messages: Messages, images: list[str], message: str
) -> None:
    """The message names the number of the message and what to write."""
    with pytest.raises(UsageError, match=message) as caught:
        read_messages(messages, images)
    assert "\n" not in str(caught.value)
