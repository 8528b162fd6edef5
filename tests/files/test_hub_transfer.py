"""Transfers of single files: cut, resumed, rejected, and two at a time."""

import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.errors import CalderaError, OutputError
from caldera.files.hub import download, find_snapshot
from caldera.files.hub_errors import HubError
from caldera.formats.hub_models import choose_model_files
from caldera.progress import NoProgress
from tests.files.conftest import MODEL, NAME, WEIGHTS, fetch, on
from tests.hub_server import Answer, HubServer, Request, error, sha256


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


def test_a_download_that_waited_for_a_failed_one_continues_it(server: HubServer) -> None:
    """The bytes that the first wrote while the second waited are not sent again, and not counted twice."""
    refusal = error(403, message="expired")
    answers = [Answer(WEIGHTS, cut=200_000, seconds_per_chunk=0.1), refusal]

    def fault(request: Request) -> Answer | None:
        return answers.pop(0) if request.host == "cdn" and answers else None

    server.faults.append(fault)
    errors: list[CalderaError] = []

    def run() -> None:
        try:
            fetch()
        except CalderaError as failure:
            errors.append(failure)

    first, second = threading.Thread(target=run), threading.Thread(target=run)
    path = f"/cdn/{sha256(WEIGHTS)}"
    first.start()
    while not server.sent.get(path):
        time.sleep(0.005)
    second.start()
    first.join()
    second.join()
    assert [str(failure).partition(": ")[0] for failure in errors] == ["cannot download org/model"]
    assert (fetch().folder / "model.safetensors").read_bytes() == WEIGHTS
    assert server.sent[path] == len(WEIGHTS) + len(refusal.body)


RESUMED = {
    "416": lambda: Answer(status=416, headers={"Content-Range": "bytes */300"}),
    "another range": lambda: Answer(
        WEIGHTS[7:], 206, {"Content-Range": f"bytes 7-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"}
    ),
    "the whole file as a range": lambda: Answer(
        WEIGHTS, 206, {"Content-Range": f"bytes 0-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"}
    ),
    "no range": lambda: Answer(WEIGHTS[100_000:], 206),
}
"""Answers to the request for the rest of a file, of which none has the rest."""


@pytest.mark.parametrize("case", RESUMED)
def test_another_range_than_asked_begins_the_file_again(server: HubServer, case: str) -> None:
    """Nothing wrong is appended, and what was there is not asked for for ever."""
    answers = [Answer(WEIGHTS, cut=100_000), RESUMED[case]()]

    def fault(request: Request) -> Answer | None:
        return answers.pop(0) if request.host == "cdn" and answers else None

    server.faults.append(fault)
    assert (fetch().folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [request.headers.get("range") for request in server.requests if request.host == "cdn"]
    repeated = [] if case == "the whole file as a range" else [None]
    assert ranges == [None, "bytes=100000-", *repeated]


def test_a_server_that_only_sends_the_beginning_is_given_up(server: HubServer) -> None:
    """A range that nobody asked for ends after a few attempts."""
    part = Answer(WEIGHTS[:1000], 206, {"Content-Range": f"bytes 0-999/{len(WEIGHTS)}"})
    server.faults.append(on("/cdn/", lambda: part))
    with pytest.raises(HubError, match=r"the server sends 1,000 of its 307,200 bytes"):
        fetch()
    assert sum(request.host == "cdn" for request in server.requests) < 10
