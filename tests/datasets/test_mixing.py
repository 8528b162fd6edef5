"""Mixing: shares of the files, ids, images and the report."""

import json
from collections import Counter
from pathlib import Path

import pytest

from caldera.conversation import (
    Conversation,
    ImageRef,
    Turn,
    read_conversations,
    write_conversations,
)
from caldera.datasets.mixing import WeightedFile, mix_files, parse_weighted_file
from caldera.errors import InputError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of 10, 7 and 3 records in separate folders; two share their name, some ids repeat."""
    for name, count in (("a/set.json", 10), ("b/set.jsonl", 7), ("talk.json", 3)):
        records = []
        for number in range(count):
            image = () if name == "talk.json" else (ImageRef(f"photos/{number % 4}.jpg"), "\n")
            turns = (Turn("user", (*image, f"{name} {number}?")), Turn("assistant", ("Yes.",)))
            records.append(Conversation(str(number % 5), turns))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_conversations(tmp_path / name, records)
    return tmp_path


def weighted(folder: Path, *weights: float) -> list[WeightedFile]:
    """Return the three files with weights."""
    names = ("a/set.json", "b/set.jsonl", "talk.json")
    return [
        WeightedFile(folder / name, weight) for name, weight in zip(names, weights, strict=False)
    ]


def count_questions(file: Path) -> Counter[str]:
    """Return the number of records of each question in a file."""
    return Counter(record.turns[0].text.strip() for record in read_conversations(file))


def test_weights_are_shares_and_repetitions(folder: Path) -> None:
    """0.5 samples half without repetition; 2 repeats all twice; 2.3 a third of them once more."""
    out = folder / "mix.json"
    report = mix_files(weighted(folder, 0.5, 2, 2.3), out, seed=3)

    by_file = {
        name: {text: count for text, count in count_questions(out).items() if text.startswith(name)}
        for name in ("a/set.json", "b/set.jsonl", "talk.json")
    }
    assert sorted(by_file["a/set.json"].values()) == [1] * 5
    assert sorted(by_file["b/set.jsonl"].values()) == [2] * 7
    assert sorted(by_file["talk.json"].values()) == [2, 2, 3]
    assert [source.rows for source in report.sources] == [5, 14, 7]
    assert report.rows == 26


def test_ids_contain_the_source_and_are_unique(folder: Path) -> None:
    """Repeated records and ids are numbered, and so are files of the same name."""
    mix_files(weighted(folder, 1, 2, 1), folder / "mix.json")
    ids = [record.id for record in read_conversations(folder / "mix.json")]
    assert len(set(ids)) == len(ids) == 27
    assert {name.partition("/")[0] for name in ids} == {"set", "set#2", "talk"}
    assert {"set/0", "set/0#2", "set#2/0", "set#2/0#4", "talk/2"} <= set(ids)


def test_image_paths_are_relative_to_the_new_file(folder: Path) -> None:
    """Each path refers to the same file as before."""
    out = folder / "new" / "mix.jsonl"
    report = mix_files(weighted(folder, 1, 1, 1), out)
    images = {
        (out.parent / path).resolve()
        for record in read_conversations(out)
        for path in record.images
    }
    assert images == {folder / name / "photos" / f"{n}.jpg" for name in "ab" for n in range(4)}
    assert report.images == 8
    assert [source.images for source in report.sources] == [4, 4, 0]
    assert [source.text_only for source in report.sources] == [0, 0, 3]


def test_the_seed_decides_sample_and_order(folder: Path) -> None:
    """The same seed writes the same bytes; another seed gives another sample and order."""
    written = []
    for seed in (1, 1, 2):
        mix_files(weighted(folder, 0.5, 1, 1), folder / "mix.json", seed=seed)
        written.append((folder / "mix.json").read_bytes())
    assert written[0] == written[1] != written[2]
    texts = [record.turns[0].text.strip() for record in read_conversations(folder / "mix.json")]
    assert texts != sorted(texts)


def test_invalid_records_are_counted_by_source(folder: Path) -> None:
    """An invalid record stops the mix, or is skipped and listed."""
    with (folder / "b" / "set.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match="field 'conversations' is missing"):
        mix_files(weighted(folder, 1, 1), folder / "mix.json")
    assert not (folder / "mix.json").exists()
    report = mix_files(weighted(folder, 1, 1), folder / "mix.json", max_bad_fraction=0.1)
    assert [(source.records, source.skipped) for source in report.sources] == [(10, 0), (7, 1)]
    [listed] = (folder / "mix.skipped.jsonl").read_text().splitlines()
    assert json.loads(listed)["location"] == f"{folder / 'b' / 'set.jsonl'}:8"


def test_an_empty_mix_is_an_error(folder: Path) -> None:
    """The weight selects no record of a small file."""
    with pytest.raises(
        InputError, match="the mix is empty; give files with records, or larger wei"
    ):
        mix_files([WeightedFile(folder / "talk.json", 0.1)], folder / "mix.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.json", WeightedFile(Path("a.json"))),
        ("a.json:0.5", WeightedFile(Path("a.json"), 0.5)),
        ("x/a:b/c.json", WeightedFile(Path("x/a:b/c.json"))),
        ("x:y.json:2", WeightedFile(Path("x:y.json"), 2.0)),
    ],
)
def test_a_file_may_have_a_weight(text: str, expected: WeightedFile) -> None:
    """The weight follows the last colon."""
    assert parse_weighted_file(text) == expected


def test_a_file_with_a_colon_in_its_name_is_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing file with this name takes precedence over a weight."""
    monkeypatch.chdir(tmp_path)
    Path("a:2").touch()
    assert parse_weighted_file("a:2") == WeightedFile(Path("a:2"))


@pytest.mark.parametrize("weight", ["0", "-1", "half", "nan", "inf", ""])
def test_an_invalid_weight_is_an_error(weight: str) -> None:
    """The message shows a valid example."""
    with pytest.raises(UsageError, match=r"write a number above 0, such as a.json:0.5"):
        parse_weighted_file(f"a.json:{weight}")
