"""LLaVA's JSON in and out, and what is wrong with a record said in one line."""

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

DOCS = Path(__file__).parents[1] / "docs"


def record(**changes: object) -> dict[str, object]:
    """Return a good record with some fields changed."""
    good = {
        "id": "7",
        "image": "dog.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "A dog."},
        ],
    }
    return {**good, **changes}


def turns(*values: str) -> list[dict[str, str]]:
    """Return wire turns that alternate."""
    return [
        {"from": "gpt" if number % 2 else "human", "value": value}
        for number, value in enumerate(values)
    ]


def test_a_record_becomes_turns_with_images_in_their_place() -> None:
    """Marks take the record's images in order, wherever in the conversation they stand."""
    wire = record(
        image=["a.jpg", "b.jpg", "c.jpg"],
        conversations=turns("<image> or <image>?", "The first.", "And\n<image>", "No."),
    )

    read = from_record(wire, "x")

    assert read.images == ("a.jpg", "b.jpg", "c.jpg")
    assert read.turns[0].parts == (ImageRef("a.jpg"), " or ", ImageRef("b.jpg"), "?")
    assert read.turns[2].parts == ("And\n", ImageRef("c.jpg"))
    assert to_record(read) == wire


texts = st.text(min_size=1).filter(lambda text: text.strip() and IMAGE_PLACEHOLDER not in text)
image_names = st.text("abc/.", min_size=1).map(ImageRef)


@given(
    asked=st.lists(
        st.tuples(st.lists(image_names, max_size=3), texts, texts), min_size=1, max_size=3
    )
)
def test_writing_and_reading_gives_the_same_conversation(
    asked: list[tuple[list[ImageRef], str, str]],
) -> None:
    """Any images and any text but the mark survive the way through JSON."""
    said = [
        turn
        for images, question, answer in asked
        for turn in (Turn("user", (*images, question)), Turn("assistant", (answer,)))
    ]
    conversation = Conversation("1", tuple(said))

    wire = json.loads(json.dumps(to_record(conversation)))

    assert from_record(wire, "x") == conversation
    jsonschema.validate([wire], json_schema())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, r"f:3: record '7' has 1 <image> mark\(s\) but 0 image"),
        ({"image": ["a", "b"]}, r"1 <image> mark\(s\) but 2 image"),
        (
            {"imagee": "x"},
            r"f:3: unknown field 'imagee'; did you mean 'image'\? \(or pass --ignore",
        ),
        ({"id": 1.5}, r"f:3: field 'id'"),
        ({"conversations": []}, "needs at least a human and a gpt turn"),
        ({"conversations": turns("<image>a", "b", "c")}, "the last turn is not the assistant's"),
        ({"conversations": turns("<image>a", " ")}, "turn 2 is empty"),
        ({"conversations": turns("a", "<image>")}, "turn 2, the assistant's, holds <image>"),
        ({"conversations": [*turns("<image>")] * 2, "image": ["a", "b"]}, "turn 2 is the user's"),
        ({"conversations": [{"from": "user", "value": "x"}] * 2}, r"conversations\.0\.from"),
        ({"conversations": [{"from": "human"}] * 2}, r"'conversations\.0\.value' is missing"),
    ],
)
def test_a_bad_record_is_refused_with_place_field_and_remedy(
    changes: dict[str, object], message: str
) -> None:
    """One line names the file and line, the field, and what to do."""
    with pytest.raises(ConversationError, match=message) as caught:
        from_record(record(**changes), "f:3")
    assert "\n" not in str(caught.value)


def test_surplus_fields_can_be_passed_over() -> None:
    """Real mixes carry fields of their own, which the user may name."""
    assert from_record(record(model=""), "x", frozenset({"model"})) == from_record(record(), "x")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.json", "is empty"),
        (json.dumps(record()) + '\n{"id": ', "a.jsonl", r"a\.jsonl:2 is broken JSON"),
        ("[]", "a.json", "empty list"),
        ("{}", "a.json", "should be a list of records"),
        ('[{"id": 1,}]', "a.json", "broken JSON at line 1 column"),
        ("[" * 100_000, "a.json", "nested too deeply"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: str, name: str, message: str) -> None:
    """What is wrong with the file as a whole is said, with the place."""
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_conversations(file)


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path: Path) -> None:
    """UTF-16 and a wrong path get a line each."""
    (tmp_path / "a.json").write_bytes("[]".encode("utf-16"))
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_conversations(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot read"):
        read_conversations(tmp_path / "b.json")


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_files_of_both_kinds_come_back(tmp_path: Path, name: str) -> None:
    """A list in one file, or a record a line."""
    conversations = [from_record(record(id=str(number)), "x") for number in range(3)]

    write_conversations(tmp_path / name, conversations)

    assert read_conversations(tmp_path / name) == conversations


def test_text_that_says_the_mark_cannot_be_written() -> None:
    """LLaVA's form could not tell it from an image, so it is refused instead of turned into one."""
    conversation = Conversation(
        "1", (Turn("user", ("what is <image>?",)), Turn("assistant", ("A mark.",)))
    )
    with pytest.raises(ConversationError, match="would read an image"):
        to_record(conversation)


def test_the_published_schema_is_the_codes_own() -> None:
    """docs/conversation.schema.json is what the code generates."""
    published = json.loads((DOCS / "conversation.schema.json").read_text())
    assert published == json_schema()


def test_real_stage_1_records_are_read(third_party: Path) -> None:
    """All 500 rows of LCS-558K hold one image and two turns."""
    rows = read_conversations(third_party / "lcs558k" / "blip_laion_cc_sbu_500.json")
    assert len(rows) == 500
    assert all(len(row.images) == 1 and len(row.turns) == 2 for row in rows)


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\u000b"])
def test_line_ends_inside_a_text_do_not_end_a_record(tmp_path: Path, character: str) -> None:
    """A line of a .jsonl file ends at a newline and nowhere else."""
    told = Conversation("a", (Turn("user", (f"x{character}y",)), Turn("assistant", ("z",))))
    write_conversations(tmp_path / "data.jsonl", [told])
    assert read_conversations(tmp_path / "data.jsonl") == [told]


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    """JSON can spell a lone surrogate, which no file could hold again."""
    (tmp_path / "data.json").write_text(
        '[{"id": "a", "conversations": [{"from": "human", "value": "\\ud800"}, '
        '{"from": "gpt", "value": "b"}]}]'
    )
    with pytest.raises(ConversationError, match="half a character"):
        read_conversations(tmp_path / "data.json")


def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    """It is an error of the file, not of this program."""
    (tmp_path / "data.json").write_text(f'[{{"id": {"9" * 5000}, "conversations": []}}]')
    with pytest.raises(InputError, match="a number too long"):
        read_conversations(tmp_path / "data.json")
