"""The table of importers, and the file that an import writes: whole, relative, accounted for."""

import json
from pathlib import Path

import pytest

from caldera.conversation import read_conversations
from caldera.datasets.importer import ImportOptions, PathRewriter
from caldera.datasets.registry import IMPORTERS, import_dataset
from caldera.errors import InputError, UnknownNameError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Five pairs, one of them without its image and one that says <image>."""
    (tmp_path / "photos").mkdir()
    texts = ["A dog", "A cat", "Fog", "An <image> of a cup", "Rain"]
    for number in range(4):
        (tmp_path / "photos" / f"{number}.jpg").touch()
    lines = (json.dumps({"image": f"{at}.jpg", "caption": text}) for at, text in enumerate(texts))
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_every_importer_is_there() -> None:
    """Five names; a wrong one is answered with the nearest."""
    assert list(IMPORTERS) == ["llava", "vqa", "scienceqa", "captions", "coco"]
    with pytest.raises(UnknownNameError, match="no importer is called 'vqav2'; did you mean 'vqa'"):
        import_dataset("vqav2", Path("x"), Path("y.json"), ImportOptions())


@pytest.mark.parametrize("name", ["out/data.json", "data.jsonl"])
def test_images_start_from_the_data_files_folder(rows: Path, name: str) -> None:
    """What is left out is counted and listed beside it."""
    out = rows.parent / name
    report = import_dataset(
        "captions", rows, out, ImportOptions(images=rows.parent / "photos"), 0.4
    )

    read = read_conversations(out)
    assert [(out.parent / path).resolve() for one in read for path in one.images] == [
        rows.parent / "photos" / f"{number}.jpg" for number in range(3)
    ]
    assert not any(Path(path).is_absolute() for one in read for path in one.images)
    assert (report.total, report.conversations, report.turns, report.images, report.bad) == (
        5, 3, 6, 3, 2,
    )  # fmt: skip
    listed = [json.loads(line) for line in out.with_suffix(".bad.jsonl").read_text().splitlines()]
    assert "4.jpg does not exist" in listed[0]["reason"]
    assert "says <image>" in listed[1]["reason"]


@pytest.mark.parametrize("max_bad", [0.0, 0.3])
def test_nothing_is_written_where_too_much_is_bad(rows: Path, max_bad: float) -> None:
    """What stood there still stands."""
    out = rows.parent / "data.json"
    out.write_text("before")
    with pytest.raises(InputError, match=r"does not exist|of 5 items are invalid"):
        import_dataset("captions", rows, out, ImportOptions(images=rows.parent / "photos"), max_bad)
    assert out.read_text() == "before"
    assert not out.with_suffix(".bad.jsonl").exists()


def test_a_set_with_nothing_good_is_refused(rows: Path) -> None:
    """An empty data file would only fail later."""
    with pytest.raises(InputError, match="there is nothing to write of"):
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
def test_a_path_leads_to_the_same_file_from_elsewhere(
    path: str, start: str, to: str, expected: str
) -> None:
    """From the new folder as from the old."""
    assert PathRewriter(Path(start), Path(to))(path) == expected
