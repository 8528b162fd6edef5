"""The commands about data sets, called as the program calls them: what they write, say, and answer to a mistake."""

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
    """A table of five captions; one of its images is missing."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / "photos" / f"{number}.jpg").touch()
    rows = (f"{number}.jpg,A red dog number {number}." for number in range(5))
    path = tmp_path / "captions.csv"
    path.write_text("\n".join(("image,caption", *rows)))
    return path


def test_import_writes_says_and_lists(table: Path) -> None:
    """A data file, its numbers, the list of what was left out, and what to do next."""
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

    refused, done = call(*words), call(*words, "--max-bad", "0.2")

    assert refused.exit_code == 3
    assert "4.jpg does not exist; check --images" in refused.stderr
    assert done.exit_code == 0, done.stderr
    assert f"{out}: 4 records, 8 turns, 4 images, of 5 met; bad: 1" in done.stderr
    assert f"what was left out is listed in {table.with_name('pretrain.bad.jsonl')}" in done.stderr
    assert f"next: caldera data check {out}" in done.stderr
    assert done.stdout == ""
    assert [one.images[0] for one in read_conversations(out)] == [f"photos/{at}.jpg" for at in range(4)]  # fmt: skip


def test_import_tells_what_it_changed(tmp_path: Path) -> None:
    """Each kind of change with its number."""
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"id": number, "model": "", "conversations": turns} for number in range(3)]
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    done = call("data", "import", "llava", tmp_path / "mix.json", "--out", tmp_path / "out.json")
    assert done.exit_code == 0, done.stderr
    assert "changed: 3 x field 'model' left out" in done.stderr


def test_sets_are_mixed_and_balanced(table: Path) -> None:
    """What import wrote goes into a mix, and the mix through the rule; figures are printed as JSON where asked for."""
    folder = table.parent
    first, mixed, out = (folder / f"{name}.json" for name in ("pretrain", "mix", "balanced"))
    call(
        "data",
        "import",
        "captions",
        table,
        "--no-find",
        "--images",
        folder / "photos",
        "--out",
        first,
    )

    mix = call("data", "mix", f"{first}:3", "--out", mixed, "--json")
    balance = call("data", "balance", mixed, "--out", out, "--most", "4", "--json")

    assert mix.exit_code == 0, mix.stderr
    assert json.loads(mix.stdout)["sources"][0]["written"] == 15
    assert f"{mixed}: 15 rows, 5 images" in mix.stderr
    assert balance.exit_code == 0, balance.stderr
    figures = json.loads(balance.stdout)
    assert figures["records"] == 15
    assert figures["kept"] == len(read_conversations(out)) < 15
    assert len(figures["bands"]) == 9
    assert call("data", "mix", first, first, "--out", mixed).stdout == ""


def test_a_set_is_drawn_and_exported(table: Path) -> None:
    """A page beside the file, figures as JSON, and a folder for the Hub; what is left out is listed."""
    data, hub = table.with_name("data.json"), table.with_name("hub")
    for number in range(4):
        Image.new("RGB", (5, 7), (number, 9, 9)).save(table.parent / "photos" / f"{number}.jpg")
    photos = ("--no-find", "--images", table.parent / "photos")
    call("data", "import", "captions", table, *photos, "--out", data)

    stats = call("data", "stats", data, "--json")
    refused = call("data", "export", data, "--parquet", hub)
    export = call("data", "export", data, "--parquet", hub, "--max-bad", "0.2")

    assert stats.exit_code == 0, stats.stderr
    assert json.loads(stats.stdout)["records"] == 5
    page = table.with_name("data.stats.html")
    assert f"5 records, 5 images, bad: 0; drawn in {page}" in stats.stderr
    assert page.read_text().startswith("<!doctype html>")
    assert refused.exit_code == 3
    assert export.exit_code == 0, export.stderr
    assert f"{hub}: 4 rows, 4 shown images, 1 files" in export.stderr
    assert table.with_name("hub.bad.jsonl").read_text().count("4.jpg does not exist") == 1


@pytest.mark.parametrize(
    "command", ["data import", "data mix", "data balance", "data stats", "data export"]
)
def test_every_command_shows_examples_first(command: str) -> None:
    """Help of each command has an example before its options."""
    done = call(*command.split(), "--help")
    assert done.exit_code == 0
    assert f"caldera {command}" in done.stdout.split("Options")[0]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("import vqq x --out y", 2, "no importer is called 'vqq'; did you mean 'vqa'?"),
        ("import vqa x --out y --sentences al", 2, "no choice of --sentences is called 'al'"),
        ("import vqa nowhere --out y", 3, "cannot read nowhere: it does not exist"),
        ("import scienceqa x --out y --form QCM", 2, "did you mean 'QCM-"),
        ("import scienceqa x --out y", 3, "give the folder of problems.json and pid_splits.json"),
        ("import captions x.csv --out y", 3, "cannot read x.csv"),
        ("import coco x --out y", 3, "no annotations: x/annotations has no captions_*.json"),
        ("import llava x.json --out y", 3, "cannot read x.json"),
        ("mix a.json:no --out y", 2, "a.json:no: the weight is 'no'; write a number above 0"),
        ("mix a.json --out y", 3, "cannot read a.json"),
        ("balance a.json --out y", 3, "cannot read a.json"),
        ("stats a.json", 3, "cannot read a.json"),
        ("export a.json --parquet y", 3, "cannot read a.json"),
    ],
)
def test_a_mistake_is_answered_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, code: int, message: str
) -> None:
    """What is wrong and what to do, and the code that says of which kind it is."""
    monkeypatch.chdir(tmp_path)
    done = call("data", *words.split())
    assert done.exit_code == code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
