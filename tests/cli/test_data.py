"""Commands `data generate`, `check` and `inspect`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.conversation import read_conversations
from tests.cli.conftest import CommandResult


def test_generate_and_check_work_on_a_coco_folder(
    call: Callable[..., CommandResult], coco: Path, tmp_path: Path
) -> None:
    """A generated file is valid."""
    generated = call("data", "generate", "coco", coco, "--out", tmp_path / "data.json")
    assert generated.returncode == 0, generated.stderr
    assert "conversation" in generated.stderr
    assert len(read_conversations(tmp_path / "data.json")) >= 10

    checked = call("data", "check", tmp_path / "data.json")
    assert checked.returncode == 0, checked.stderr
    assert "invalid: 0" in checked.stderr
    assert checked.stdout == ""


def test_an_extra_field_of_pairs_can_be_ignored(
    call: Callable[..., CommandResult], photos: Path, tmp_path: Path
) -> None:
    """The fix named in the error works, as with the other commands that read records."""
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a dog"}]
    record = {"id": "1", "image": "photos/1.png", "model": "x", "conversations": turns}
    (tmp_path / "pairs.json").write_text(json.dumps([record]))
    words = ("data", "generate", "pairs", tmp_path / "pairs.json", "--out", tmp_path / "out.json")

    rejected = call(*words)
    accepted = call(*words, "--ignore-field", "model")

    assert rejected.returncode == 3
    assert "pass --ignore-field model" in rejected.stderr
    assert accepted.returncode == 0, accepted.stderr
    assert len(read_conversations(tmp_path / "out.json")) == 1


def test_check_lists_invalid_records(
    call: Callable[..., CommandResult], coco: Path, tmp_path: Path
) -> None:
    """Every invalid record is listed with its location, and the exit code is 3."""
    file = tmp_path / "data.jsonl"
    call("data", "generate", "coco", coco, "--out", file)
    lines = file.read_text().splitlines()
    invalid = ['{"id": "x", "image": "a.jpg"}', lines[0].replace(".jpg", ".png"), lines[1]]
    file.write_text("\n".join([*lines, *invalid]) + "\n")

    result = call("data", "check", file)

    assert result.returncode == 3
    assert f"{file}:{len(lines) + 1}: field 'conversations' is missing" in result.stderr
    assert f"{file}:{len(lines) + 2}: " in result.stderr
    assert "invalid: 2" in result.stderr
    assert len((tmp_path / "data.skipped.jsonl").read_text().splitlines()) == 2
    assert call("data", "check", file, "--max-bad-fraction", "0.5").returncode == 0


def test_inspect_marks_supervised_text_without_color_too(
    call: Callable[..., CommandResult], coco: Path, tmp_path: Path
) -> None:
    """In a pipe each answer and its end token are in double brackets, and nothing else is."""
    data = tmp_path / "data.json"
    call("data", "generate", "coco", coco, "--kinds", "vqa", "--out", data)
    result = call("data", "inspect", data)
    record = json.loads(data.read_text())[0]
    answers = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
    assert result.returncode == 0, result.stderr
    assert re.findall(r"\[\[ (.*?)</s>\]\]", result.stdout) == answers
    assert result.stdout.count("[[") == len(answers)


def test_truncated_and_large_images_are_used_on_request(
    call: Callable[..., CommandResult],
    photos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both are errors that name the option; an image that is used although it is truncated is listed."""
    cut = photos / "1.png"
    cut.write_bytes(cut.read_bytes()[:-99])
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a dog"}]
    records = [
        {"id": name, "image": f"photos/{name}.png", "conversations": turns} for name in ("0", "1")
    ]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records))

    rejected = call("data", "check", file)
    limited = call("data", "check", file, "--allow-truncated", "--image-limit", "max_pixels=90")
    accepted = call("data", "check", file, "--allow-truncated")

    assert rejected.returncode == limited.returncode == 3
    assert "1.png is a truncated PNG image" in rejected.stderr
    assert "over the limit (max_pixels, 90)" in limited.stderr
    assert accepted.returncode == 0, accepted.stderr
    assert "changed 1, listed in" in caplog.text
    [line] = (tmp_path / "data.skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["action"] == "changed"
    assert json.loads(line)["location"] == str(cut)
