"""Tests of payloads: the conversation of each model, downloads, and errors."""

import io
import json
import zipfile

import pytest

from caldera.conversation import ImageRef, from_record
from caldera.images.data_urls import encode_data_url
from caldera.server.api.errors import ApiError
from caldera.server.page.schemas import conversation_of, download, parse_payload
from tests.server.server_process import make_image

DOG, CAT = (encode_data_url(make_image(seed), "png") for seed in (1, 2))


def payload(*turns: tuple[str, list[str], list[str]]) -> object:
    """Return the payload of questions, images and answers."""
    names = ("question", "images", "answers")
    return {"id": "7", "turns": [dict(zip(names, turn, strict=True)) for turn in turns]}


def test_each_model_has_its_own_answers() -> None:
    """The models answer the same questions differently; the last question has no answer yet."""
    conversation = parse_payload(payload(("who?", [DOG], ["a dog", "a fox"]), ("where?", [], [])))
    first, second = (conversation_of(model, conversation) for model in (0, 1))
    assert [turn.text for turn in first.conversation.turns] == ["\nwho?", "a dog", "where?"]
    assert [turn.text for turn in second.conversation.turns] == ["\nwho?", "a fox", "where?"]
    assert first.urls == (DOG,)
    assert first.answer == ""


def test_an_unanswered_question_is_omitted_but_not_its_images() -> None:
    """The images of a question without an answer are put before the next question."""
    conversation = parse_payload(payload(("who?", [DOG], ["", "a fox"]), ("where?", [CAT], [])))
    first, second = (conversation_of(model, conversation) for model in (0, 1))
    [turn] = first.conversation.turns
    assert turn.parts == (
        "Picture A: ",
        ImageRef("0"),
        "\n",
        "Picture B: ",
        ImageRef("1"),
        "\n",
        "where?",
    )
    assert first.urls == second.urls == (DOG, CAT)
    assert [len(turn.images) for turn in second.conversation.turns] == [1, 0, 1]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (None, "the conversation"), ([], "the conversation"), ({"id": "1"}, "turns"),
        ({"id": "1", "turns": []}, "turns"), (payload(("a", ["file:///etc/passwd"], [])), "images.0"),
        ({"id": 1, "turns": [{"question": "a", "images": [], "answers": []}]}, "id"),
        (payload(("a", ["http://host/x.png"], [])), "turns.0.images.0"),
        (payload(("a", ["/etc/passwd"], [])), "images.0"), (payload(("a", [], ["b", "c", "d"])), "turns.0.answers"),
        (payload(("a" * ((1 << 20) + 1), [], [])), "turns.0.question"),
    ],
)  # fmt: skip
def test_an_invalid_payload_is_rejected_by_field(body: object, field: str) -> None:
    """Above all, an image is never a path or an address."""
    with pytest.raises(ApiError, match=field) as caught:
        parse_payload(body)
    assert caught.value.status == 400
    assert "passwd" not in caught.value.message


def test_an_empty_question_is_rejected() -> None:
    """It has its own code, by which the page translates the message."""
    with pytest.raises(ApiError, match="empty") as caught:
        conversation_of(0, parse_payload(payload((" \n", [DOG], []))))
    assert caught.value.code == "empty_question"


def test_the_download_holds_a_record_for_each_model() -> None:
    """It contains the original image files; a model without an answer has no record."""
    conversation = parse_payload(
        payload(("who?", [DOG], ["a dog", "a fox"]), ("where?", [CAT], ["there", ""]))
    )
    archive = zipfile.ZipFile(io.BytesIO(download(conversation, 2)))
    records = json.loads(archive.read("conversation.json"))
    assert [from_record(record, "here").images for record in records] == [
        ("images/1.png", "images/2.png")
    ]
    assert archive.read("images/2.png") == make_image(2)


def test_a_conversation_without_answers_cannot_be_downloaded() -> None:
    """The error states it."""
    with pytest.raises(ApiError, match="there is no answer"):
        download(parse_payload(payload(("who?", [DOG], []))), 1)


def test_a_placeholder_in_text_cannot_be_downloaded() -> None:
    """LLaVA's format would read it as an image; the message asks to reword it."""
    with pytest.raises(ApiError, match="reword it"):
        download(parse_payload(payload(("<image> who?", [DOG], ["a dog"]))), 1)
