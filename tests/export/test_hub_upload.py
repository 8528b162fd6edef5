"""Uploads to the Hub: the files that are sent, and what happens when something is in the way."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from caldera.errors import InputError, ModelFormatError, UsageError
from caldera.export.hub_upload import (
    Target,
    find_target,
    read_hub_card,
    select_files,
    upload_files,
)
from caldera.export.model_card import HubCard
from caldera.files.hub_errors import HubError
from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.pipelines.publishing import prepare_publication
from caldera.progress import NoProgress
from tests.hub_server import TOKEN, Answer, Request, error, use_hub
from tests.hub_upload_server import READ_TOKEN, UploadServer
from tests.published_run import save_sharded

NAME = "workshop/assistant"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""huggingface_hub sends files by an argument that httpx names otherwise by now."""


@pytest.fixture
def hub(loopback: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[UploadServer]:
    """A Hub, used with a token that may write."""
    with UploadServer() as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache", TOKEN)
        # The server speaks git-lfs, not Xet's own protocol.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


@pytest.fixture
def folder(assistant: LlavaBundle, tmp_path: Path) -> Path:
    """A model folder with weights in three files."""
    return save_sharded(tmp_path / "model", assistant)


def push(folder: Path, name: str = NAME, *, private: bool = False) -> str:
    """Upload a folder with a short card."""
    target = find_target(name, private=private)
    return upload_files(select_files(folder, "# Card\n"), target, "Upload", NoProgress())


def sent_weights(hub: UploadServer) -> list[str]:
    """Return the digests of the large files that were sent."""
    return [
        request.path.split("/")[2].split("?")[0]
        for request in hub.requests
        if request.method == "PUT"
    ]


def files_of(hub: UploadServer, name: str = NAME) -> dict[str, bytes]:
    """Return the files of a repository's latest commit."""
    repo = hub.repos["model", name]
    return repo.commits[repo.refs["main"]]


def test_a_repository_has_the_bytes_of_the_folder(hub: UploadServer, folder: Path) -> None:
    """All files of the model and the card, in one commit, whose address is returned."""
    url = push(folder)
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    uploaded = dict(files_of(hub))
    assert uploaded.pop(".gitattributes")
    assert uploaded == {**expected, "README.md": b"# Card\n"}
    repo = hub.repos["model", NAME]
    assert url == f"{hub.url}/{NAME}/commit/{repo.refs['main']}"
    assert len(repo.commits) == 2
    assert len(sent_weights(hub)) == 3


def test_a_repeated_upload_sends_no_weights_again(hub: UploadServer, folder: Path) -> None:
    """What the Hub has is only named in the new commit, which is on top of the earlier one."""
    push(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    push(folder)
    assert len(sent_weights(hub)) == 3
    assert len(hub.repos["model", NAME].commits) == 3
    assert files_of(hub)["config.json"].endswith(b"\n\n")


def test_files_of_an_earlier_model_are_removed(
    hub: UploadServer, folder: Path, assistant: LlavaBundle, tmp_path: Path
) -> None:
    """Its other weight files and their index go, as a loader would take them; what is no model's stays."""
    others = {"adapters/model.safetensors": b"x", "lora.safetensors": b"y", "LICENSE": b"MIT"}
    repo = hub.add(NAME, {**others, "README.md": b"old"})
    push(folder)
    save_model_folder(tmp_path / "small", assistant)
    target = find_target(NAME, private=False)
    upload = select_files(tmp_path / "small", "# New\n")
    removed = [
        *sorted(path.name for path in folder.glob("model-*")),
        "model.safetensors.index.json",
    ]
    assert target.removed_by(upload) == removed
    assert target.commit == repo.refs["main"]
    push(tmp_path / "small")
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert files_of(hub).keys() == names | {"README.md", *others}


STRAY = {
    ".env": "hidden",
    ".lock": "hidden",
    "optimizer.pt": "no file of a model",
    "training_args.bin": "no file of a model",
    "notes.txt": "no file of a model",
    "model-old.safetensors": "not among the weights that are loaded",
    "checkpoints": "a folder",
    "tensorboard": "a folder",
}


def test_only_files_of_the_model_are_selected(folder: Path) -> None:
    """Checkpoints, optimizer states, hidden and unknown files stay, each with a reason; a license goes along."""
    for name in STRAY:
        if "." in name:
            (folder / name).write_text("x")
        else:
            (folder / name / "step-1").mkdir(parents=True)
    (folder / "elsewhere.json").symlink_to("/etc/hostname")
    (folder / "LICENSE").write_text("MIT")
    upload = select_files(folder, "# Card\n")
    assert upload.left_out == STRAY | {"elsewhere.json": "no file of a model"}
    names = [file.name for file in upload.files]
    assert "LICENSE" in names
    assert names[0] == "README.md"
    assert not {*names} & {*STRAY, "elsewhere.json"}
    assert upload.size == sum(file.size for file in upload.files) > 10_000


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    """A needed file that lies elsewhere ends the upload before it begins; a link inside the folder is a file."""
    (folder / "tokenizer.json").rename(folder / "real.json")
    (folder / "tokenizer.json").symlink_to("real.json")
    assert "tokenizer.json" in [file.name for file in select_files(folder, "").files]
    (folder / "tokenizer.json").unlink()
    (folder / "real.json").rename(tmp_path / "real.json")
    (folder / "tokenizer.json").symlink_to(tmp_path / "real.json")
    with pytest.raises(
        ModelFormatError, match=r"tokenizer\.json is a link out of the folder.*cp -rL"
    ):
        select_files(folder, "")


@dataclass(frozen=True)
class Case:
    """Something in the way of an upload, and what the error says."""

    message: str
    token: str = TOKEN
    name: str = NAME
    private: bool = False
    fault: Callable[[Request], Answer | None] = lambda _: None


def test_a_repository_that_appears_meanwhile_is_not_written_to(
    hub: UploadServer, folder: Path
) -> None:
    """It may be public, where a private one was asked for."""
    target = find_target(NAME, private=True)
    repo = hub.add(NAME, {"config.json": b"{}"})
    with pytest.raises(HubError, match="it was changed meanwhile; run again"):
        upload_files(select_files(folder, "# Card"), target, "Upload", NoProgress())
    assert len(repo.commits) == 1
    assert sent_weights(hub) == []


def refuse(method: str, path: str, answer: Answer) -> Callable[[Request], Answer | None]:
    """Return a fault that answers requests whose path contains a text."""
    return lambda request: answer if request.method == method and path in request.path else None


CASES = {
    "no token": Case("there is no token; create one that may write on .*set HF_TOKEN or run: hf auth login", token=""),
    "invalid token": Case("rejects the token", token="hf_wrong0000000000000"),
    "token that may only read": Case("the token may only read; create one that may write", READ_TOKEN),
    "name of others": Case("the token is of maker, who is not in rivals; .*: maker, workshop", name="rivals/assistant"),
    "public as private": Case("it exists and is public; make it private in", name="maker/public", private=True),
    "token without write access": Case(
        "the token may not write there; create one that may",
        fault=refuse("POST", "/preupload/", error(403, message="You need the write scope")),
    ),
    "creation forbidden": Case(
        "the token may not write there", fault=refuse("POST", "/repos/create", error(403, message="no"))
    ),
    "changed meanwhile": Case(
        "it was changed meanwhile; run again",
        fault=refuse("POST", "/commit/", error(412, message="A commit has happened since")),
    ),
    "an account without a name": Case(
        "does not answer as the Hub does when asked for the owner of the token; check HF_ENDPOINT",
        fault=refuse("GET", "/whoami", Answer(b'{"auth": null, "orgs": null}')),
    ),
    "an account without organizations": Case(
        "the token is of maker, who is not in workshop",
        fault=refuse("GET", "/whoami", Answer(b'{"name": "maker", "auth": null, "orgs": null}')),
    ),
    "a repository that is none": Case(
        "does not answer as the Hub does", fault=refuse("GET", "/api/models/", Answer(b'["a"]'))
    ),
    "files that are none": Case(
        "does not answer as the Hub does", fault=refuse("POST", "/preupload/", Answer(b"[]"))
    ),
    "a commit that is none": Case(
        "does not answer as the Hub does", fault=refuse("POST", "/commit/", Answer(b"{}"))
    ),
    "storage full": Case(
        "413 over your storage limit$", fault=refuse("POST", "/commit/", error(413, message="over your storage limit"))
    ),
    "rejected by the storage": Case(
        "its storage answers 403; run again", fault=refuse("PUT", "/upload/", error(403, message="signature expired"))
    ),
    "rejected card": Case(
        'Invalid metadata in README.md. - "license" must be one of',
        fault=refuse(
            "POST",
            "/validate-yaml",
            Answer(json.dumps({"errors": [{"message": '"license" must be one of'}]}).encode(), 400),
        ),
    ),
    "lfs error": Case(
        "LFS batch API returned errors: .*too large",
        fault=refuse(
            "POST",
            "/objects/batch",
            Answer(
                json.dumps(
                    {"objects": [{"oid": "0" * 64, "size": 1, "error": {"code": 422, "message": "too large"}}]}
                ).encode()
            ),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_in_the_way_is_named(
    hub: UploadServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line says what to do; no commit is made, and the token is in no message."""
    caplog.set_level(logging.DEBUG)
    hub.add("maker/public", {"config.json": b"{}"})
    hub.add("rivals/assistant", {"config.json": b"{}"})
    monkeypatch.setenv("HF_TOKEN", case.token)
    hub.faults.append(case.fault)
    with pytest.raises(HubError, match=case.message) as failed:
        push(folder, case.name, private=case.private)
    text = f"{failed.value}\n{caplog.text}"
    assert "\n" not in str(failed.value)
    assert "hf_" not in text
    assert "Signature" not in str(failed.value)
    assert all(
        repo.commits[repo.refs["main"]].keys() <= {".gitattributes", "config.json"}
        for repo in hub.repos.values()
    )


def test_offline_nothing_is_asked(
    hub: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_OFFLINE is named."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        push(folder)
    assert hub.requests == []


def test_errors_of_xet_are_named(
    hub: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package hf_xet, which sends weights where it is installed, has no exceptions of its own."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.faults.append(refuse("GET", "/xet-write-token/", error(403, message="no")))
    with pytest.raises(HubError, match=r"403 Forbidden.*run again, files that it has are not sent"):
        push(folder)


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["closed", "503"])
def test_a_lost_network_is_named_and_a_repetition_resumes(
    hub: UploadServer, folder: Path, failure: str
) -> None:
    """After the attempts of `huggingface_hub`, the error says what to do; stored files are not sent again."""

    def fault(request: Request) -> Answer | None:
        if request.method != "PUT" or len(hub.stored) < 1:
            return None
        return (
            error(503)
            if failure == "503"
            else Answer(b"x" * 9, headers={"Content-Length": "100"}, cut=0)
        )

    hub.faults.append(fault)
    with pytest.raises(HubError, match=r"run again|check the network"):
        push(folder)
    assert len(hub.stored) == 1
    first = sent_weights(hub)[0]
    hub.faults.clear()
    hub.requests.clear()
    push(folder)
    assert len(sent_weights(hub)) == 2
    assert first not in sent_weights(hub)


def test_the_license_of_a_parent_is_that_of_its_card(
    hub: UploadServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own name of a license first; without a card, or without the model, it is unknown, which is told."""
    card = b"---\nlicense: other\nlicense_name: llama2\nlanguage: en\n---\n"
    commit = hub.add("words/lm", {"README.md": card}).refs["main"]
    assert read_hub_card("words/lm", commit) == HubCard("llama2", ("en",))
    hub.add("words/bare", {"config.json": b"{}"})
    assert read_hub_card("words/bare", "main") == HubCard()
    assert read_hub_card("words/gone", "main") == HubCard()
    assert "cannot read the license of words/gone" in caplog.text
    assert "so the card calls it unknown" in caplog.text


def test_a_file_with_the_token_is_not_sent(hub: UploadServer, folder: Path) -> None:
    """Neither a file nor a card."""
    with pytest.raises(InputError, match=r"README\.md contains your token"):
        select_files(folder, f"use {TOKEN}")
    (folder / "NOTICE").write_bytes(b"")
    (folder / "LICENSE").write_text(" " * 2_000_000 + f"token: {TOKEN}")
    with pytest.raises(InputError, match="LICENSE contains your token of the Hub; remove it there"):
        select_files(folder, "# Card")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("assistant", "lacks the user or organization; give ORG/assistant"),
        ("org/name/more", "is no name of a repository"),
        ("org/na me", "is no name of a repository"),
        ("org/name@main", "is no name of a repository"),
        ("https://huggingface.co/org/name", "is no name of a repository"),
    ],
)
def test_a_name_is_checked_before_anything_else(folder: Path, name: str, message: str) -> None:
    """Nothing is read or sent for a wrong name."""
    with pytest.raises(UsageError, match=message):
        prepare_publication(str(folder), name)


def test_a_broken_model_is_not_published(folder: Path) -> None:
    """Weights that do not fit, a checkpoint, a name in place of a folder, a broken card: each is an error by name."""
    with pytest.raises(UsageError, match="words/lm is no folder"):
        prepare_publication("words/lm", NAME)
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(InputError, match=r"README\.md is no model card: .*; correct or remove it"):
        prepare_publication(str(folder), NAME)
    (folder / "README.md").unlink()
    shard = next(folder.glob("model-*"))
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ModelFormatError, match=shard.name):
        prepare_publication(str(folder), NAME)


def test_a_users_card_is_used_unchanged(folder: Path) -> None:
    """README.md of the folder is the card; an empty one, as a redirection of the shell leaves it, is none."""
    (folder / "README.md").write_text("")
    written = prepare_publication(str(folder), NAME)
    assert not written.is_own_card
    assert written.card.startswith("---\n")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    own = prepare_publication(str(folder), NAME)
    assert own.is_own_card
    [card] = [file for file in own.upload.files if file.name == "README.md"]
    assert card.content == (folder / "README.md").read_bytes()


def test_a_target_that_does_not_exist_removes_nothing(folder: Path) -> None:
    """Nothing is listed for a new repository."""
    target = Target(NAME, None, private=True)
    assert target.removed_by(select_files(folder, "")) == []
    assert replace(target, files=frozenset({"dog.jpg"})).removed_by(select_files(folder, "")) == []
