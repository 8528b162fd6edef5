"""A record is found by its id, else by its number, and anything else is refused in a line."""

import json
from pathlib import Path

import pytest

from caldera.errors import ModelFormatError, UsageError
from caldera.formats.model_folder import save_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.pipelines.inspect_record import inspect_record


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A file of three records without images; the third has a number for its id."""
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a dog"}]
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"id": name, "conversations": turns} for name in ("a", "b", "0")]))
    return file


@pytest.mark.parametrize(("record", "found"), [("b", "b"), ("1", "b"), ("0", "0")])
def test_a_record_is_found_by_id_then_by_number(
    tmp_path: Path, records: Path, assistant: LlavaBundle, record: str, found: str
) -> None:
    """An id that looks like a number is an id."""
    save_model_folder(tmp_path / "m", assistant)
    assert inspect_record(records, record, tmp_path / "m", None, frozenset()).id == found


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("vicuna_v1", " USER: what? ASSISTANT:[[ a dog</s>]]"),
        ("llama_2", "<s>[INST] what? [/INST][[ a dog </s>]]"),
        ("v0", "###Human: what?###Assistant:[[ a dog###]]"),
        ("qwen", "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n[[a dog<|im_end|>]]"),
        ("phi", "<s><|user|>\nwhat?<|end|>\n<|assistant|>\n[[a dog<|end|>]]"),
    ],
)
def test_a_record_is_shown_in_any_template(records: Path, template: str, expected: str) -> None:
    """The shipped backbones get the template's special tokens; without a model all templates can be looked at."""
    seen = inspect_record(records, "a", None, template, frozenset())
    shown = "".join(
        f"[[{one.text}]]" if one.kind == "supervised" else one.text for one in seen.segments
    )
    assert shown.endswith(expected)
    assert "".join(row.text for row in seen.tokens) == "".join(one.text for one in seen.segments)


def test_a_model_that_lacks_a_mark_says_so(
    tmp_path: Path, records: Path, assistant: LlavaBundle
) -> None:
    """Nothing is shown that the model would not see."""
    save_model_folder(tmp_path / "m", assistant)
    with pytest.raises(ModelFormatError, match=r"no special token '<\|im_start\|>'"):
        inspect_record(records, "a", tmp_path / "m", "qwen", frozenset())


@pytest.mark.parametrize("record", ["3", "-1", "\u00b2", "\u2460", "x", ""])
def test_what_is_no_record_is_refused(records: Path, record: str) -> None:
    """Numbers out of range, and digits that are no decimal number, such as a superscript two."""
    with pytest.raises(UsageError, match=r"has no record .* a number below 3"):
        inspect_record(records, record, None, None, frozenset())
