"""Commands `data import`, `mix`, `balance`, `stats` and `to-parquet`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from caldera.conversation import read_conversations
from tests.cli.conftest import CommandResult
from tests.hub_server import HubServer, use_hub

Call = Callable[..., CommandResult]


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


def test_import_writes_a_file_and_lists_skipped_items(
    call: Call, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
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

    assert rejected.returncode == 3
    assert "4.jpg does not exist; check --images" in rejected.stderr
    assert accepted.returncode == 0, accepted.stderr
    assert f"{out}: 4 records, 8 turns, 4 images, of 5 in total" in accepted.stderr
    skipped = table.with_name("pretrain.skipped.jsonl")
    assert f"skipped 1 of 5 items, listed in {skipped}: 1 x " in caplog.text
    assert f"next: caldera data check {out}" in accepted.stderr
    assert accepted.stdout == ""
    images = [conversation.images[0] for conversation in read_conversations(out)]
    assert images == [f"photos/{number}.jpg" for number in range(4)]


def test_import_tells_its_changes(
    call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each kind of change is told with its count."""
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"id": number, "model": "x", "conversations": turns} for number in range(3)]
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    result = call("data", "import", "llava", tmp_path / "mix.json", "--out", tmp_path / "out.json")
    assert result.returncode == 0, result.stderr
    assert f"changed 3, listed in {tmp_path / 'out.skipped.jsonl'}: 3 x field" in caplog.text


def test_sets_are_mixed_and_balanced(call: Call, table: Path) -> None:
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

    assert mix.returncode == 0, mix.stderr
    assert json.loads(mix.stdout)["sources"][0]["rows"] == 15
    assert f"{mixed}: 15 rows, 5 images" in mix.stderr
    assert balance.returncode == 0, balance.stderr
    report = json.loads(balance.stdout)
    assert report["records"] == 15
    assert report["selected"] == len(read_conversations(out)) < 15
    assert len(report["bins"]) == 9
    assert call("data", "mix", first, first, "--out", mixed).stdout == ""


def test_statistics_and_parquet_files_are_written(call: Call, table: Path) -> None:
    """`stats` writes a page next to the file and prints JSON; to-parquet writes a folder and lists skipped items."""
    data, hub = table.with_name("data.json"), table.with_name("hub")
    for number in range(4):
        Image.new("RGB", (5, 7), (number, 9, 9)).save(table.parent / "photos" / f"{number}.jpg")
    photos = ("--no-check-images", "--images", table.parent / "photos")
    call("data", "import", "captions", table, *photos, "--out", data)

    stats = call("data", "stats", data, "--json")
    rejected = call("data", "to-parquet", data, "--out", hub)
    export = call("data", "to-parquet", data, "--out", hub, "--max-bad-fraction", "0.2")

    assert stats.returncode == 0, stats.stderr
    assert json.loads(stats.stdout)["records"] == 5
    page = table.with_name("data.stats.html")
    assert f"5 records, 5 images, skipped: 0; charts in {page}" in stats.stderr
    assert page.read_text().startswith("<!doctype html>")
    assert rejected.returncode == 3
    assert export.returncode == 0, export.stderr
    assert f"{hub}: 4 rows, 4 images, 1 files" in export.stderr
    assert table.with_name("hub.skipped.jsonl").read_text().count("4.jpg does not exist") == 1


def test_a_page_lists_invalid_records_and_writes_where_it_is_told(
    call: Call, tmp_path: Path
) -> None:
    """An invalid record ends no command that shows it; with --out nothing is written into the data's folder."""
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    (tmp_path / "theirs").mkdir()
    data = tmp_path / "theirs" / "data.json"
    data.write_text(json.dumps([{"id": "a", "conversations": turns}, {"id": "b"}]))
    result = call("data", "page", data, "--out", tmp_path / "mine.html")
    assert result.returncode == 0, result.stderr
    assert "1 of 1 records, 0 images, with problems: 0, skipped: 1" in result.stderr
    assert [*data.parent.iterdir()] == [data]
    assert (tmp_path / "mine.check.skipped.jsonl").read_text().count('"skipped"') == 1


def test_a_data_set_is_imported_by_its_name_on_the_hub(
    call: Callable[..., CommandResult],
    tmp_path: Path,
    loopback: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commit is recorded; the second import needs no network."""
    records = [{"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]}]
    words = ("data", "import", "llava", "atelier/talks:talks.json", "--out", tmp_path / "out.json")
    with HubServer() as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "cache")
        files = {"talks.json": json.dumps(records).encode(), "more.json": b"[]"}
        commit = hub.add("atelier/talks", files, repo_type="dataset").refs["main"]
        first = call(*words)
    assert first.returncode == 0, first.stderr
    assert commit in (tmp_path / "out.origins.json").read_text()
    second = call(*words, "--offline")
    assert second.returncode == 0, second.stderr
