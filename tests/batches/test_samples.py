"""A conversation becomes a sample, or its error is raised before training starts; `data check` finds the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import (
    Conversation,
    ImageRef,
    Turn,
    read_conversations,
    write_conversations,
)
from caldera.conversation.reader import ReadOptions
from caldera.datasets.validation import validate_file
from caldera.errors import ConversationError, ImageError, InputError
from caldera.files.skipped_items import SkippedItems
from caldera.inference.prompts import PromptBuilder
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from caldera.templates.registry import find_template

MISSING = ("nowhere.png", "x" * 300 + ".png")
"""Names of images that do not exist; no file system accepts the second."""

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "F7 more marks": ({"turns": ["<image> <image>", "b"]}, "2 <image> placeholder"),
    "F7 fewer images": ({"image": None}, "but 0 image"),
    "F7 empty turn": ({"turns": ["<image>a", " "]}, "turn 2 is empty"),
    "F7 two questions": ({"turns": ["<image>a", "b", "c"]}, "the last turn is not the assistant's"),
    "F7 no turn": ({"turns": []}, "needs at least a human and a gpt turn"),
    "no form": ({"turns": None}, "field 'conversations' is missing"),
    "null answer": ({"turns": ["<image>a", None]}, "value' is null"),
    "video": ({"video": "a.mp4"}, "a medium that is not used"),
    "video mark": ({"turns": ["<video> <image>", "b"]}, "the mark '<video>'"),
    "foreign mark": ({"turns": ["<image> [IMG]", "b"]}, "2 image mark"),
    "missing image": ({"image": "b.png"}, "does not exist"),
    "inline image": ({"image": "data:image/png;base64,AAAA"}, "caldera data import llava"),
    "remote image": ({"image": "https://a.b/c.png"}, "is not fetched"),
    "unknown field": ({"imagee": "x"}, "unknown field 'imagee'"),
    "no record": ({}, "should be a JSON object"),
}
"""Changes of a valid record by fault, and the message."""


def about(path: str) -> Conversation:
    """Return a dialogue about an image."""
    question = Turn("user", (ImageRef(path), "\nwhat is this?"))
    return Conversation("lost", (question, Turn("assistant", ("a dog",))))


@pytest.fixture
def builder(assistant: LlavaBundle) -> SampleBuilder:
    """Return the encoder of a tiny model."""
    return SampleBuilder(
        tokenizer=assistant.tokenizer,
        template=find_template("vicuna_v1"),
        image_token_id=assistant.model.image_token_id,
        layouts=assistant.processor.layouts,
        count_tokens=assistant.model.count_tokens,
        max_length=512,
    )


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[[str], Path]:
    """Write a file of nine valid records and one with a fault."""

    def write(fault: str) -> Path:
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        good = {"id": "1", "image": "a.png", "turns": ["<image>what?", "a dog"]}
        changes = FAULTS[fault][0]
        rows: list[Any] = [{**good, "id": str(number)} for number in range(9)]
        rows.insert(4, {**good, **changes, "id": "bad"} if changes else "x")
        for row in rows:
            texts = row.pop("turns") if isinstance(row, dict) else None
            if texts is not None:
                speakers = [("human", "gpt")[number % 2] for number in range(len(texts))]
                row["conversations"] = [
                    {"from": speaker, "value": text}
                    for speaker, text in zip(speakers, texts, strict=True)
                ]
        file = tmp_path / "data.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        return file

    return write


@pytest.mark.parametrize("fault", FAULTS)
def test_training_and_check_find_the_same_faults(
    fault: str, faulty: Callable[[str], Path], builder: SampleBuilder
) -> None:
    """Both skip the one record, with the same line and reason, and use the others; without a limit it is raised."""
    file = faulty(fault)
    checked, trained = SkippedItems(0.1), SkippedItems(0.1)

    report = validate_file(file, checked, ReadOptions(), decode_images=True, progress=NoProgress())
    options = ReadOptions(check_images=True)
    read = read_conversations(file, skipped=trained, options=options)
    samples = builder.build_all(read, file.parent, trained)

    assert checked.items == trained.items
    [item] = trained.items
    assert item.location == f"{file}:5"
    assert FAULTS[fault][1] in item.reason
    assert len(item.reason) < 250
    assert report.records - 1 == len(samples) == 9
    with pytest.raises(InputError, match=r"data\.jsonl:5: "):
        read_conversations(file, options=options)


@pytest.mark.parametrize("path", MISSING)
def test_a_missing_image_is_found_before_training(
    builder: SampleBuilder, tmp_path: Path, path: str
) -> None:
    """The error names the record and the file, whatever its name is; validation finds it too."""
    with pytest.raises(ImageError, match=r"record 'lost': .*\.png does not exist"):
        builder.build(about(path), tmp_path)
    write_conversations(tmp_path / "data.json", [about(path)])
    for decode in (False, True):
        skipped = SkippedItems(1.0)
        validate_file(
            tmp_path / "data.json", skipped, ReadOptions(), decode_images=decode, progress=NoProgress()
        )  # fmt: skip
        assert [path in item.reason for item in skipped.items] == [True]


@pytest.mark.parametrize("max_bad_fraction", [0.0, 0.5])
def test_an_overlong_record_is_reported_with_its_line(
    builder: SampleBuilder, tmp_path: Path, max_bad_fraction: float
) -> None:
    """Row F7: encoding finds it, and the message names file, line, both lengths and what to do."""
    file = tmp_path / "data.jsonl"
    short, long = (
        Conversation(name, (Turn("user", ("what is this?",)), Turn("assistant", (text,))))
        for name, text in (("short", "a dog"), ("long", "a dog " * 300))
    )
    write_conversations(file, [short, long])
    skipped = SkippedItems(max_bad_fraction)

    def build() -> list[Sample]:
        return builder.build_all(read_conversations(file), tmp_path, skipped)

    if not max_bad_fraction:
        with pytest.raises(ConversationError, match=r"data\.jsonl:2: record 'long' is \d+ tokens"):
            build()
        return
    assert [sample.id for sample in build()] == ["short"]
    [item] = skipped.items
    assert item.location == f"{file}:2"
    assert "over the limit of 512; shorten it or raise max_length" in item.reason


def test_records_that_could_not_be_read_count_towards_the_limit(
    builder: SampleBuilder, tmp_path: Path
) -> None:
    """One of two records that was skipped before is half of the data."""
    record = replace(about("x"), turns=(Turn("user", ("a",)), Turn("assistant", ("b",))))
    unreadable = InputError("broken")
    for limit in (0.5, 0.4):
        skipped = SkippedItems(limit)
        skipped.add_or_raise("data.json[0]", unreadable)
        if limit == 0.5:
            assert len(builder.build_all([record], tmp_path, skipped)) == 1
        else:
            with pytest.raises(InputError, match="1 of 2 items are invalid"):
                builder.build_all([record], tmp_path, skipped)


def test_a_mark_in_an_answer_is_encoded_as_text(builder: SampleBuilder, tmp_path: Path) -> None:
    """It takes no image and no image token: only the image of the question does."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    texts = ("![fig](<image>)", "![fig](image)")
    counts = []
    for text in texts:
        question = Turn("user", (ImageRef("a.png"), "\nParse it."))
        sample = builder.build(Conversation("1", (question, Turn("assistant", (text,)))), tmp_path)
        counts.append(sample.ids.count(builder.image_token_id))
        assert len(sample.images) == 1
    assert counts[0] == counts[1] > 0


def test_the_text_of_training_may_differ_from_the_prompts(
    builder: SampleBuilder, assistant: LlavaBundle
) -> None:
    """LLaVA v0 is trained with its marks on lines of their own, and asked without."""
    template = find_template("v0_original")
    turns = (Turn("user", ("what is this?",)), Turn("assistant", ("a dog",)))
    sample = replace(builder, template=template).build(Conversation("1", turns), Path())
    text = str(assistant.tokenizer.decode(list(sample.ids)))
    assert text.endswith("### Human: what is this?\n### Assistant: a dog\n### ")
    prompt = PromptBuilder(
        replace(assistant, card=assistant.card.model_copy(update={"template": template.name}))
    ).from_files(Conversation("1", turns[:1]))
    assert prompt.text.endswith("###Human: what is this?###Assistant:")
