"""`data generate` writes a data file or nothing; kinds and teachers are checked by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from caldera.annotations.registry import SourceOptions
from caldera.conversation import read_conversations
from caldera.errors import InputError, OutputError, UnknownNameError, UsageError
from caldera.instructions.generate import GenerateConfig, generate_data, parse_kinds
from caldera.progress import NoProgress


@pytest.fixture
def pairs(tmp_path: Path) -> GenerateConfig:
    """Return a configuration for a table of three images, one of which does not exist."""
    (tmp_path / "data").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "data" / name).write_bytes(b"image")
    path = tmp_path / "data" / "pairs.csv"
    path.write_text("image,caption\n1.jpg,A dog\n2.jpg,A cat\n3.jpg,A cup\n")
    return GenerateConfig(source="pairs", path=path, options=SourceOptions(), max_bad_fraction=0.5)


def test_a_file_is_written_with_a_list_of_skipped_images(
    pairs: GenerateConfig, tmp_path: Path
) -> None:
    """Pairs become captions by default; the list has location and reason."""
    out = tmp_path / "out" / "train.json"
    data = generate_data(pairs, out, NoProgress())
    assert read_conversations(out) == data.conversations
    assert [conversation.images[0] for conversation in data.conversations] == [
        "../data/1.jpg",
        "../data/2.jpg",
    ]
    [line] = (tmp_path / "out" / "train.skipped.jsonl").read_text().splitlines()
    skipped = json.loads(line)
    assert skipped["location"] == f"{pairs.path}:4"
    assert "3.jpg does not exist" in skipped["reason"]


def test_bad_annotations_write_no_file(pairs: GenerateConfig, tmp_path: Path) -> None:
    """Neither if no image may be skipped, nor if the teacher has nothing to write."""
    out = tmp_path / "out" / "train.json"
    with pytest.raises(InputError, match=r"pairs\.csv:4: .*3\.jpg does not exist"):
        generate_data(replace(pairs, max_bad_fraction=0.0), out, NoProgress())
    with pytest.raises(InputError, match=r"wrote nothing about .*: {'vqa: the annotations contain"):
        generate_data(replace(pairs, kinds="vqa"), out, NoProgress())
    for image in tmp_path.rglob("*.jpg"):
        image.unlink()
    with pytest.raises(InputError, match=r"no image that can be used; .*train\.skipped\.jsonl has"):
        generate_data(replace(pairs, max_bad_fraction=1.0), out, NoProgress())
    assert [file.name for file in out.parent.iterdir()] == ["train.skipped.jsonl"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        generate_data(pairs, tmp_path / "file" / "train.json", NoProgress())


def test_a_teacher_has_an_exact_name(pairs: GenerateConfig, tmp_path: Path) -> None:
    """An LLM also needs its configuration."""
    out = tmp_path / "train.json"
    with pytest.raises(UnknownNameError, match="no teacher is called 'script'; did you mean"):
        generate_data(replace(pairs, teacher="script"), out, NoProgress())
    with pytest.raises(UsageError, match=r"openai is an LLM; set GenerateConfig\.llm_teacher"):
        generate_data(replace(pairs, teacher="openai"), out, NoProgress())


def test_kinds_are_parsed_with_their_shares() -> None:
    """A kind without a share is written for every image."""
    assert parse_kinds("conversation, detail:0.5,vqa:1") == {
        "conversation": 1.0,
        "detail": 0.5,
        "vqa": 1.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("detial", "no kind of instruction is called 'detial'; did you mean 'detail'?"),
        ("", "no kind of instruction is called ''"),
        ("vqa,", "no kind of instruction is called ''"),
        ("vqa:half", "the share of vqa is 'half'; write a number such as vqa:0.5"),
        ("vqa:0", "the share of vqa is 0; it must be above 0 and at most 1"),
        ("vqa:1.5", "the share of vqa is 1.5; it must be"),
        ("vqa:-1", "the share of vqa is -1; it must be"),
        ("vqa:nan", "the share of vqa is nan; it must be"),
    ],
)
def test_invalid_kinds_are_errors(text: str, message: str) -> None:
    """With the name, the share, and the valid range."""
    with pytest.raises(UsageError) as caught:
        parse_kinds(text)
    assert message in str(caught.value)
