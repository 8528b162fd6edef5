"""What a browser sends becomes each model's own conversation, or an error in words."""

import io
import json
import zipfile

import pytest

from caldera.conversation import ImageRef, from_record
from caldera.images.data_urls import encode_data_url
from caldera.server.api.errors import ApiError
from caldera.server.page.schemas import conversation_of, download, parse_payload
from tests.server.server_process import image

DOG, CAT = (encode_data_url(image(seed), "png") for seed in (1, 2))


def sent(*turns: tuple[str, list[str], list[str]]) -> object:
    """Return what a browser sends for questions, images and answers."""
    names = ("question", "images", "answers")
    return {"id": "7", "turns": [dict(zip(names, turn, strict=True)) for turn in turns]}


def test_each_model_has_its_own_answers() -> None:
    """The same questions, answered differently; the last question is open."""
    told = parse_payload(sent(("who?", [DOG], ["a dog", "a fox"]), ("where?", [], [])))
    one, other = (conversation_of(model, told) for model in (0, 1))
    assert [turn.text for turn in one.conversation.turns] == ["\nwho?", "a dog", "where?"]
    assert [turn.text for turn in other.conversation.turns] == ["\nwho?", "a fox", "where?"]
    assert one.urls == (DOG,)
    assert one.answer == ""


def test_what_was_not_answered_is_left_out_but_its_images_are_shown() -> None:
    """A failed question does not stand twice, and what was shown with it is not lost."""
    told = parse_payload(sent(("who?", [DOG], ["", "a fox"]), ("where?", [CAT], [])))
    one, other = (conversation_of(model, told) for model in (0, 1))
    [turn] = one.conversation.turns
    assert turn.parts == (
        "Picture A: ",
        ImageRef("0"),
        "\n",
        "Picture B: ",
        ImageRef("1"),
        "\n",
        "where?",
    )
    assert one.urls == other.urls == (DOG, CAT)
    assert [len(turn.images) for turn in other.conversation.turns] == [1, 0, 1]


@pytest.mark.parametrize(
    ("told", "where"),
    [
        (None, "the conversation"), ([], "the conversation"), ({"id": "1"}, "turns"),
        ({"id": "1", "turns": []}, "turns"), (sent(("a", ["file:///etc/passwd"], [])), "images.0"),
        ({"id": 1, "turns": [{"question": "a", "images": [], "answers": []}]}, "id"),
        (sent(("a", ["http://host/x.png"], [])), "turns.0.images.0"),
        (sent(("a", ["/etc/passwd"], [])), "images.0"), (sent(("a", [], ["b", "c", "d"])), "turns.0.answers"),
        (sent(("a" * ((1 << 20) + 1), [], [])), "turns.0.question"),
    ],
)  # fmt: skip
def test_what_the_page_would_not_send_is_refused(told: object, where: str) -> None:
    """By the field; above all, an image is never a path or an address."""
    with pytest.raises(ApiError, match=where) as refusal:
        parse_payload(told)
    assert refusal.value.status == 400
    assert "passwd" not in refusal.value.message


def test_an_empty_question_is_refused() -> None:
    """It has a code of its own, by which the page says it in Chinese."""
    with pytest.raises(ApiError, match="empty") as refusal:
        conversation_of(0, parse_payload(sent((" \n", [DOG], []))))
    assert refusal.value.code == "empty_question"


def test_the_download_holds_a_record_for_each_model() -> None:
    """With the images' files as they were; a model that has not answered has none."""
    told = parse_payload(
        sent(("who?", [DOG], ["a dog", "a fox"]), ("where?", [CAT], ["there", ""]))
    )
    archive = zipfile.ZipFile(io.BytesIO(download(told, 2)))
    records = json.loads(archive.read("conversation.json"))
    assert [from_record(record, "here").images for record in records] == [
        ("images/1.png", "images/2.png")
    ]
    assert archive.read("images/2.png") == image(2)


def test_nothing_answered_is_nothing_to_download() -> None:
    """So the error says."""
    with pytest.raises(ApiError, match="nothing was answered"):
        download(parse_payload(sent(("who?", [DOG], []))), 1)


def test_a_mark_in_words_cannot_be_downloaded() -> None:
    """LLaVA's form would read it as an image; the message says what to do."""
    with pytest.raises(ApiError, match="reword it"):
        download(parse_payload(sent(("<image> who?", [DOG], ["a dog"]))), 1)
