"""Third-party conversations become LLaVA's JSON: fixes, errors, and real rows that do not change."""

import json
from pathlib import Path
from typing import Any

import pytest

from caldera.conversation import from_record, to_record
from caldera.datasets.importer import ImportOptions
from caldera.datasets.llava_json import import_llava
from caldera.errors import InputError
from caldera.files.skipped_items import SkippedItems

CHECKED = ImportOptions()
FIRST = "images without a mark put before the first question"


def turns(*texts: str) -> list[dict[str, str]]:
    """Return turns with LLaVA's names, human first."""
    return [
        {"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)
    ]


MIX: list[dict[str, Any]] = [
    {"id": "000000033471", "image": "coco/train2017/1.jpg", "conversations": turns("<image>\nWhat?", "A bus.")},
    {"id": "wgByO4Y_0", "model": "x", "conversations": turns("Hello", "Hi!", "And?", "Bye.")},
    {"id": 2416, "image": "ocr_vqa/images/2.jpg", "conversations": turns("<image>\nWho?", "Ann", "When?", "1999")},
    {"id": "VG_100K_2/3", "image": "vg/3.png", "conversations": turns("Which?\n<image>", "[0.1, 0.2, 0.3, 0.4]")},
    {"id": "000000033471", "image": "coco/train2017/1.jpg", "conversations": turns("<image>\nWhy?", "It rains.")},
]  # fmt: skip
"""Five rows in mix665k's format: a text-only row with an extra field, a number as id, a repeated id."""


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    """Write the five rows and their images, which are not decoded; that of OCR-VQA has another suffix."""
    for name in ("coco/train2017/1.jpg", "ocr_vqa/images/2.gif", "vg/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"image")
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(MIX))
    return path


def test_the_format_of_mix665k_is_read(mix: Path) -> None:
    """Texts and order stay; an extra field is removed, an image found with its real suffix, both counted."""
    skips = SkippedItems()
    imported = import_llava(mix, skips, CHECKED)

    assert [record.id for record in imported.conversations] == [str(row["id"]) for row in MIX]
    assert [to_record(record)["conversations"] for record in imported.conversations] == [
        row["conversations"] for row in MIX
    ]
    assert [record.images for record in imported.conversations] == [
        (str(mix.parent / name),) if name else ()
        for name in ("coco/train2017/1.jpg", "", "ocr_vqa/images/2.gif", "vg/3.png", "coco/train2017/1.jpg")
    ]  # fmt: skip
    assert [(note.location, note.reason) for note in skips.notes] == [
        (f"{mix}[1]", "field 'model' removed"),
        (f"{mix}[2]", "image found with another suffix"),
    ]
    assert imported.total == 5


@pytest.mark.parametrize(
    ("record", "expected", "changes"),
    [
        (
            {"id": "1", "image": "a.jpg", "conversations": turns("What?", "A cup.", "Sure?", "Yes.")},
            {"id": "1", "image": "/p/a.jpg", "conversations": turns("<image>\nWhat?", "A cup.", "Sure?", "Yes.")},
            [FIRST],
        ),
        (
            {"messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "USER", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
                {"role": "assistant", "content": "Ann"},
            ], "images": ["a.jpg"]},
            {"id": "rows-0", "image": "/p/a.jpg", "conversations": turns("<image>\nWho?", "Ann")},
            ["system turn removed"],
        ),
        (
            {"id": 7, "image": "", "conversations": [{"from": "gpt", "value": "Hi"}, *turns("A", "B", "C")]},
            {"id": "7", "conversations": turns("A", "B")},
            ["first turn, the assistant's, removed", "last turn, without an answer, removed"],
        ),
        (
            {"id": "1", "image": ["a.jpg", "b.jpg"], "conversations": [
                {**turns("Same?")[0], "markdown": 3}, {"from": "gpt", "value": "No"},
            ]},
            {"id": "1", "image": ["/p/a.jpg", "/p/b.jpg"], "conversations": turns("<image>\n<image>\nSame?", "No")},
            ["field 'markdown' of turns removed", FIRST],
        ),
    ],
)  # fmt: skip
def test_unambiguous_deviations_are_fixed_and_noted(
    tmp_path: Path, record: object, expected: object, changes: list[str]
) -> None:
    """Each fix gives a record in the strict format and is noted once."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([record]))

    skips = SkippedItems()
    imported = import_llava(path, skips, ImportOptions(check_exists=False, images=Path("/p")))

    [conversation] = imported.conversations
    assert to_record(conversation) == expected
    assert from_record(to_record(conversation), "again") == conversation
    assert [note.reason for note in skips.notes] == changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a row", "a record should be a JSON object, got 'a row'"),
        ({"conversations": None}, "field 'conversations' is missing; add it"),
        ({"messages": turns("A", "B")}, "has both conversations and messages"),
        ({"conversations": "Hello"}, "should be a list of turns, got 'Hello'"),
        ({"conversations": ["Hello"]}, "turn 1 should be a JSON object, got 'Hello'"),
        ({"conversations": []}, "needs at least a human and a gpt turn"),
        ({"conversations": [{"from": "humam", "value": "x"}]}, "the role 'humam'; did you mean 'human'"),
        ({"conversations": [{"from": "human", "value": float("nan")}]}, "turn 1 should have a text, got nan"),
        ({"conversations": [{"from": "human", "value": [{"type": "video"}]}]}, "turn 1 should have"),
        ({"conversations": turns("<image>\nWhat?", "")}, "turn 2 is empty"),
        ({"conversations": turns("<image>A", "B")[:1] + turns("C", "D")}, "turn 2 is the user's"),
        ({"conversations": turns("<image>\n<image>\nWhat?", "x")}, "has 2 <image> placeholder(s) but 1"),
        ({"conversations": turns("What?", "<image>")}, "has the mark '<image>' of its image in an answer"),
        ({"image": None}, "has 1 <image> placeholder(s) but 0 image(s)"),
        ({"image": {"bytes": "x"}}, "images should be a path or a list of paths"),
        ({"image": "gone.jpg"}, "gone.jpg does not exist; check --images, or pass --no-check-images"),
        ({"image": "x" * 300}, "does not exist"),
        ({"id": [1]}, "field 'id'"),
    ],
)  # fmt: skip
def test_ambiguous_deviations_are_errors_or_skipped_and_listed(
    mix: Path, change: dict[str, Any] | str, message: str
) -> None:
    """The error is one line with the location; the other records are read."""
    bad = {**MIX[0], **change} if isinstance(change, dict) else change
    mix.write_text(json.dumps([MIX[0], bad, MIX[1]]))

    with pytest.raises(InputError) as caught:
        import_llava(mix, SkippedItems(), CHECKED)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

    skips = SkippedItems(0.4)
    read = import_llava(mix, skips, CHECKED).conversations
    assert [record.id for record in read] == ["000000033471", "wgByO4Y_0"]
    assert [skip.location for skip in skips.items] == [f"{mix}[1]"]
    with pytest.raises(InputError, match="1 of 3 items are invalid"):
        import_llava(mix, SkippedItems(0.3), CHECKED)


def test_real_rows_stay_as_they_are(third_party: Path) -> None:
    """LCS-558K's first 500 rows are unchanged except for the folder of their images."""
    folder = third_party / "lcs558k"
    path = folder / "blip_laion_cc_sbu_500.json"

    skips = SkippedItems()
    imported = import_llava(path, skips, ImportOptions(images=folder / "images"))

    rows = json.loads(path.read_text())
    assert len(rows) == 500
    assert skips.notes == []
    assert [to_record(record) for record in imported.conversations] == [
        {**row, "image": str(folder / "images" / row["image"])} for row in rows
    ]
