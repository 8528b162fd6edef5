"""Captions become stage-1 conversations."""

import json
from collections import Counter
from pathlib import Path

import pytest

from caldera.datasets.captions import import_captions, import_coco
from caldera.datasets.importer import ImportOptions
from caldera.errors import InputError
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.request_phrases import CAPTION_REQUESTS


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO folder of three images, five captions, and no boxes."""
    captions = [(1, "A dog."), (2, "A cat."), (1, "A big\ndog."), (3, "Fog."), (1, "One dog.")]
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": 7, "height": 5} for number in (1, 2, 3)],
        "annotations": [
            {"id": number, "image_id": image, "caption": text} for number, (image, text) in enumerate(captions)
        ],
    }  # fmt: skip
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_small.json").write_text(json.dumps(content))
    (tmp_path / "small").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "small" / f"{number}.jpg").touch()
    return tmp_path


def test_each_caption_of_a_coco_folder_is_a_record(coco: Path) -> None:
    """All captions of an image or at most N, the rest counted; the request is a brief one."""
    imported = import_coco(coco, SkippedItems(), ImportOptions())
    assert [(record.id, record.turns[1].text) for record in imported.conversations] == [
        ("1-0", "A dog."),
        ("1-1", "A big dog."),
        ("1-2", "One dog."),
        ("2", "A cat."),
        ("3", "Fog."),
    ]
    assert all(
        record.turns[0].text.removeprefix("\n") in CAPTION_REQUESTS
        for record in imported.conversations
    )
    assert imported.conversations[3].images == (str(coco / "small" / "2.jpg"),)

    fewer = import_coco(coco, SkippedItems(), ImportOptions(per_image=2))
    assert [record.id for record in fewer.conversations] == ["1-0", "1-1", "2", "3"]
    assert fewer.fixes == {"further caption of an image skipped": 1}
    assert fewer.total == 5


def test_the_seed_decides_the_wording(coco: Path) -> None:
    """The same seed gives the same requests; many seeds give all eleven."""
    by_seed = [
        [record.turns[0].text for record in import_coco(coco, SkippedItems(), ImportOptions(seed=seed)).conversations]
        for seed in range(40)
    ]  # fmt: skip
    again = import_coco(coco, SkippedItems(), ImportOptions(seed=3)).conversations
    assert [record.turns[0].text for record in again] == by_seed[3]
    assert len(Counter(text for texts in by_seed for text in texts)) == len(CAPTION_REQUESTS)


def test_a_missing_image_or_caption_is_an_error_or_skipped(coco: Path) -> None:
    """It is skipped if that is allowed; without `check_exists` missing images are accepted."""
    (coco / "small" / "2.jpg").unlink()
    with pytest.raises(InputError, match=r"2.jpg does not exist; check --images"):
        import_coco(coco, SkippedItems(), ImportOptions())
    assert len(import_coco(coco, SkippedItems(0.4), ImportOptions()).conversations) == 4
    assert (
        len(import_coco(coco, SkippedItems(), ImportOptions(check_exists=False)).conversations) == 5
    )
    path = coco / "annotations" / "captions_small.json"
    content = json.loads(path.read_text())
    content["annotations"] = [
        annotation for annotation in content["annotations"] if annotation["image_id"] != 3
    ]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"images.2: image 3.jpg has no caption and no box"):
        import_coco(coco, SkippedItems(), ImportOptions(check_exists=False))


def test_pairs_of_a_table_are_read(tmp_path: Path) -> None:
    """CSV and JSONL give the same result; images may be added later."""
    (tmp_path / "a.csv").write_text("image,caption\n1.jpg,A dog\n2.jpg,A cat\n")
    lines = ({"image": "1.jpg", "caption": "A dog"}, {"image": "2.jpg", "caption": "A cat"})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ImportOptions(check_exists=False)
    table = import_captions(tmp_path / "a.csv", SkippedItems(), options)
    assert [record.turns[1].text for record in table.conversations] == ["A dog", "A cat"]
    assert table == import_captions(tmp_path / "a.jsonl", SkippedItems(), options)
    with pytest.raises(InputError, match=r"1.jpg does not exist"):
        import_captions(tmp_path / "a.csv", SkippedItems(), ImportOptions())


def test_real_captions_are_read(third_party: Path) -> None:
    """Flickr8k's 4,000 pairs and COCO's 80 images; all captions or one of each image."""
    table = third_party / "flickr8k" / "captions.csv"
    assert len(import_captions(table, SkippedItems(), ImportOptions()).conversations) == 4000
    single = import_captions(table, SkippedItems(), ImportOptions(per_image=1))
    assert len(single.conversations) == 800
    assert single.fixes == {"further caption of an image skipped": 3200}
    photos = import_coco(third_party / "coco_mini", SkippedItems(), ImportOptions(per_image=1))
    assert len(photos.conversations) == 80
