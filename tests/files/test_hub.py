"""Names, snapshots and downloads of the Hugging Face Hub, against a loopback server and the real client."""

import json
import logging
from pathlib import Path

import pytest

from caldera.errors import OutputError, UsageError
from caldera.files.hub import download, find_snapshot, hub_source, parse_hub_name
from caldera.files.hub_cache import HubName
from caldera.files.hub_errors import HubError, HubUnreachableError
from caldera.formats.hub_models import choose_model_files
from caldera.progress import LogProgress, NoProgress
from tests.files.conftest import MODEL, NAME, WEIGHTS, fetch, on
from tests.hub_server import TOKEN, Answer, Fault, HubServer, error

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


def index(*files: str) -> bytes:
    """Return an index of weights in files."""
    return json.dumps({"weight_map": {f"weight of {file}": file for file in files}}).encode()


def part(number: int) -> str:
    """Return the name of a file of two with weights."""
    return f"model-0000{number}-of-00002.safetensors"


def test_safetensors_come_before_pickles_and_all_parts_of_them(server: HubServer) -> None:
    """An index names the parts of the weights; without safetensors, pickles are taken."""
    parts = {f"pytorch_model-0000{n}-of-00002.bin": b"%d" % n for n in (1, 2)}
    files = {"config.json": b"{}", "pytorch_model.bin.index.json": index(*parts), **parts}
    server.add("org/pickles", {**files, "flax_model.msgpack": b"", "optimizer.bin": b""})
    folder = fetch(HubName("org/pickles")).folder
    assert {path.name for path in folder.iterdir()} == files.keys()


COMPLETE = {
    "other names": ({"model.safetensors.index.json": index("a.safetensors", "b.safetensors"), "a.safetensors": b"a",
                     "b.safetensors": b"b"}, {"model.safetensors.index.json", "a.safetensors", "b.safetensors"}),
    "incomplete index, single file": ({"model.safetensors.index.json": b"{}", "model.safetensors": b"a"}, {
        "model.safetensors"}),
    "incomplete safetensors": ({"model.safetensors.index.json": index(part(1), part(2)), part(1): b"a",
                                "pytorch_model.bin": b"p"}, {"pytorch_model.bin"}),
}  # fmt: skip
"""Files with weights by case, and those that are used."""


@pytest.mark.parametrize("case", COMPLETE)
def test_the_weights_are_those_that_an_index_names(server: HubServer, case: str) -> None:
    """Not those whose names look like parts; where some are missing, another complete form is used."""
    files, used = COMPLETE[case]
    server.add("org/parts", {"config.json": b"{}", **files})
    assert {path.name for path in fetch(HubName("org/parts")).folder.iterdir()} == {
        "config.json",
        *used,
    }


def listing(siblings: str) -> Fault:
    """Return a fault that answers with these files."""
    body = b'{"id": "a/b", "sha": "%s", "siblings": %s}' % (b"0" * 40, siblings.encode())
    return on("/api", lambda: Answer(body))


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
    **{
        f"a file {path!a:.20}": ("org/odd", {**MODEL, path: b"x"}, r"lists a file '.*, which is no path")
        for path in (
            "../../.bashrc", "/etc/passwd", "a\\b", "a\0b", "a\nb", "\x1b[31m", "\ud800", "d" * 256, "x/" * 600 + "x"
        )
    },
    **{
        f"siblings {siblings:.30}": ("org/model", listing(siblings), r"does not answer as the Hub does")
        for siblings in (
            "[null]", '{"a": 1}', '[{"rfilename": 5, "size": 1, "blobId": "%s"}]' % ("2" * 40),
            *(f'[{{"rfilename": "a", "size": {size}, "blobId": "{"2" * 40}"}}]' for size in ("-5", "1" + "0" * 400)),
            '[{"rfilename": "a", "size": 1, "blobId": "%s", "lfs": {"a": 1}}]' % ("2" * 40),
        )
    },
    "no UTF-8": ("org/model", on("/api", lambda: Answer(b"\xff\xfe\0")), r"does not answer as the Hub does"),
    "deep JSON": ("org/model", on("/api", lambda: Answer(b"[" * 100_000)), r"does not answer as the Hub does"),
    "a date that is none": (
        "org/model",
        on("/api", lambda: Answer(b'{"id": "a/b", "lastModified": "yesterday"}')),
        r"does not answer as the Hub does",
    ),
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
        {"config.json": b"{}", "model.safetensors.index.json": index(part(1), part(2)), part(1): b"", part(3): b""},
        rf"has model.safetensors.index.json, but not all of its files: {part(2)} is missing; choose another",
    ),
    "a part outside": (
        "org/odd",
        {"config.json": b"{}", "model.safetensors.index.json": index("../config.json")},
        r"not all of its files: \.\./config.json is missing",
    ),
    "no index": (
        "org/odd",
        {"config.json": b"{}", "model.safetensors.index.json": b"{}", part(1): b""},
        r"has model.safetensors.index.json, which is no index of weights; choose another",
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
    assert not any(cache.rglob("snapshots"))


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


@pytest.mark.parametrize("token", ["hf_\u00e9secret", "hf_a\tsecret"])
def test_a_token_that_is_none_is_named(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """It cannot be sent, and is not printed."""
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
        HubError, match=r"has a character that no token .* renew HF_TOKEN"
    ) as failed:
        fetch()
    assert "secret" not in str(failed.value)
    assert server.requests == []


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


def test_a_server_that_does_not_answer_ends_in_time(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeouts are those of `huggingface_hub`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)
    server.faults.append(on("/api", lambda: Answer(delay=0.5)))
    with pytest.raises(HubUnreachableError, match=r"cannot be reached \(ReadTimeout"):
        fetch()
