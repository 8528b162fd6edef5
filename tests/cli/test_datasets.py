"""Commands `data import`, `mix`, `balance`, `stats` and `to-parquet`."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from caldera.cli import app
from caldera.conversation import read_conversations


def call(*words: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Write a table of five captions, one of whose images is missing."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / "photos" / f"{number}.jpg").touch()
    rows = (f"{number}.jpg,A red dog number {number}." for number in range(5))
    path = tmp_path / "captions.csv"
    path.write_text("\n".join(("image,caption", *rows)))
    return path


def test_import_writes_a_file_and_lists_skipped_items(table: Path) -> None:
    """The output has the counts, the list of skipped items, and the next command."""
    out = table.with_name("pretrain.json")
    words = (
        "data",
        "import",
        "captions",
        table,
        "--images",
        table.parent / "photos",
        "--out",
        out,
    )

    rejected, accepted = call(*words), call(*words, "--max-bad-fraction", "0.2")

    assert rejected.exit_code == 3
    assert "4.jpg does not exist; check --images" in rejected.stderr
    assert accepted.exit_code == 0, accepted.stderr
    assert f"{out}: 4 records, 8 turns, 4 images, of 5 in total; skipped: 1" in accepted.stderr
    skipped = table.with_name("pretrain.skipped.jsonl")
    assert f"1 skipped items are listed in {skipped}" in accepted.stderr
    assert f"next: caldera data check {out}" in accepted.stderr
    assert accepted.stdout == ""
    images = [conversation.images[0] for conversation in read_conversations(out)]
    assert images == [f"photos/{number}.jpg" for number in range(4)]


def test_import_prints_its_fixes(tmp_path: Path) -> None:
    """Each kind of fix is printed with its count."""
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"id": number, "model": "", "conversations": turns} for number in range(3)]
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    result = call("data", "import", "llava", tmp_path / "mix.json", "--out", tmp_path / "out.json")
    assert result.exit_code == 0, result.stderr
    assert "fixed: 3 x field 'model' removed" in result.stderr


def test_sets_are_mixed_and_balanced(table: Path) -> None:
    """An imported file is mixed, and the mix balanced; --json prints the reports."""
    folder = table.parent
    first, mixed, out = (folder / f"{name}.json" for name in ("pretrain", "mix", "balanced"))
    call(
        "data",
        "import",
        "captions",
        table,
        "--no-check-images",
        "--images",
        folder / "photos",
        "--out",
        first,
    )

    mix = call("data", "mix", f"{first}:3", "--out", mixed, "--json")
    balance = call("data", "balance", mixed, "--out", out, "--max-per-phrase", "4", "--json")

    assert mix.exit_code == 0, mix.stderr
    assert json.loads(mix.stdout)["sources"][0]["rows"] == 15
    assert f"{mixed}: 15 rows, 5 images" in mix.stderr
    assert balance.exit_code == 0, balance.stderr
    report = json.loads(balance.stdout)
    assert report["records"] == 15
    assert report["selected"] == len(read_conversations(out)) < 15
    assert len(report["bins"]) == 9
    assert call("data", "mix", first, first, "--out", mixed).stdout == ""


def test_statistics_and_parquet_files_are_written(table: Path) -> None:
    """`stats` writes a page next to the file and prints JSON; to-parquet writes a folder and lists skipped items."""
    data, hub = table.with_name("data.json"), table.with_name("hub")
    for number in range(4):
        Image.new("RGB", (5, 7), (number, 9, 9)).save(table.parent / "photos" / f"{number}.jpg")
    photos = ("--no-check-images", "--images", table.parent / "photos")
    call("data", "import", "captions", table, *photos, "--out", data)

    stats = call("data", "stats", data, "--json")
    rejected = call("data", "to-parquet", data, "--out", hub)
    export = call("data", "to-parquet", data, "--out", hub, "--max-bad-fraction", "0.2")

    assert stats.exit_code == 0, stats.stderr
    assert json.loads(stats.stdout)["records"] == 5
    page = table.with_name("data.stats.html")
    assert f"5 records, 5 images, skipped: 0; charts in {page}" in stats.stderr
    assert page.read_text().startswith("<!doctype html>")
    assert rejected.exit_code == 3
    assert export.exit_code == 0, export.stderr
    assert f"{hub}: 4 rows, 4 images, 1 files" in export.stderr
    assert table.with_name("hub.skipped.jsonl").read_text().count("4.jpg does not exist") == 1


@pytest.mark.parametrize(
    "command", ["data import", "data mix", "data balance", "data stats", "data to-parquet"]
)
def test_every_command_shows_examples_first(command: str) -> None:
    """The help of each command has an example before its options."""
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"caldera {command}" in result.stdout.split("Options")[0]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("import vqq x --out y", 2, "no importer is called 'vqq'; did you mean 'vqa'?"),
        (
            "import vqa x --out y --answer-prompt al",
            2,
            "no choice of --answer-prompt is called 'al'",
        ),
        ("import vqa nowhere --out y", 3, "cannot read nowhere: it does not exist"),
        ("import scienceqa x --out y --prompt-layout QCM", 2, "did you mean 'QCM-"),
        ("import scienceqa x --out y", 3, "give the folder of problems.json and pid_splits.json"),
        ("import captions x.csv --out y", 3, "cannot read x.csv"),
        ("import coco x --out y", 3, "no annotations: x/annotations has no captions_*.json"),
        ("import llava x.json --out y", 3, "cannot read x.json"),
        ("mix a.json:no --out y", 2, "a.json:no: the weight is 'no'; write a number above 0"),
        ("mix a.json --out y", 3, "cannot read a.json"),
        ("balance a.json --out y", 3, "cannot read a.json"),
        ("stats a.json", 3, "cannot read a.json"),
        ("to-parquet a.json --out y", 3, "cannot read a.json"),
    ],
)
def test_a_wrong_command_is_one_line_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, code: int, message: str
) -> None:
    """The message names the fix, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    result = call("data", *words.split())
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
