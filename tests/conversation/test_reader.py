"""Tests of conversations in LLaVA's JSON, and of the one-line errors of invalid records."""

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.conversation import (
    IMAGE_PLACEHOLDER,
    Conversation,
    ImageRef,
    Turn,
    from_record,
    json_schema,
    read_conversations,
    to_record,
    write_conversations,
)
from caldera.errors import ConversationError, InputError
from caldera.files.skipped_items import SkippedItems

DOCS = Path(__file__).parents[2] / "docs"


def record(**changes: object) -> dict[str, object]:
    """Return a valid record with some fields changed."""
    valid = {
        "id": "7",
        "image": "dog.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "A dog."},
        ],
    }
    return {**valid, **changes}


def turns(*values: str) -> list[dict[str, str]]:
    """Return alternating turns in LLaVA's JSON."""
    return [
        {"from": "gpt" if number % 2 else "human", "value": value}
        for number, value in enumerate(values)
    ]


def test_placeholders_are_replaced_by_the_images_in_order() -> None:
    """Wherever they are in the conversation, they take the record's images one after another."""
    raw = record(
        image=["a.jpg", "b.jpg", "c.jpg"],
        conversations=turns("<image> or <image>?", "The first.", "And\n<image>", "No."),
    )

    conversation = from_record(raw, "x")

    assert conversation.images == ("a.jpg", "b.jpg", "c.jpg")
    assert conversation.turns[0].parts == (ImageRef("a.jpg"), " or ", ImageRef("b.jpg"), "?")
    assert conversation.turns[2].parts == ("And\n", ImageRef("c.jpg"))
    assert to_record(conversation) == raw


texts = st.text(min_size=1).filter(lambda text: text.strip() and IMAGE_PLACEHOLDER not in text)
image_names = st.text("abc/.", min_size=1).map(ImageRef)


@given(
    exchanges=st.lists(
        st.tuples(st.lists(image_names, max_size=3), texts, texts), min_size=1, max_size=3
    )
)
def test_a_written_conversation_is_read_back(
    exchanges: list[tuple[list[ImageRef], str, str]],
) -> None:
    """Any images and any text without the placeholder survive the conversion to JSON and back."""
    conversation = Conversation(
        "1",
        tuple(
            turn
            for images, question, answer in exchanges
            for turn in (Turn("user", (*images, question)), Turn("assistant", (answer,)))
        ),
    )

    raw = json.loads(json.dumps(to_record(conversation)))

    assert from_record(raw, "x") == conversation
    jsonschema.validate([raw], json_schema())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, r"f:3: record '7' has 1 <image> placeholder\(s\) but 0 image"),
        ({"image": ["a", "b"]}, r"1 <image> placeholder\(s\) but 2 image"),
        (
            {"imagee": "x"},
            r"f:3: unknown field 'imagee'; did you mean 'image'\? \(or pass --ignore",
        ),
        ({"id": 1.5}, r"f:3: field 'id'"),
        ({"conversations": []}, "needs at least a human and a gpt turn"),
        ({"conversations": turns("<image>a", "b", "c")}, "the last turn is not the assistant's"),
        ({"conversations": turns("<image>a", " ")}, "turn 2 is empty"),
        (
            {"conversations": turns("a", "<image>")},
            "has the mark '<image>' of its image in an answer",
        ),
        ({"conversations": [*turns("<image>")] * 2, "image": ["a", "b"]}, "turn 2 is the user's"),
        ({"conversations": [{"from": "x", "value": "x"}] * 2}, r"'conversations\.0\.from': turn 1"),
        ({"conversations": [{"from": "human", "value": "x"}] * 2}, "turn 2 is the user's"),
        ({"conversations": {"a": 1}}, "should be a list of turns, got {'a': 1}"),
        ({"conversations": [{"from": "human"}] * 2}, r"'conversations\.0\.value' is missing"),
    ],
)
def test_an_invalid_record_is_reported_with_location_field_and_remedy(
    changes: dict[str, object], message: str
) -> None:
    """One line names file and line, the field, and what to do."""
    with pytest.raises(ConversationError, match=message) as caught:
        from_record(record(**changes), "f:3")
    assert "\n" not in str(caught.value)


def test_additional_fields_can_be_ignored() -> None:
    """Real data sets have other fields, which the user may name."""
    assert from_record(record(model=""), "x", frozenset({"model"})) == from_record(record(), "x")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.json", "is empty"),
        (json.dumps(record()) + '\n{"id": ', "a.jsonl", r"a\.jsonl:2 is broken JSON"),
        ("[]", "a.json", "empty list"),
        ("{}", "a.json", "field 'conversations' is missing"),
        ('[{"id": 1,}]', "a.json", "broken JSON at line 1 column"),
        ("[" * 100_000, "a.json", "nested too deeply"),
    ],
)
def test_a_broken_file_is_an_input_error(
    tmp_path: Path, content: str, name: str, message: str
) -> None:
    """The message says what is wrong with the file, and where."""
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_conversations(file)


def test_a_missing_file_or_one_that_is_not_utf8_is_an_input_error(tmp_path: Path) -> None:
    """UTF-16, and a wrong path."""
    (tmp_path / "a.json").write_bytes("[]".encode("utf-16"))
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_conversations(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot read"):
        read_conversations(tmp_path / "b.json")


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_both_file_formats_are_read_back(tmp_path: Path, name: str) -> None:
    """A JSON list, or one record per line."""
    conversations = [from_record(record(id=str(number)), "x") for number in range(3)]

    write_conversations(tmp_path / name, conversations)

    assert read_conversations(tmp_path / name) == conversations


def test_text_that_contains_the_placeholder_cannot_be_written() -> None:
    """LLaVA's format would read it as an image, so it is an error."""
    conversation = Conversation(
        "1", (Turn("user", ("what is <image>?",)), Turn("assistant", ("A placeholder.",)))
    )
    with pytest.raises(ConversationError, match="would read as an image"):
        to_record(conversation)


def test_the_published_schema_is_up_to_date() -> None:
    """docs/conversation.schema.json equals the schema that the code generates."""
    published = json.loads((DOCS / "conversation.schema.json").read_text())
    assert published == json_schema()


def test_records_of_lcs558k_are_read(third_party: Path) -> None:
    """All 500 records of LCS-558K have one image and two turns."""
    conversations = read_conversations(third_party / "lcs558k" / "blip_laion_cc_sbu_500.json")
    assert len(conversations) == 500
    assert all(len(item.images) == 1 and len(item.turns) == 2 for item in conversations)


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\u000b"])
def test_other_line_separators_do_not_end_a_record(tmp_path: Path, character: str) -> None:
    """A line of a .jsonl file ends only at a newline."""
    conversation = Conversation("a", (Turn("user", (f"x{character}y",)), Turn("assistant", ("z",))))
    write_conversations(tmp_path / "data.jsonl", [conversation])
    assert read_conversations(tmp_path / "data.jsonl") == [conversation]


def test_a_lone_surrogate_is_a_conversation_error(tmp_path: Path) -> None:
    """JSON can contain a lone surrogate, which cannot be written as UTF-8."""
    (tmp_path / "data.json").write_text(
        '[{"id": "a", "conversations": [{"from": "human", "value": "\\ud800"}, '
        '{"from": "gpt", "value": "b"}]}]'
    )
    with pytest.raises(ConversationError, match="half a character"):
        read_conversations(tmp_path / "data.json")


def test_a_number_of_thousands_of_digits_is_an_input_error(tmp_path: Path) -> None:
    """Python's own limit is reported as an error of the file."""
    (tmp_path / "data.json").write_text(f'[{{"id": {"9" * 5000}, "conversations": []}}]')
    with pytest.raises(InputError, match="a number too long"):
        read_conversations(tmp_path / "data.json")


def test_a_broken_line_is_an_invalid_record(tmp_path: Path) -> None:
    """A cut line, or one that is not UTF-8, is counted as the others are; the records around it are read."""
    lines = [json.dumps(record(id=str(number))).encode() for number in range(4)]
    lines[1] = lines[1][:30]
    lines[2] = lines[2].replace(b"dog", b"\xff")
    file = tmp_path / "data.json"
    file.write_bytes(b"\n".join(lines))

    skipped = SkippedItems(0.5)
    read = read_conversations(file, skipped=skipped)

    assert [item.id for item in read] == ["0", "3"]
    assert [item.location for item in skipped.items] == [f"{file}:2", f"{file}:3"]
    assert "is broken JSON at column" in skipped.items[0].reason
    with pytest.raises(InputError, match=r"data\.json:2 is broken JSON"):
        read_conversations(file)


def test_changes_are_logged_where_nobody_collects_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`caldera.read_conversations(file)` reports each kind of change with its count."""
    rows = [record(conversations=turns("What?", "A dog.")) for _ in range(3)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    assert [item.images for item in read_conversations(tmp_path / "data.json")] == [
        ("dog.jpg",)
    ] * 3
    assert "changed 3: 3 x images without a mark put before the first question" in caplog.text


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    """The error has the command that writes one from annotations."""
    with pytest.raises(
        InputError, match=r"is a folder; .*: caldera data generate coco .* --out NEW"
    ):
        read_conversations(tmp_path)


def test_a_table_of_captions_names_the_command_that_reads_it(tmp_path: Path) -> None:
    """With the path, to be copied."""
    with pytest.raises(InputError, match=r"caldera data import captions .*a\.csv --out NEW\.json"):
        read_conversations(tmp_path / "a.csv")
