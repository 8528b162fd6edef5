"""Names, snapshots and downloads of the Hugging Face Hub, against a loopback server and the real client."""

import json
import logging
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.errors import CalderaError, OutputError, UsageError
from caldera.files.hub import (
    HubName,
    Snapshot,
    download,
    find_snapshot,
    hub_source,
    parse_hub_name,
)
from caldera.files.hub_errors import HubError, HubUnreachableError
from caldera.formats.hub_models import choose_model_files
from caldera.progress import LogProgress, NoProgress
from tests.hub_server import TOKEN, Answer, Fault, HubServer, Request, error, sha256, use_hub

WEIGHTS = bytes(range(256)) * 1200
MODEL = {
    "config.json": b'{"model_type": "llava"}',
    "tokenizer.json": b"{}",
    "modeling_llava.py": b"raise SystemExit",
    "README.md": b"# A model",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "tf_model.h5": b"tensorflow",
    "consolidated.00.pth": b"pickle",
}
NAME = HubName("org/model")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return the folder of the Hub's cache."""
    return tmp_path / "hub"


@pytest.fixture
def server(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """Return a Hub with the model `org/model`."""
    monkeypatch.chdir(tmp_path)
    hub.add("org/model", MODEL)
    return hub


def fetch(name: HubName = NAME) -> Snapshot:
    """Find and download a model."""
    snapshot = find_snapshot(name, choose_model_files)
    download([snapshot], NoProgress())
    return snapshot


def on(part: str, answer: Callable[[], Answer], times: int = 1000) -> Fault:
    """Return a fault in the first `times` requests whose path contains `part`."""
    remaining = [times]

    def fault(request: Request) -> Answer | None:
        if part not in request.path or not remaining[0]:
            return None
        remaining[0] -= 1
        return answer()

    return fault


TEXTS = {
    "llava-hf/llava-1.5-7b-hf": ("llava-hf/llava-1.5-7b-hf", None),
    "org/name@v1.0": ("org/name", "v1.0"),
    "org/name@refs/pr/3": ("org/name", "refs/pr/3"),
    "hf://org/name": ("org/name", None),
    "hf://here/name@main": ("here/name", "main"),
    "https://huggingface.co/org/name/tree/v2": ("org/name", "v2"),
    "https://hf.co/org/name/": ("org/name", None),
}
PATHS = [
    "./org/name", "../org/name", "/org/name", "~/org/name", "org/name/", "a/b/c", "name", "org/model.gguf",
    "org/data.json", "org/x.py", "here/name", "here/new", "org/name@", "@org/name", "", "org/a..b", "org/a@b/../c",
    "https://example.org/name", "org/na me", "org\\name", "org/name@two words",
]  # fmt: skip


def test_a_text_is_a_name_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exists, lies in a folder that exists, or looks like a path or a file, is never a name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "name").mkdir(parents=True)
    for text, (repo_id, revision) in TEXTS.items():
        assert parse_hub_name(text) == HubName(repo_id, revision)
    for text in PATHS:
        assert parse_hub_name(text) is None, text
    assert parse_hub_name("hf://datasets/org/name", "dataset") == HubName(
        "org/name", None, "dataset"
    )
    with pytest.raises(UsageError, match=r"is the address of a dataset; needed is a model"):
        parse_hub_name("https://huggingface.co/datasets/org/name")


def test_only_the_files_of_a_model_are_downloaded(
    server: HubServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No code, no other formats; the size and the free disk are logged first; a second time one request is made."""
    caplog.set_level(logging.INFO, "caldera")
    snapshot = find_snapshot(NAME, choose_model_files)
    download([snapshot], LogProgress())
    commit = server.repos["model", "org/model"].refs["main"]
    assert snapshot.folder == cache / "models--org--model" / "snapshots" / commit
    names = {path.name for path in snapshot.folder.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (snapshot.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub_source(snapshot.folder) == f"org/model@{commit}"
    first = caplog.messages[0]
    assert first.startswith(f"org/model@{commit}: 3 files to download, 0.3 MB; ")
    assert f"are free in {cache}" in first
    server.requests.clear()
    assert fetch().folder == snapshot.folder
    assert [request.path for request in server.requests] == ["/api/models/org/model?blobs=true"]


def test_the_cache_is_that_of_the_hubs_own_client(server: HubServer, cache: Path) -> None:
    """`huggingface_hub` finds the files without a download, and lists no fault of the cache."""
    from huggingface_hub import hf_hub_download, scan_cache_dir

    folder = fetch().folder
    file = hf_hub_download("org/model", "model.safetensors", local_files_only=True, cache_dir=cache)
    assert Path(file) == folder / "model.safetensors"
    info = scan_cache_dir(cache)
    assert not info.warnings
    assert [repo.repo_id for repo in info.repos] == ["org/model"]


def test_safetensors_come_before_pickles_and_all_parts_of_them(server: HubServer) -> None:
    """An index names the parts of the weights; without safetensors, pickles are taken."""
    parts = {f"pytorch_model-0000{n}-of-00002.bin": b"%d" % n for n in (1, 2)}
    files = {"config.json": b"{}", "pytorch_model.bin.index.json": b"{}", **parts}
    server.add("org/pickles", {**files, "flax_model.msgpack": b"", "optimizer.bin": b""})
    folder = fetch(HubName("org/pickles")).folder
    assert {path.name for path in folder.iterdir()} == files.keys()


LISTING_FAULTS: dict[str, tuple[str, Fault | dict[str, bytes] | None, str]] = {
    "missing": ("org/absent", None, r"has no model of this name, or it is private, and no token is set"),
    "missing revision": ("org/model@v9", None, r"cannot read org/model@v9: it has no such revision; http\S+/tree/main"),
    "a data set": ("org/photos", None, r"it is a data set, needed is a model"),
    "a rejected token": (
        "org/model",
        on("/api", lambda: error(401, message="Invalid credentials in Authorization header")),
        r"rejects the token \(401 Invalid credentials",
    ),
    "forbidden": ("org/model", on("/api", lambda: error(403, message="Blocked by policy")), r"forbids it.*Blocked by"),
    "rate limit": (
        "org/model",
        on("/api", lambda: error(429, Retry_After="3600")),
        r"limits the rate of requests and asks to wait 3600 s",
    ),
    "rate limit of the API": (
        "org/model",
        on("/api", lambda: error(429, RateLimit='"api";r=0;t=299')),
        r"limits the rate of requests and asks to wait 299 s",
    ),
    "unavailable": ("org/model", on("/api", lambda: error(503, message="Maintenance")), r"not available \(503 Maint"),
    "moved": ("org/model", on("/api", lambda: error(410, message="Gone")), r"410 Gone from http\S+; check HF_ENDPOINT"),
    "a web page": (
        "org/model",
        on("/api", lambda: Answer(b"<html>Please log in</html>")),
        r"does not answer as the Hub does",
    ),
    "other JSON": ("org/model", on("/api", lambda: Answer(b'["a"]')), r"does not answer as the Hub does"),
    "no sizes": (
        "org/model",
        on("/api", lambda: Answer(b'{"id": "a/b", "sha": "%s", "siblings": [{"rfilename": "a"}]}' % (b"0" * 40))),
        r"does not answer as the Hub does",
    ),
    "a file outside": ("org/odd", {**MODEL, "../../.bashrc": b"x"}, r"does not answer as the Hub does"),
    "an absolute file": ("org/odd", {**MODEL, "/etc/passwd": b"x"}, r"does not answer as the Hub does"),
    "GGUF only": ("org/odd", {"model.gguf": b"GGUF"}, r"is no model that caldera reads: it has GGUF files"),
    "a pipeline": ("org/odd", {"model_index.json": b"{}", "vae/config.json": b"{}"}, r"it has a pipeline of diffusers"),
    "an adapter": (
        "org/odd",
        {"config.json": b"{}", "adapter_config.json": b"{}", "adapter_model.safetensors": b""},
        r"it has an adapter of peft: merge it",
    ),
    "other frameworks": ("org/odd", {"config.json": b"{}", "tf_model.h5": b""}, r"it has weights for other programs"),
    "no weights": ("org/odd", {"config.json": b"{}"}, r"it has no model.safetensors or pytorch_model.bin"),
    "no config": ("org/odd", {"model.safetensors": b""}, r"it has no config.json"),
    "a missing part": (
        "org/odd",
        {"config.json": b"{}", "model.safetensors.index.json": b"{}", "model-00001-of-00002.safetensors": b""},
        r"has an index of weights, but not all of its files model-\*",
    ),
}  # fmt: skip
"""By name: what is asked for, a fault of the server or the files of a repository, and the message."""


@pytest.mark.parametrize("case", LISTING_FAULTS)
def test_a_fault_is_one_line_with_what_to_do(server: HubServer, cache: Path, case: str) -> None:
    """Exit code 3; nothing is downloaded."""
    text, fault, message = LISTING_FAULTS[case]
    server.add("org/photos", {"data.json": b"[]"}, repo_type="dataset")
    if isinstance(fault, dict):
        server.add("org/odd", fault)
    elif fault is not None:
        server.faults.append(fault)
    name = parse_hub_name(text)
    assert name is not None
    with pytest.raises(HubError, match=message) as caught:
        fetch(name)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert not (cache / "models--org--model").exists()


def test_the_token_is_in_no_message_and_not_sent_to_other_hosts(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A private repository opens with the token, which the CDN does not receive; a server's echo of it is masked."""
    caplog.set_level(logging.DEBUG)
    server.repos["model", "org/model"].private = True
    with pytest.raises(HubError, match="and no token is set; check the name, or set HF_TOKEN"):
        fetch()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch()
    sent = {
        request.host: "authorization" in request.headers
        for request in server.requests
        if "model.safetensors" in request.path or request.host == "cdn"
    }
    assert sent == {"hub": True, "cdn": False}
    assert TOKEN not in caplog.text
    server.faults.append(on("/api", lambda: error(403, message=f"no access for {TOKEN}")))
    with pytest.raises(HubError, match=r"no access for \*\*\*") as caught:
        fetch()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_gated_repository_names_its_page(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """Its list of files is public, its files are not; the message depends on whether there is a token."""
    monkeypatch.setenv("HF_TOKEN", token)
    server.repos["model", "org/model"].gated = True
    server.faults.append(on("/resolve/", lambda: error(403 if token else 401, "GatedRepo")))
    state = "the token gives no access" if token else "no token is set"
    with pytest.raises(
        HubError, match=rf"gated, and {state}; accept its terms on {server.url}/org"
    ):
        fetch()


def test_what_does_not_fit_on_the_disk_is_refused_before_a_byte(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes of all snapshots count together."""
    commit = "1" * 40
    files = [
        {"rfilename": name, "size": size, "blobId": "2" * 40}
        for name, size in (("config.json", 2), ("model.safetensors", 10**15))
    ]
    info = {"id": "org/huge", "sha": commit, "siblings": files}
    server.faults.append(on("/org/huge", lambda: Answer(json.dumps(info).encode())))
    huge = find_snapshot(HubName("org/huge"), choose_model_files)
    small = find_snapshot(NAME, choose_model_files)
    with pytest.raises(
        OutputError, match=r"cannot download 1000000\.0 GB: \S+ GB are free in .*HF_HUB_CACHE"
    ):
        download([small, huge], NoProgress())
    assert not any("/resolve/" in request.path for request in server.requests)


def test_a_full_disk_keeps_what_was_downloaded(server: HubServer, cache: Path) -> None:
    """The error of the system is an OutputError; afterwards only the rest is transferred."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    snapshot = find_snapshot(NAME, choose_model_files)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write \S+: File too large; free space"):
            download([snapshot], NoProgress())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    server.sent.clear()
    download([snapshot], NoProgress())
    assert (snapshot.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert sum(server.sent.values()) == len(WEIGHTS) - 200_000


def test_a_cache_that_cannot_be_used_is_named(server: HubServer, cache: Path) -> None:
    """A file in its place is an OutputError; a damaged reference is replaced."""
    cache.write_text("no folder")
    with pytest.raises(OutputError, match=r"cannot write \S+/hub: (File exists|Not a directory)"):
        fetch()
    cache.unlink()
    storage = cache / "models--org--model"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_bytes(b"\xff../..")
    assert fetch().commit == (storage / "refs" / "main").read_text()


def test_a_cut_body_is_resumed_where_it_ended(server: HubServer) -> None:
    """No byte is transferred twice."""
    server.faults.append(on("/cdn/", lambda: Answer(WEIGHTS, cut=100_000), times=1))
    folder = fetch().folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [request.headers.get("range") for request in server.requests if request.host == "cdn"]
    assert ranges == [None, "bytes=100000-"]
    assert server.sent[f"/cdn/{sha256(WEIGHTS)}"] == len(WEIGHTS)


def test_a_server_that_ignores_ranges_sends_the_file_again(server: HubServer) -> None:
    """The beginning is not appended to itself."""
    bodies = iter([Answer(WEIGHTS, cut=100_000), Answer(WEIGHTS)])
    server.faults.append(on("/cdn/", lambda: next(bodies), times=2))
    assert (fetch().folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: Answer(WEIGHTS, cut=0), r"cannot be reached \(RemoteProtocolError"),
        (lambda: Answer(WEIGHTS[:1000]), r"sends 1,000 of its 307,200 bytes"),
        (lambda: error(503, message="Slow down"), r"is not available \(503 Slow down"),
        (lambda: error(429, Retry_After="500"), r"asks to wait 500 s"),
        (lambda: error(404, "EntryNotFound"), r"lists /cdn/\w+, but does not have it"),
        (lambda: error(403, message="Expired"), r"forbids it"),
        (lambda: Answer(b"version https://git-lfs.github.com/spec/v1\n"), r"is a git-lfs pointer in place of"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_had(
    server: HubServer, cache: Path, answer: Callable[[], Answer], message: str
) -> None:
    """After a few attempts it is an error; the name means nothing offline, and the next call succeeds."""
    server.faults.append(on("/cdn/", answer))
    with pytest.raises(HubError, match=message):
        fetch()
    assert not (cache / "models--org--model" / "refs").exists()
    server.faults.clear()
    assert (fetch().folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_busy_server_is_waited_for(server: HubServer) -> None:
    """The list and a file come after a few refusals."""
    server.faults.append(on("/api/models", lambda: error(429, Retry_After="0"), times=2))
    server.faults.append(on("/resolve/", lambda: error(503), times=2))
    server.faults.append(on("/cdn/", lambda: error(502), times=2))
    assert (fetch().folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("change", [b"x", b"longer "])
def test_other_content_than_listed_is_rejected_and_removed(
    server: HubServer, cache: Path, name: str, change: bytes
) -> None:
    """A file of git-lfs is compared by SHA-256, a small one by git's digest; ETag and size do not decide."""
    content = change + MODEL[name][1:]
    path = "/cdn/" if name == "model.safetensors" else name
    server.faults.append(on(path, lambda: Answer(content, headers={"ETag": '"same"'})))
    with pytest.raises(
        HubError, match=rf"{name} of org/model@\w+ has the digest \w+, the Hub lists"
    ):
        fetch()
    assert not any(file.stat().st_size for file in cache.rglob("*.incomplete")), (
        "the wrong content is not resumed"
    )
    server.faults.clear()
    assert (fetch().folder / name).read_bytes() == MODEL[name]


def test_a_pointer_that_was_uploaded_is_no_model(server: HubServer) -> None:
    """A repository that was uploaded without git-lfs has pointers with the right digest."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"
    server.add("org/model", {**MODEL, "model.safetensors": pointer})
    with pytest.raises(HubError, match=r"model.safetensors of org/model@\w+ is a git-lfs pointer"):
        fetch()


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
    with pytest.raises(HubError, match=r"not, or not completely, in the cache .*HF_HUB_OFFLINE"):
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


def test_a_server_that_does_not_answer_ends_in_time(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeouts are those of `huggingface_hub`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)
    server.faults.append(on("/api", lambda: Answer(delay=0.5)))
    with pytest.raises(HubUnreachableError, match=r"cannot be reached \(ReadTimeout"):
        fetch()


def test_two_downloads_at_a_time_transfer_each_byte_once(server: HubServer) -> None:
    """The second waits for the first, and finds its file."""
    content = Answer(WEIGHTS, seconds_per_chunk=0.02)
    server.faults.append(on("/cdn/", lambda: content))
    errors: list[CalderaError] = []

    def run() -> None:
        try:
            fetch()
        except CalderaError as failure:
            errors.append(failure)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert server.sent[f"/cdn/{sha256(WEIGHTS)}"] == len(WEIGHTS)
