"""A record is found by its id, else by its number, and anything else is rejected."""

import json
from pathlib import Path

import pytest

from caldera.conversation.reader import ReadOptions
from caldera.errors import ModelFormatError, UsageError
from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.pipelines.inspect_record import inspect_record


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A file of three records without images; the third has a number for its id."""
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a dog"}]
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"id": name, "conversations": turns} for name in ("a", "b", "0")]))
    return file


@pytest.mark.parametrize(("record", "expected"), [("b", "b"), ("1", "b"), ("0", "0")])
def test_a_record_is_found_by_id_then_by_number(
    tmp_path: Path, records: Path, assistant: LlavaBundle, record: str, expected: str
) -> None:
    """An id that looks like a number is an id."""
    save_model_folder(tmp_path / "m", assistant)
    assert inspect_record(records, record, tmp_path / "m", None, ReadOptions()).id == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("vicuna_v1", " USER: what? ASSISTANT:[[ a dog</s>]]"),
        ("llama_2", "<s>[INST] what? [/INST][[ a dog </s>]]"),
        ("v0", "###Human: what?###Assistant:[[ a dog###]]"),
        ("v0_original", "\n\n[[###]] Human: what?\n[[### Assistant: a dog\n### ]]"),
        ("qwen", "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n[[a dog<|im_end|>]]"),
        ("phi", "<s><|user|>\nwhat?<|end|>\n<|assistant|>\n[[a dog<|end|>]]"),
    ],
)
def test_a_record_is_inspected_with_any_template(
    records: Path, template: str, expected: str
) -> None:
    """Without a model, the packaged backbones get the special tokens of any template."""
    inspected = inspect_record(records, "a", None, template, ReadOptions())
    segments = inspected.segments
    marked = (
        f"[[{segment.text}]]" if segment.kind == "supervised" else segment.text
        for segment in segments
    )
    assert "".join(marked).endswith(expected)
    text = "".join(segment.text for segment in segments)
    assert "".join(token.text for token in inspected.tokens) == text


def test_a_model_without_a_special_token_is_rejected(
    tmp_path: Path, records: Path, assistant: LlavaBundle
) -> None:
    """Nothing is printed that the model would not read."""
    save_model_folder(tmp_path / "m", assistant)
    with pytest.raises(ModelFormatError, match=r"no special token '<\|im_start\|>'"):
        inspect_record(records, "a", tmp_path / "m", "qwen", ReadOptions())


@pytest.mark.parametrize("record", ["3", "-1", "\u00b2", "\u2460", "x", ""])
def test_an_unknown_record_is_rejected(records: Path, record: str) -> None:
    """Numbers out of range and other digits, such as a superscript two, are rejected."""
    with pytest.raises(UsageError, match=r"has no record .* a number below 3"):
        inspect_record(records, record, None, None, ReadOptions())
