"""Data sets named on the Hub: what of them is downloaded, imported, and recorded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from caldera.conversation import read_conversations
from caldera.datasets.hub_dataset import parse_hub_dataset
from caldera.datasets.importer import ImportOptions
from caldera.datasets.origins import HubOrigin, read_origins
from caldera.datasets.registry import import_dataset
from caldera.errors import CalderaError
from caldera.files.hub_errors import HubError
from tests.datasets.hub_files import image_bytes, records, table
from tests.hub_server import TOKEN, Answer, HubServer, Repo, Request, error, use_hub

NAME = "atelier/talks"


@pytest.fixture
def hub(loopback: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub that this process uses."""
    with HubServer() as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        yield server


def add(hub: HubServer, files: dict[str, bytes]) -> Repo:
    """Add a data set."""
    return hub.add(NAME, files, repo_type="dataset")


def downloaded(hub: HubServer) -> set[str]:
    """Return the files that were asked for."""
    return {
        request.path.partition("/resolve/")[2].partition("/")[2]
        for request in hub.requests
        if "/resolve/" in request.path
    }


def run(source: str, tmp_path: Path, kind: str = "llava", **options: Any) -> list[str]:  # noqa: ANN401
    """Import a data set to `out.json`, and return the answers of its records."""
    import_dataset(kind, source, tmp_path / "out.json", ImportOptions(**options))
    return [record.turns[-1].text for record in read_conversations(tmp_path / "out.json")]


def test_the_chosen_file_is_imported_and_its_commit_recorded(
    hub: HubServer, tmp_path: Path
) -> None:
    """Only this file is downloaded; images are those of the user; a revision is that of its name."""
    files = {"README.md": b"# Talks", "new.json": records("dog.png"), "old.json": records("x.png")}
    repo = add(hub, files)
    first = repo.refs["main"]
    latest = repo.commit({**files, "new.json": records("cat.png")})
    (tmp_path / "photos").mkdir()
    for name in ("dog", "cat"):
        (tmp_path / "photos" / f"{name}.png").write_bytes(image_bytes(7))
    images = tmp_path / "photos"
    assert run(f"{NAME}:new.json", tmp_path, images=images) == ["It is cat.png."]
    assert downloaded(hub) == {"new.json"}
    out = tmp_path / "out.json"
    assert read_origins(out) == (HubOrigin(dataset=NAME, revision=latest, file="new.json"),)
    assert run(f"{NAME}@{first}:new.json", tmp_path, images=images) == ["It is dog.png."]
    assert read_origins(out)[0].revision == first


def test_several_files_are_listed_to_choose_from(hub: HubServer, tmp_path: Path) -> None:
    """With sizes; nothing is downloaded, and nothing written."""
    add(hub, {"a.json": b"[]", "b.jsonl": b"{}", "data/train.parquet": b"", "README.md": b""})
    with pytest.raises(HubError) as failed:
        run(NAME, tmp_path)
    assert (
        str(failed.value)
        == f"{NAME} has several data files; choose one: {NAME}:FILE; it has a.json (0.0 MB), "
        "b.jsonl (0.0 MB), data (0.0 MB)"
    )
    assert downloaded(hub) == set()
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"{NAME}:c.json", "has no file that `data import llava` reads; it has a.json"),
        ("atelier/gone", "has no data set of this name, or it is private, and no token is set"),
        (f"{NAME}@{'0' * 40}", "no such revision"),
        ("hf://models/atelier/talks", "is the address of a model"),
        ("words/lm", "it is a model, needed is a data set"),
    ],
)
def test_what_cannot_be_found_is_named(
    hub: HubServer, tmp_path: Path, source: str, message: str
) -> None:
    """A missing file, data set or revision, and a model in place of a data set."""
    add(hub, {"a.json": records("x.png"), "b.json": records("x.png")})
    hub.add("words/lm", {"config.json": b"{}"})
    with pytest.raises(CalderaError, match=message):
        run(source, tmp_path)


def test_images_beside_a_file_are_downloaded_with_it(hub: HubServer, tmp_path: Path) -> None:
    """Those in its folder, unless the user has them; archives are only mentioned."""
    add(
        hub,
        {
            "set/data.json": records("images/0.png"),
            "set/images/0.png": image_bytes(1),
            "other/1.png": image_bytes(2),
            "images.zip": b"PK",
        },
    )
    assert run(NAME, tmp_path) == ["It is images/0.png."]
    assert downloaded(hub) == {"set/data.json", "set/images/0.png"}
    [record] = read_conversations(tmp_path / "out.json")
    assert (tmp_path / record.images[0]).read_bytes() == image_bytes(1)


def test_parquet_with_images_is_imported_by_configuration_and_split(
    hub: HubServer, tmp_path: Path
) -> None:
    """Only the shards of the split are downloaded; images are written; the folder is the origin."""
    repo = add(
        hub,
        {
            "ai2d/train-00000-of-00002.parquet": table("a", "b"),
            "ai2d/train-00001-of-00002.parquet": table("c"),
            "ai2d/test-00000-of-00001.parquet": table("d"),
            "vqa/train-00000-of-00001.parquet": table("e"),
        },
    )
    with pytest.raises(HubError, match=r"several data files.*ai2d \(.* MB\), vqa \("):
        run(NAME, tmp_path)
    with pytest.raises(HubError, match="has the splits test, train; choose one with --split"):
        run(f"{NAME}:ai2d", tmp_path)
    assert run(f"{NAME}:ai2d", tmp_path, split="train") == ["a", "b", "c"]
    assert downloaded(hub) == {f"ai2d/train-0000{number}-of-00002.parquet" for number in (0, 1)}
    assert read_origins(tmp_path / "out.json") == (
        HubOrigin(dataset=NAME, revision=repo.refs["main"], file="ai2d"),
    )
    record = read_conversations(tmp_path / "out.json")[1]
    assert Image.open(tmp_path / record.images[0]).getpixel((0, 0)) == (10, 9, 99)
    assert run(f"{NAME}:vqa", tmp_path) == ["e"]


def test_other_importers_take_names_too(hub: HubServer, tmp_path: Path) -> None:
    """Captions of a table, and a folder of images by class."""
    add(
        hub,
        {
            "captions.csv": b"file_name,text\n0.png,A dog.\n",
            "0.png": image_bytes(1),
            "photos/cat/1.png": image_bytes(2),
            "photos/dog/2.png": image_bytes(3),
        },
    )
    assert run(f"{NAME}:captions.csv", tmp_path, "captions") == ["A dog."]
    assert "0.png" in downloaded(hub)
    answers = run(f"{NAME}:photos", tmp_path, "folders")
    assert any("cat" in answer for answer in answers)
    assert read_origins(tmp_path / "out.json")[0].file == "photos"


def test_a_local_import_has_no_origin(hub: HubServer, tmp_path: Path) -> None:
    """A file on disk is never asked for on the Hub, and an earlier record is removed."""
    add(hub, {"talks.json": records("0.png"), "0.png": image_bytes(1)})
    run(NAME, tmp_path)
    assert read_origins(tmp_path / "out.json")
    num_requests = len(hub.requests)
    (tmp_path / "own.json").write_bytes(records("1.png"))
    (tmp_path / "1.png").write_bytes(image_bytes(1))
    assert run(str(tmp_path / "own.json"), tmp_path) == ["It is 1.png."]
    assert read_origins(tmp_path / "out.json") == ()
    assert len(hub.requests) == num_requests


def test_what_is_a_name_and_what_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses are names; existing files, and what looks like one, are paths."""
    monkeypatch.chdir(tmp_path)
    parsed = parse_hub_dataset("hf://datasets/atelier/talks@v1:a/b.json")
    assert parsed is not None
    assert (parsed.name.repo_id, parsed.name.revision, parsed.file) == (NAME, "v1", "a/b.json")
    web = parse_hub_dataset("https://huggingface.co/datasets/atelier/talks")
    assert web is not None
    assert (web.name.repo_id, web.file) == (NAME, "")
    (tmp_path / "local").mkdir()
    for text in ("data.json", "sub/data.json", "local/set", "/tmp/a/b", "./a/b", ""):
        assert parse_hub_dataset(text) is None


def test_private_data_needs_a_token(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it, the data set is read as any other."""
    add(hub, {"talks.json": records("0.png"), "0.png": image_bytes(1)}).private = True
    with pytest.raises(HubError, match="or it is private, and no token is set"):
        run(NAME, tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run(NAME, tmp_path) == ["It is 0.png."]


def test_a_commit_that_was_downloaded_in_part_is_completed(hub: HubServer, tmp_path: Path) -> None:
    """After an interruption, and where more is asked for than before; then no request is made."""
    files = {
        "talks.json": records("0.png", "1.png"),
        "0.png": image_bytes(1),
        "1.png": image_bytes(2),
    }
    source = f"{NAME}@{add(hub, files).refs['main']}"
    images = tmp_path / "photos"
    images.mkdir()
    for name in ("0.png", "1.png"):
        (images / name).write_bytes(files[name])
    run(source, tmp_path, images=images)
    assert downloaded(hub) == {"talks.json"}

    def fault(request: Request) -> Answer | None:
        return error(404, "EntryNotFound") if request.path.endswith("1.png") else None

    hub.faults.append(fault)
    with pytest.raises(HubError, match="but does not have it"):
        run(source, tmp_path)
    hub.faults.clear()
    assert len(run(source, tmp_path)) == 2
    assert downloaded(hub) == files.keys()
    hub.requests.clear()
    assert len(run(source, tmp_path)) == 2
    assert hub.requests == []


def test_offline_a_part_of_a_data_set_is_no_data_set(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices and errors are those made online; without the Hub's list, what is in the cache may be a part."""
    add(
        hub,
        {
            f"{split}/{name}/{number}.png": image_bytes(number)
            for split in ("one", "two")
            for name in ("cat", "dog")
            for number in (1, 2)
        },
    )
    run(f"{NAME}:one", tmp_path, "folders")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run(f"{NAME}:one", tmp_path, "folders")
    with pytest.raises(HubError, match=r"not completely in the cache .*: 4 of 8 files are missing"):
        run(NAME, tmp_path, "folders")
    with pytest.raises(HubError, match=r"has no file that `data import llava` reads; it has one/"):
        run(NAME, tmp_path)
    [stored] = (tmp_path / "cache").rglob("trees/*.json")
    stored.unlink()
    with pytest.raises(HubError, match=r"not the Hub's list of them: whether they are all is not"):
        run(f"{NAME}:one", tmp_path, "folders")
