"""The cache of the Hub: its lists of files, what counts as complete, and what is damaged in it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.files.hub_cache import HubName
from caldera.files.hub_errors import HubError, HubUnreachableError
from tests.files.conftest import MODEL, WEIGHTS, fetch, on
from tests.hub_server import Answer, HubServer, error, sha256, use_hub


def test_the_cache_is_that_of_the_hubs_own_client(server: HubServer, cache: Path) -> None:
    """`huggingface_hub` finds the files without a download, and lists no fault of the cache."""
    from huggingface_hub import hf_hub_download, scan_cache_dir

    folder = fetch().folder
    file = hf_hub_download("org/model", "model.safetensors", local_files_only=True, cache_dir=cache)
    assert Path(file) == folder / "model.safetensors"
    info = scan_cache_dir(cache)
    assert not info.warnings
    assert [repo.repo_id for repo in info.repos] == ["org/model"]


def test_a_new_commit_is_downloaded_and_an_old_one_stays(server: HubServer) -> None:
    """Only changed files are transferred; a pinned commit needs no request."""
    old = fetch()
    repo = server.repos["model", "org/model"]
    repo.commit({**MODEL, "tokenizer.json": b'{"new": 1}'})
    server.requests.clear()
    new = fetch()
    assert new.commit == repo.refs["main"] != old.commit
    fetched = [request.path for request in server.requests if "/resolve/" in request.path]
    assert len(fetched) == 1
    assert fetched[0].endswith("/tokenizer.json")
    server.requests.clear()
    assert fetch(HubName("org/model", old.commit)).folder == old.folder
    assert server.requests == []


def test_offline_uses_what_is_complete(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An interrupted download of a newer commit does not replace the older one; without any it is an error."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"org/model is not in the cache .*HF_HUB_OFFLINE"):
        fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    old = fetch()
    changed = {**MODEL, "model.safetensors": WEIGHTS[::-1], "config.json": b'{"a": 1}'}
    server.repos["model", "org/model"].commit(changed)
    server.faults.append(on("/cdn/", lambda: Answer(WEIGHTS[::-1], cut=0)))
    with pytest.raises(HubUnreachableError):
        fetch()
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch().folder == old.folder
    assert server.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_hub(monkeypatch, "http://127.0.0.1:1", old.folder.parents[2])
    assert fetch().folder == old.folder
    assert f"using the copy in the cache, {old.pinned}" in caplog.text
    with pytest.raises(
        HubUnreachableError, match=r"cannot be reached \(ConnectError.*check the network"
    ):
        fetch(HubName("org/other"))


def pinned(server: HubServer, repo_id: str = "org/model") -> HubName:
    """Return the name of a repository's current commit."""
    return HubName(repo_id, server.repos["model", repo_id].refs["main"])


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid requests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_what_others_left_out_is_fetched_for_a_commit(server: HubServer) -> None:
    """Another client has fetched two files; the third is fetched once, and then no request is made."""
    from huggingface_hub import hf_hub_download

    name = pinned(server)
    for file in ("config.json", "model.safetensors"):
        hf_hub_download("org/model", file, revision=name.revision)
    server.requests.clear()
    assert (fetch(name).folder / "tokenizer.json").read_bytes() == MODEL["tokenizer.json"]
    assert sum("/resolve/" in request.path for request in server.requests) == 1
    server.requests.clear()
    fetch(name)
    assert server.requests == []


INTERRUPTED = {
    "parts": {
        "config.json": b"{}",
        "adapter_config.json": b"{}",
        "mm_projector.bin": b"a",
        "non_lora_trainables.bin": b"b",
        "adapter_model.bin": WEIGHTS,
    },
    "two formats": {**MODEL, "pytorch_model.bin": b"other"},
}
"""Files of a model by case; the download ends before the file with WEIGHTS."""


@pytest.mark.parametrize("case", INTERRUPTED)
def test_an_interrupted_download_of_a_commit_is_continued(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """What is there is not taken for a smaller model; offline, the error names what is missing."""
    from huggingface_hub import hf_hub_download

    server.add("org/parts", INTERRUPTED[case])
    name = pinned(server, "org/parts")
    if case == "two formats":
        hf_hub_download("org/parts", "pytorch_model.bin", revision=name.revision)
    server.faults.append(on(sha256(WEIGHTS), lambda: error(404, "EntryNotFound")))
    with pytest.raises(HubError, match="but does not have it"):
        fetch(name)
    server.faults.clear()
    [missing] = [path for path, content in INTERRUPTED[case].items() if content == WEIGHTS]
    with monkeypatch.context() as offline:
        go_offline(offline)
        with pytest.raises(HubError, match=rf"1 of \d files are missing, such as {missing}, and"):
            fetch(name)
    assert (fetch(name).folder / missing).read_bytes() == WEIGHTS


def test_a_cache_without_a_list_is_used_offline_with_a_warning(
    server: HubServer,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As earlier versions filled it: config and weights are needed, and whether more exists is not known."""
    folder = fetch().folder
    [stored] = cache.rglob("trees/*.json")
    stored.unlink()
    (folder / "tokenizer.json").unlink()
    with monkeypatch.context() as offline:
        go_offline(offline)
        snapshot = fetch()
        assert [file.path for file in snapshot.files] == ["config.json", "model.safetensors"]
        assert "not the Hub's list of them: files besides these, such as a tokenizer" in caplog.text
        (folder / "config.json").unlink()
        with pytest.raises(HubError, match=r"of these alone, .* has no config.json; and --offline"):
            fetch()
    assert {path.name for path in fetch(pinned(server)).folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert stored.is_file()


def test_the_lists_are_those_of_the_hubs_own_client(server: HubServer) -> None:
    """Each reads what the other has written; a list that cannot be read is asked for again."""
    import huggingface_hub

    if not hasattr(huggingface_hub, "get_cached_repo_tree"):
        pytest.skip("huggingface_hub 1 stores no lists")
    name = pinned(server)
    folder = Path(huggingface_hub.snapshot_download("org/model", revision=name.revision))
    server.requests.clear()
    snapshot = fetch(name)
    assert snapshot.folder == folder
    assert server.requests == []
    stored = folder.parents[1] / "trees" / f"{name.revision}.json"
    for damaged in (b"{", b'{"format_version": 9}', b"[]", b"[" * 100_000):
        stored.write_bytes(damaged)
        server.requests.clear()
        assert fetch(name) == snapshot
        assert len(server.requests) == 1
        assert stored.read_bytes() != damaged
    server.add("org/other", MODEL)
    other = pinned(server, "org/other")
    listed = fetch(other).listing.files
    files = huggingface_hub.get_cached_repo_tree("org/other", revision=other.revision)
    assert {(file.path, file.size, file.blob_id) for file in files} == {
        (file.path, file.size, file.blob_id) for file in listed
    }


def point_elsewhere(folder: Path) -> None:
    """Let a file of the snapshot be a link to content that is gone."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("../../blobs/gone")


def cut_content(folder: Path) -> None:
    """Shorten content, as a crash of the machine may."""
    (folder / "model.safetensors").resolve().write_bytes(WEIGHTS[:10])


def move_snapshots(folder: Path) -> None:
    """Let the folder of all snapshots be a link to another depth."""
    snapshots, target = folder.parent, folder.parents[3] / "other" / "disk" / "snapshots"
    target.parent.mkdir(parents=True)
    (folder / "config.json").unlink()
    snapshots.rename(target)
    snapshots.symlink_to(target)
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize("damage", [point_elsewhere, cut_content, move_snapshots])
def test_what_is_damaged_in_the_cache_is_mended(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    """A file counts if it is there with its size; offline it is missing, online it is put in place."""
    folder = fetch().folder
    damage(folder)
    with monkeypatch.context() as offline:
        go_offline(offline)
        with pytest.raises(HubError, match=r"of 3 files are missing"):
            fetch()
    fetch()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (folder / name).read_bytes() == MODEL[name]


def test_a_folder_in_place_of_a_file_is_named(server: HubServer) -> None:
    """It is not removed, as it may hold what a user needs."""
    folder = fetch().folder
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(HubError, match=r"config.json is a folder in place of a file; remove it"):
        fetch()
