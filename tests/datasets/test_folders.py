"""Class folders become questions, and some images are held out."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from caldera.datasets.importer import ImportOptions
from caldera.datasets.registry import held_out_path, import_dataset
from caldera.errors import InputError, UnknownNameError, UsageError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.custom import load_questions
from tests.datasets.photo_folders import write_class_folders, write_image

COUNTS = {"hat": 9, "pants": 13, "t-shirt": 5}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of three classes."""
    write_class_folders(tmp_path / "photos", COUNTS)
    return tmp_path / "photos"


def records_of(file: Path) -> list[dict[str, Any]]:
    """Return the records of a data file or question file."""
    text = file.read_text()
    return json.loads(text) if file.suffix == ".json" else list(map(json.loads, text.splitlines()))


def test_each_question_is_a_record(photos: Path, tmp_path: Path) -> None:
    """A caption, a name, and two questions of presence about each image."""
    out = tmp_path / "data" / "data.json"
    out.parent.mkdir()
    report = import_dataset("folders", photos, out, ImportOptions())
    records = records_of(out)
    assert report.images == 27
    assert report.classes == {"a pair of pants": 13, "a hat": 9, "a t-shirt": 5}
    assert len(records) == 4 * 27
    assert len({record["id"] for record in records}) == len(records)
    assert records[0]["image"] == "../photos/hat/0.png"
    answers = Counter(record["conversations"][1]["value"] for record in records)
    assert answers["Yes."] == answers["No."] == 27
    assert answers["A pair of pants."] == answers["A photo of a pair of pants."] == 13
    assert not held_out_path(out).exists()


def test_the_kinds_are_chosen(photos: Path, tmp_path: Path) -> None:
    """Captions alone are for stage 1; a kind that does not exist is an error."""
    import_dataset("folders", photos, tmp_path / "a.json", ImportOptions(kinds="caption"))
    values = [record["conversations"][1]["value"] for record in records_of(tmp_path / "a.json")]
    assert len(values) == 27
    assert all(value.startswith("A photo of a") for value in values)
    with pytest.raises(
        UnknownNameError, match="no kind of --kinds is called 'captions'; did you mean 'caption'"
    ):
        import_dataset(
            "folders", photos, tmp_path / "b.json", ImportOptions(kinds="captions,naming")
        )


def test_the_same_images_are_held_out_from_every_file(photos: Path, tmp_path: Path) -> None:
    """By content and seed: two kinds, two places and further images do not change them; no image is on both sides."""
    (photos / "hat" / "copy.png").write_bytes((photos / "hat" / "0.png").read_bytes())
    held_out: list[set[str]] = []
    for kinds in ("caption", "naming,presence"):
        out = tmp_path / f"{kinds}.json"
        report = import_dataset("folders", photos, out, ImportOptions(kinds=kinds, hold_out="8"))
        assert report.held_out == held_out_path(out)
        assert report.held_out_images == 8
        assert report.images == 19
        held_out.append({record["image"] for record in records_of(held_out_path(out))})
        used = {(out.parent / record["image"]).read_bytes() for record in records_of(out)}
        assert not used & {(out.parent / image).read_bytes() for image in held_out[-1]}
    assert held_out[0] == held_out[1]
    other = import_dataset(
        "folders", photos, tmp_path / "c.json", ImportOptions(hold_out="8", seed=1)
    )
    assert other.held_out
    assert {record["image"] for record in records_of(other.held_out)} != held_out[0]


def test_held_out_questions_are_those_of_evaluate_custom(photos: Path, tmp_path: Path) -> None:
    """Right answers score 1 in any of the accepted forms, wrong ones 0; yes and no are in balance."""
    out = tmp_path / "a.json"
    import_dataset("folders", photos, out, ImportOptions(hold_out="8"))
    questions = load_questions(Sources(questions=held_out_path(out)))
    right = {item.id: item.references[0] for item in questions.items}
    score = questions.score(right)
    assert score.by_category == {"naming": 1.0, "presence": 1.0}
    assert questions.score(dict.fromkeys(right, "Yes.")).by_category == {
        "naming": 0.0,
        "presence": 0.5,
    }
    bare = {
        name: answer.removeprefix("A ").removeprefix("pair of ") for name, answer in right.items()
    }
    assert questions.score(bare).overall == 1.0
    shirt = {name: answer.replace("t-shirt", "shirt") for name, answer in right.items()}
    assert questions.score(shirt).by_category["naming"] < 1


def test_a_split_is_held_out(tmp_path: Path) -> None:
    """Questions about the test images; a training image that is also among them is not trained on."""
    write_class_folders(tmp_path / "train", {"hat": 4, "skirt": 3})
    write_class_folders(tmp_path / "test", {"hat": 2, "skirt": 2}, first=50)
    write_image(tmp_path / "test" / "hat" / "again.png", 0)
    options = ImportOptions(split="train", hold_out="test")
    report = import_dataset("folders", tmp_path, tmp_path / "a.json", options)
    assert (report.images, report.held_out_images) == (6, 5)
    [note] = records_of(tmp_path / "a.skipped.jsonl")
    assert note["reason"] == "not trained on, as it is also held out"
    write_image(tmp_path / "test" / "scarf" / "0.png", 99)
    import_dataset("folders", tmp_path, tmp_path / "a.json", options)
    note = records_of(tmp_path / "a.skipped.jsonl")[-1]
    assert note["location"].endswith("test/scarf/0.png")
    assert note["reason"] == "held out, of a class without training images: 'a scarf'"


def test_the_split_to_train_on_is_not_held_out(tmp_path: Path) -> None:
    """Nothing would be left to train on."""
    write_class_folders(tmp_path / "train", {"hat": 2, "skirt": 2})
    for split in ("train", None):
        with pytest.raises(
            UsageError, match="every image to train on is also held out with --hold-out train"
        ):
            import_dataset(
                "folders",
                tmp_path,
                tmp_path / "a.json",
                ImportOptions(split=split, hold_out="train"),
            )


@pytest.mark.parametrize("count", ["-1", "+5", "0.5", "1e1", "50%", "1,5"])
def test_images_are_held_out_by_a_whole_number(photos: Path, tmp_path: Path, count: str) -> None:
    """Another number is no name of a split."""
    with pytest.raises(UsageError, match="neither a number of images nor the name of a split"):
        import_dataset("folders", photos, tmp_path / "a.json", ImportOptions(hold_out=count))


@pytest.mark.parametrize("count", ["25", "100"])
def test_each_class_keeps_an_image(photos: Path, tmp_path: Path, count: str) -> None:
    """A class of the held-out images that is not trained could not be answered."""
    with pytest.raises(
        UsageError,
        match=rf"{count} of 27 images cannot be held out .*; hold out 24 or fewer, for example --hold-out 2$",
    ):
        import_dataset("folders", photos, tmp_path / "a.json", ImportOptions(hold_out=count))
    assert not (tmp_path / "a.json").exists()


def test_a_users_words_are_used(photos: Path, tmp_path: Path) -> None:
    """The file gives the phrase of some classes."""
    phrases = tmp_path / "phrases.json"
    phrases.write_text('{"hat": "a straw hat"}')
    report = import_dataset("folders", photos, tmp_path / "a.json", ImportOptions(phrases=phrases))
    assert set(report.classes) == {"a straw hat", "a pair of pants", "a t-shirt"}
    phrases.write_text('["a straw hat"]')
    with pytest.raises(InputError, match="should hold noun phrases by class"):
        import_dataset("folders", photos, tmp_path / "b.json", ImportOptions(phrases=phrases))


def test_broken_images_are_listed(photos: Path, tmp_path: Path) -> None:
    """They are skipped up to the limit, and counted."""
    (photos / "hat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = import_dataset(
        "folders", photos, tmp_path / "a.json", ImportOptions(), max_bad_fraction=0.1
    )
    assert (report.skipped, report.images) == (1, 26)
    [listed] = records_of(tmp_path / "a.skipped.jsonl")
    assert listed["location"].endswith("hat/3.png")
