"""Commands `data generate`, `check` and `inspect`."""

import json
import re
import subprocess
import sys
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

    (tmp_path / "data.skipped.jsonl").write_text("of the command that wrote the file")
    result = call("data", "check", file)

    assert result.returncode == 3
    assert f"{file}:{len(lines) + 1}: field 'conversations' is missing" in result.stderr
    assert f"{file}:{len(lines) + 2}: " in result.stderr
    assert "invalid: 2" in result.stderr
    assert len((tmp_path / "data.check.skipped.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "data.skipped.jsonl").read_text() == "of the command that wrote the file"
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
    [line] = (tmp_path / "data.check.skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["action"] == "changed"
    assert json.loads(line)["location"] == str(cut)


def test_a_fault_in_a_data_file_is_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    """Neither the model, which does not exist, nor torch is touched; the message names the record."""
    turns = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "A shot."}]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"id": "bad", "video": "c.mp4", "conversations": turns}]))
    code = f"""
import sys
from caldera.cli import main
for command in (["pretrain", "--vision"], ["finetune", "--model"]):
    sys.argv = ["caldera", "train", *command, "nowhere", "--data", {str(data)!r}, "--out", "run"]
    try:
        main()
    except SystemExit as end:
        print(end.code, "torch" in sys.modules)
"""

    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert ended.stdout == "3 False\n" * 2, ended.stderr
    assert ended.stderr.count(f"{data}[0]: record 'bad': the field 'video' holds 'c.mp4'") == 2


def test_images_of_another_machine_are_found(
    call: Callable[..., CommandResult],
    photos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By --images-from, or by the end of the path, which is reported; backslashes are separators."""
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": 3}]
    data = tmp_path / "DATA.JSONL"
    data.write_text(json.dumps({"messages": turns, "images": ["D:\\set\\photos\\1.png"]}))

    guessed = call("data", "check", data)
    mapped = call("data", "check", data, "--images-from", f"D:\\set={photos.parent}")
    missing = call("data", "check", data, "--images", tmp_path / "photos" / "nowhere")

    assert (guessed.returncode, mapped.returncode, missing.returncode) == (0, 0, 3)
    assert "image found by the end of its absolute path" in caplog.text
    assert "1 x number read as text" in caplog.text
    assert "--images-from OLD=NEW" in missing.stderr


def test_a_long_value_is_cut_in_messages(
    call: Callable[..., CommandResult], tmp_path: Path
) -> None:
    """A data: URL of 400 kB that is no image: both commands name the record in a short message."""
    image = "data:image/jpeg;base64," + "QUJD" * 100_000
    turns = [
        {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": "A bear."},
    ]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"id": "long", "messages": turns, "images": [image]}]))

    checked = call("data", "check", data)
    imported = call("data", "import", "llava", data, "--out", tmp_path / "new.json")

    assert (checked.returncode, imported.returncode) == (3, 3)
    assert f"caldera data import llava {data} --out NEW.json" in checked.stderr
    assert f"{data}[0]: record 'long': the image 'data:image/jpeg;base64,QUJ" in imported.stderr
    assert "not an image" in imported.stderr
    assert max(len(line) for line in (checked.stderr + imported.stderr).splitlines()) < 1000
