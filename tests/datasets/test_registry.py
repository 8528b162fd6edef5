"""The table of importers, and the data file that an import writes."""

import json
from pathlib import Path

import pytest

from caldera.conversation import read_conversations
from caldera.datasets.importer import ImportOptions, PathRewriter
from caldera.datasets.registry import IMPORTERS, import_dataset
from caldera.errors import InputError, UnknownNameError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Five pairs, one without its image and one without its caption."""
    (tmp_path / "photos").mkdir()
    texts = ["A dog", "A cat", "Fog", " ", "Rain"]
    for number in range(4):
        (tmp_path / "photos" / f"{number}.jpg").touch()
    lines = (json.dumps({"image": f"{n}.jpg", "caption": text}) for n, text in enumerate(texts))
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_importers_have_exact_names() -> None:
    """There are six; the error for a wrong name suggests the nearest."""
    assert list(IMPORTERS) == ["llava", "vqa", "scienceqa", "captions", "coco", "folders"]
    with pytest.raises(UnknownNameError, match="no importer is called 'vqav2'; did you mean 'vqa'"):
        import_dataset("vqav2", Path("x"), Path("y.json"), ImportOptions())


@pytest.mark.parametrize("name", ["out/data.json", "data.jsonl"])
def test_image_paths_are_relative_to_the_data_file(rows: Path, name: str) -> None:
    """Skipped pairs are counted and listed next to it."""
    out = rows.parent / name
    report = import_dataset(
        "captions", rows, out, ImportOptions(images=rows.parent / "photos"), 0.4
    )

    read = read_conversations(out)
    assert [(out.parent / path).resolve() for record in read for path in record.images] == [
        rows.parent / "photos" / f"{number}.jpg" for number in range(3)
    ]
    assert not any(Path(path).is_absolute() for record in read for path in record.images)
    assert (report.total, report.conversations, report.turns, report.images, report.skipped) == (
        5, 3, 6, 3, 2,
    )  # fmt: skip
    listed = [
        json.loads(line) for line in out.with_suffix(".skipped.jsonl").read_text().splitlines()
    ]
    assert "has an empty image or caption" in listed[0]["reason"]
    assert "4.jpg does not exist" in listed[1]["reason"]


@pytest.mark.parametrize("max_bad_fraction", [0.0, 0.3])
def test_nothing_is_written_if_too_much_is_invalid(rows: Path, max_bad_fraction: float) -> None:
    """An earlier file is unchanged."""
    out = rows.parent / "data.json"
    out.write_text("before")
    with pytest.raises(InputError, match=r"empty image or caption|of 5 items are invalid"):
        import_dataset(
            "captions", rows, out, ImportOptions(images=rows.parent / "photos"), max_bad_fraction
        )
    assert out.read_text() == "before"
    assert out.with_suffix(".skipped.jsonl").exists() == (max_bad_fraction > 0)


def test_a_set_without_a_valid_record_is_an_error(rows: Path) -> None:
    """An empty data file would fail only later."""
    with pytest.raises(InputError, match=r"no valid record to write; .*data\.skipped\.jsonl has"):
        import_dataset("captions", rows, rows.parent / "data.json", ImportOptions(images=rows), 1.0)


@pytest.mark.parametrize(
    ("path", "start", "to", "expected"),
    [
        ("1.jpg", "a", "a", "1.jpg"),
        ("b/1.jpg", "a", "a/b", "1.jpg"),
        ("b/1.jpg", "a", "c", "../a/b/1.jpg"),
        ("../b/1.jpg", "a", "", "b/1.jpg"),
        ("/x/1.jpg", "a", "/x/y", "../1.jpg"),
    ],
)
def test_a_rewritten_path_refers_to_the_same_file(
    path: str, start: str, to: str, expected: str
) -> None:
    """The path relative to the new folder is that file."""
    assert PathRewriter(Path(start), Path(to))(path) == expected
