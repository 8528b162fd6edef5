"""Conversations of others become LLaVA's JSON: what is set right, what is refused, and real rows that stay."""

import json
from pathlib import Path
from typing import Any

import pytest

from caldera.conversation import from_record, to_record
from caldera.datasets.importer import ImportOptions
from caldera.datasets.llava_json import import_llava
from caldera.errors import InputError
from caldera.files.skipped import SkippedItems

SEEN = ImportOptions()
UNSEEN = ImportOptions(check_exists=False)


def turns(*texts: str) -> list[dict[str, str]]:
    """Turns by LLaVA's names, human first."""
    return [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(texts)]


MIX: list[dict[str, Any]] = [
    {"id": "000000033471", "image": "coco/train2017/1.jpg", "conversations": turns("<image>\nWhat?", "A bus.")},
    {"id": "wgByO4Y_0", "model": "", "conversations": turns("Hello", "Hi!", "And?", "Bye.")},
    {"id": 2416, "image": "ocr_vqa/images/2.jpg", "conversations": turns("<image>\nWho?", "Ann", "When?", "1999")},
    {"id": "VG_100K_2/3", "image": "vg/3.png", "conversations": turns("Which?\n<image>", "[0.1, 0.2, 0.3, 0.4]")},
    {"id": "000000033471", "image": "coco/train2017/1.jpg", "conversations": turns("<image>\nWhy?", "It rains.")},
]  # fmt: skip
"""Five rows laid out as mix665k: text alone with a surplus field, a number as id, one id twice."""


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    """The five rows with their images, which are not looked into; that of OCR-VQA has another suffix."""
    for name in ("coco/train2017/1.jpg", "ocr_vqa/images/2.gif", "vg/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"image")
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(MIX))
    return path


def test_the_layout_of_mix665k_is_read(mix: Path) -> None:
    """Texts and order stay; a field that nothing reads goes, an image is found by its real suffix, both counted."""
    imported = import_llava(mix, SkippedItems(), SEEN)

    assert [one.id for one in imported.conversations] == [str(row["id"]) for row in MIX]
    assert [to_record(one)["conversations"] for one in imported.conversations] == [
        row["conversations"] for row in MIX
    ]
    assert [one.images for one in imported.conversations] == [
        (str(mix.parent / name),) if name else ()
        for name in ("coco/train2017/1.jpg", "", "ocr_vqa/images/2.gif", "vg/3.png", "coco/train2017/1.jpg")
    ]  # fmt: skip
    assert imported.fixes == {
        "field 'model' left out": 1,
        "image found under another suffix": 1,
    }
    assert imported.total == 5


@pytest.mark.parametrize(
    ("record", "expected", "changes"),
    [
        (
            {"id": "1", "image": "a.jpg", "conversations": turns("What?", "A cup.", "Sure?", "Yes.")},
            {"id": "1", "image": "/p/a.jpg", "conversations": turns("<image>\nWhat?", "A cup.", "Sure?", "Yes.")},
            {"mark of the image put in front of the first question": 1},
        ),
        (
            {"messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "USER", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
                {"role": "assistant", "content": "Ann"},
            ], "images": ["a.jpg"]},
            {"id": "rows-0", "image": "/p/a.jpg", "conversations": turns("<image>\nWho?", "Ann")},
            {"system's turn left out": 1, "speaker 'USER' is 'human'": 1, "speaker 'assistant' is 'gpt'": 1,
             "id given by place": 1},
        ),
        (
            {"id": 7, "image": "", "conversations": [{"from": "gpt", "value": "Hi"}, *turns("A", "B", "C")]},
            {"id": "7", "conversations": turns("A", "B")},
            {"first turn, the assistant's, left out": 1, "last turn, without an answer, left out": 1},
        ),
        (
            {"id": "1", "image": ["a.jpg", "b.jpg"], "conversations": [
                {**turns("Same?")[0], "markdown": 3}, {"from": "gpt", "value": "No"},
            ]},
            {"id": "1", "image": ["/p/a.jpg", "/p/b.jpg"], "conversations": turns("<image>\n<image>\nSame?", "No")},
            {"mark of the image put in front of the first question": 1, "field 'markdown' of turns left out": 1},
        ),
    ],
)  # fmt: skip
def test_what_needs_no_guess_is_set_right_and_counted(
    tmp_path: Path, record: object, expected: object, changes: dict[str, int]
) -> None:
    """Each repair gives a record of the strict form and is told once."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([record]))

    imported = import_llava(
        path, SkippedItems(), ImportOptions(check_exists=False, images=Path("/p"))
    )

    [conversation] = imported.conversations
    assert to_record(conversation) == expected
    assert from_record(to_record(conversation), "again") == conversation
    assert imported.fixes == changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a row", "a record should be a JSON object, got 'a row'"),
        ({"conversations": None}, "has no field conversations or messages; it needs one of them"),
        ({"messages": []}, "has both conversations and messages"),
        ({"conversations": "Hello"}, "turns should be a list, got 'Hello'"),
        ({"conversations": ["Hello"]}, "turn 1 should be a JSON object, got 'Hello'"),
        ({"conversations": []}, "needs at least a human and a gpt turn"),
        ({"conversations": [{"from": "humam", "value": "x"}]}, "by 'humam'; did you mean 'human'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "turn 1 should say a text, got 3"),
        ({"conversations": [{"from": "human", "value": [{"type": "video"}]}]}, "turn 1 should say"),
        ({"conversations": turns("<image>\nWhat?", "")}, "turn 2 is empty"),
        ({"conversations": turns("<image>A", "B")[:1] + turns("C", "D")}, "turn 2 is the user's"),
        ({"conversations": turns("<image>\n<image>\nWhat?", "x")}, "has 2 <image> mark(s) but 1"),
        ({"conversations": turns("What?", "<image>")}, "only a user shows images"),
        ({"image": None}, "has 1 <image> mark(s) but 0 image(s)"),
        ({"image": {"bytes": "x"}}, "images should be a path or a list of paths"),
        ({"image": "gone.jpg"}, "gone.jpg does not exist; check --images, or pass --no-find"),
        ({"image": "x" * 300}, "does not exist"),
        ({"id": [1]}, "field 'id'"),
    ],
)  # fmt: skip
def test_what_would_be_a_guess_is_refused_or_left_out_and_listed(
    mix: Path, change: dict[str, Any] | str, message: str
) -> None:
    """One line with the place; the others are read."""
    bad = {**MIX[0], **change} if isinstance(change, dict) else change
    mix.write_text(json.dumps([MIX[0], bad, MIX[1]]))

    with pytest.raises(InputError) as caught:
        import_llava(mix, SkippedItems(), SEEN)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

    skips = SkippedItems(0.4)
    read = import_llava(mix, skips, SEEN).conversations
    assert [one.id for one in read] == ["000000033471", "wgByO4Y_0"]
    assert [skip.location for skip in skips.items] == [f"{mix}[1]"]
    with pytest.raises(InputError, match="1 of 3 items are invalid"):
        import_llava(mix, SkippedItems(0.3), SEEN)


def test_real_rows_stay_as_they_are(third_party: Path) -> None:
    """LCS-558K's first 500 rows come through unchanged but for the folder of their images."""
    folder = third_party / "lcs558k"
    path = folder / "blip_laion_cc_sbu_500.json"

    imported = import_llava(path, SkippedItems(), ImportOptions(images=folder / "images"))

    rows = json.loads(path.read_text())
    assert len(rows) == 500
    assert imported.fixes == {}
    assert [to_record(one) for one in imported.conversations] == [
        {**row, "image": str(folder / "images" / row["image"])} for row in rows
    ]
