"""Records in the forms of other projects give the same conversation as LLaVA's JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from caldera.conversation import Conversation, from_record, read_conversations, to_record
from caldera.conversation.reader import ConversationParser, ReadOptions, iter_conversations
from caldera.errors import ConversationError
from caldera.files.skipped_items import SkippedItems

LLAVA: dict[str, Any] = {
    "id": "f-0",
    "image": "a.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A bear."},
    ],
}
ANSWER = {"role": "assistant", "content": "A bear."}
TEXT = {"type": "text", "text": "What is it?"}
SYSTEM = "Be brief."
TURN = {"role": "user", "content": "a"}
IMAGE = [{"type": "image", "image": "a.jpg"}]


def messages(*parts: object, **fields: object) -> dict[str, object]:
    """Return a record of OpenAI's messages with parts as the question."""
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER], **fields}


FORMS: dict[str, dict[str, Any]] = {
    "LLaVA": LLAVA,
    "LLaVA, a list of images": {**LLAVA, "image": ["a.jpg"]},
    "LLaVA, both fields": {**LLAVA, "images": ["a.jpg"]},
    "LLaVA, empty fields": {**LLAVA, "video": None, "model": "", "images": []},
    "image_path": {"image_path": "a.jpg", "conversations": LLAVA["conversations"]},
    "MMMU": {"question": "<image 1>\nWhat is it?", "answer": "A bear.", "image_1": "a.jpg", "image_2": None},
    "ShareGPT": {
        "conversations": [{"role": "USER", "content": "<image>\nWhat is it?"}, ANSWER],
        "images": ["a.jpg"],
    },
    "LLaMA-Factory": {
        "messages": [{"role": "user", "content": "<image>\nWhat is it?"}, ANSWER],
        "images": ["a.jpg"], "videos": [], "system": "",
    },
    "no mark": {"messages": [{"role": "user", "content": "What is it?"}, ANSWER], "images": "a.jpg"},
    "system": {
        "messages": [
            {"role": "system", "content": SYSTEM}, {"role": "user", "content": "<image>\nWhat is it?"}, ANSWER,
        ],
        "images": ["a.jpg"],
    },
    "transformers": messages({"type": "image", "image": "a.jpg"}, TEXT),
    "transformers, url": messages({"type": "image", "url": "a.jpg"}, TEXT),
    "transformers, images": messages({"type": "image"}, TEXT, images=["a.jpg"]),
    "datasets, padded": messages(
        {"type": "image", "index": 0, "text": None}, {**TEXT, "index": None}, images=[{"path": "a.jpg", "bytes": None}]
    ),
    "OpenAI": messages({"type": "image_url", "image_url": {"url": "a.jpg", "detail": "high"}}, TEXT),
    "OpenAI, a string": messages({"type": "image_url", "image_url": "file:a.jpg"}, TEXT),
    "OpenAI responses": messages(
        {"type": "input_image", "image_url": "a.jpg"}, {"type": "input_text", "text": "What is it?"}
    ),
    "Qwen-VL list": messages({"image": "a.jpg"}, {"text": "What is it?"}),
    "strings as parts": messages({"type": "image", "path": "a.jpg"}, "What is it?"),
    "Ollama": {"messages": [{"role": "user", "content": "What is it?", "images": ["a.jpg"]}, ANSWER]},
    "ms-swift": {"query": "<image>\nWhat is it?", "response": "A bear.", "images": ["a.jpg"], "system": SYSTEM},
    "alpaca": {"instruction": "<image>", "input": "What is it?", "output": "A bear.", "image": "a.jpg"},
    "TRL": {
        "prompt": [{"role": "user", "content": "<image>\nWhat is it?"}], "completion": [ANSWER], "images": ["a.jpg"],
    },
    "prompt and response": {"prompt": "<image>\nWhat is it?", "response": "A bear.", "image": "a.jpg"},
    "question and answer": {"question": "What is it?", "answer": "A bear.", "image": "a.jpg"},
    "The Cauldron": {"texts": [{"user": "What is it?", "assistant": "A bear.", "source": "x"}], "images": ["a.jpg"]},
    "pairs": {"conversation": [{"human": "<image>\nWhat is it?", "assistant": "A bear."}], "image": "a.jpg"},
    "columns": {
        "conversations": {"from": ["human", "gpt"], "value": ["<image>\nWhat is it?", "A bear."]}, "image": "a.jpg",
    },
}  # fmt: skip
"""The same dialogue in each form."""

CHANGED = ("MMMU", "no mark", "system", "Ollama", "ms-swift", "question and answer", "The Cauldron")
"""Forms of which something is noted."""


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read(form: str) -> None:
    """Text, image and order are those of LLaVA's form."""
    parser = ConversationParser(lambda image, _: image.path)
    notes: list[str] = []
    conversation = parser.parse(FORMS[form], "f[0]", notes, "f-0")
    assert to_record(conversation) == LLAVA
    assert len(notes) == (form in CHANGED)


WRAPPERS = {
    "list": lambda rows: json.dumps(rows),
    "pretty list": lambda rows: json.dumps(rows, indent=2),
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
    "data": lambda rows: json.dumps({"version": 1, "data": rows}, indent=1),
    "data on a line": lambda rows: json.dumps({"data": rows}),
    "by id": lambda rows: json.dumps({row["id"]: row for row in rows}),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSONL", ".txt"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_each_container_is_read_under_any_suffix(tmp_path: Path, wrapper: str, suffix: str) -> None:
    """A list, lines, a list in an object, and an object by id."""
    rows = [{**LLAVA, "id": name} for name in "ab"]
    file = tmp_path / f"data{suffix}"
    file.write_text(WRAPPERS[wrapper](rows))
    assert [to_record(item) for item in read_conversations(file)] == rows


def test_one_object_is_one_record(tmp_path: Path) -> None:
    """On a line or over several; its turns are no list of records."""
    for indent in (None, 2):
        (tmp_path / "data.json").write_text(json.dumps(LLAVA, indent=indent))
        assert [to_record(item) for item in read_conversations(tmp_path / "data.json")] == [LLAVA]


def test_history_precedes_the_question() -> None:
    """As in ms-swift's and alpaca's files."""
    record = {"history": [["a", "b"], ["c", "d"]], "instruction": "e", "output": "f"}
    assert [turn.text for turn in from_record(record, "x").turns] == list("abcdef")


@pytest.mark.parametrize("instruction", [{}, {"instruction": ""}, {"instruction": None}])
def test_an_input_without_an_instruction_is_the_question(instruction: dict[str, Any]) -> None:
    """As in alpaca's files."""
    record = {**instruction, "input": "a", "output": "b"}
    assert [turn.text for turn in from_record(record, "x").turns] == ["a", "b"]


def test_numbers_are_text(tmp_path: Path) -> None:
    """Whole numbers, fractions and truth values, counted once a record; NaN is no answer."""
    rows = [{"question": 1, "answer": value} for value in (3, 0.5, True, float("nan"))]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    skipped = SkippedItems(0.3)
    read = list(iter_conversations(tmp_path / "data.jsonl", skipped, ReadOptions()))
    assert [item.turns[1].text for item in read] == ["3", "0.5", "true"]
    assert [note.reason for note in skipped.notes] == ["number read as text"] * 3
    assert [item.location for item in skipped.items] == [f"{tmp_path / 'data.jsonl'}:4"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (messages({"type": "video", "video": "a.mp4"}, TEXT), "turn 1 should have a text or an image"),
        (messages({"type": "input_audio", "input_audio": {}}, TEXT), "turn 1 should have a text or an image"),
        (messages({**TEXT, "image": "a.jpg"}), "field 'image' holds 'a.jpg', a medium that is not used"),
        (messages({"type": "image"}, {"type": "image"}, TEXT, images=["a.jpg"]), "2 <image> placeholder"),
        (messages({"type": "image", "image": "b.jpg"}, TEXT, images=["a.jpg"]), "0 <image> placeholder"),
        ({"question": "a", "answer": ["yes", "no"]}, "turn 2 has a list of 2 answers"),
        ({"instruction": ["a"], "input": "b", "output": "c"}, "'instruction' and 'input' should be texts"),
        ({"messages": [TURN, {**ANSWER, "loss": False}]}, "unknown field 'conversations.1.loss'"),
        (messages({"type": "image", "index": 1}, TEXT, images=["a.jpg"]), "turn 1 shows image 1 of 1, counted from 0"),
        (messages(3.5, None), "turn 1 should have a text"),
        ({"messages": [TURN, {"role": "gpt", "content": IMAGE}]}, "the assistant's, holds an image"),
        ({"messages": [{"role": "system", "content": IMAGE}, ANSWER]}, "turn 1, the system's, holds an image"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}, "has the role 'tool'"),
        ({"query": "a", "response": "b", "messages": [1]}, "has both messages and query and response"),
        ({"query": "a", "response": "b", "history": "c"}, "field 'history' should be a list of pairs"),
        ({"texts": [{"user": "a", "assistant": "b"}, {"user": "c"}]}, "expected a turn with user and assistant"),
        ({"image": "a.jpg", "caption": "x"}, "caldera data import captions FILE --out NEW.json"),
        ({"file_name": "a.jpg", "text": "x"}, "caldera data import captions FILE --out NEW.json"),
        ({"images": [], "annotations": []}, "caldera data generate coco FILE --out NEW.json"),
        ({"id": True, **messages(TEXT)}, "field 'id' should be a text or a whole number"),
        (messages(TEXT, image="x" * 999, imagee="y" * 999), "unknown field 'imagee'"),
    ],
)  # fmt: skip
def test_what_has_no_place_in_a_form_is_an_error(record: dict[str, Any], message: str) -> None:
    """One short line with the location."""
    with pytest.raises(ConversationError, match=r"^f:1: ") as caught:
        from_record(record, "f:1")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_ids_are_set_from_the_position(tmp_path: Path) -> None:
    """Records without an id have the file's name and their number."""
    rows = [{"question": "a", "answer": "b"}] * 2
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    read: list[Conversation] = read_conversations(tmp_path / "talk.json")
    assert [item.id for item in read] == ["talk-0", "talk-1"]
