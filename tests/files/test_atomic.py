"""Tests of atomic writes: files and folders are complete even if the process is killed or the disk is full."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caldera.errors import CalderaError, OutputError, UsageError
from caldera.files.atomic import (
    atomic_folder,
    lock_folder,
    to_plain_json,
    translate_os_errors,
    write_atomic,
    write_json,
)
from tests.files.faulty_files import FaultyFiles

OLD = "old " * 1000

REWRITE_FOREVER = """
import sys
from pathlib import Path
from caldera.files.atomic import write_atomic
for number in range(1, 10**9):
    write_atomic(Path(sys.argv[1]), f"{number} " * 200_000)
"""

FILL_FOREVER = """
import sys, time
from pathlib import Path
from caldera.files.atomic import atomic_folder
with atomic_folder(Path(sys.argv[1])) as partial:
    (partial / "a.txt").write_text("half")
    print("started", flush=True)
    time.sleep(600)
"""

KILL_DURING_REPLACE = """
import os, signal, sys
from pathlib import Path
from caldera.files.atomic import atomic_folder
original = Path.replace
def replace(self, target):
    if self.name.endswith(".unfinished"):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, target)
Path.replace = replace
with atomic_folder(Path(sys.argv[1])) as partial:
    (partial / "new").write_text("new")
"""

LOCK_FOREVER = """
import sys, time
from pathlib import Path
from caldera.files.atomic import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""

FULL_DISK = """
import resource, sys
from pathlib import Path
from caldera.errors import OutputError
from caldera.files.atomic import atomic_folder, write_atomic
folder, kind = Path(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

def fill(partial):
    (partial / "small").write_text("x")
    if kind == "folder":
        (partial / "large").write_text("x" * 200_000)
    elif kind == "weights":
        import torch
        from safetensors.torch import save_file
        save_file({"a": torch.zeros(50_000)}, partial / "large.safetensors")
    else:
        from tokenizers import Tokenizer, models
        words = {f"word{number}": number for number in range(20_000)}
        Tokenizer(models.WordLevel(words, unk_token="word0")).save(str(partial / "large.json"))

try:
    if kind == "file":
        write_atomic(folder / "target", "x" * 200_000)
    else:
        with atomic_folder(folder / "target") as partial:
            fill(partial)
except OutputError as error:
    print(error)
"""


def start(program: str, *words: str | Path) -> subprocess.Popen[str]:
    """Run a program in another process, and wait for its first line if it prints one."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    if "print" in program:
        assert process.stdout is not None
        assert process.stdout.readline()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and wait until it is gone."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def names(folder: Path) -> set[str]:
    """Return the names of all entries of a folder, hidden ones included."""
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("content", ["é\n", b"\x00\xff", "", b""])
def test_written_content_is_read_back_unchanged(tmp_path: Path, content: str | bytes) -> None:
    """Text is UTF-8, missing folders are created, and no other file is left."""
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(path.parent) == {"file"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_is_readable_and_read_back(tmp_path: Path) -> None:
    """Letters are not escaped; tuples become lists."""
    value = {"é": (1, 2.5, None), "inner": {"7": [True]}}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == to_plain_json(value)
    assert to_plain_json({7: (1,)}) == {"7": [1]}
    assert "é" in (tmp_path / "a.json").read_text()


def test_a_file_whose_writer_is_killed_holds_one_complete_version(tmp_path: Path) -> None:
    """SIGKILL at six times of endless rewriting never leaves a mixed or partial file."""
    path = tmp_path / "file"
    versions = set()
    for delay in (0.0, 0.003, 0.007, 0.013, 0.029, 0.041):
        path.unlink(missing_ok=True)
        process = start(REWRITE_FOREVER, path)
        deadline = time.monotonic() + 60
        while not path.is_file() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        kill(process)
        numbers = path.read_text().split()
        assert len(numbers) == 200_000
        assert len(set(numbers)) == 1
        versions.add(numbers[0])
    assert len(versions) > 1, "every kill came at the same version; choose other delays"


def test_a_folder_whose_writer_is_killed_is_unchanged(tmp_path: Path) -> None:
    """The old folder remains, or none, and a later run can replace it."""
    path = tmp_path / "folder"
    kill(start(FILL_FOREVER, path))
    assert not path.exists()
    path.mkdir()
    (path / "a.txt").write_text("old")
    kill(start(FILL_FOREVER, path))
    assert (path / "a.txt").read_text() == "old"

    with atomic_folder(path) as partial:
        (partial / "b.txt").write_text("new")

    assert names(path) == {"b.txt"}


@pytest.mark.parametrize("kind", ["file", "folder", "weights", "tokenizer"])
def test_a_full_disk_keeps_the_old_content_and_nothing_else(tmp_path: Path, kind: str) -> None:
    """After a failed write, in Python or Rust, only the old content remains, and one line gives the reason."""
    target = tmp_path / "target"
    if kind != "file":
        target.mkdir()
    old = target if kind == "file" else target / "old"
    old.write_text(OLD)

    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), kind],
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout == (
        f"cannot write {target}: File too large; free space or choose another path, then run again\n"
    )
    assert old.read_text() == OLD
    assert names(tmp_path) == {"target"}


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(5, "EIO")])
def test_a_folder_whose_block_fails_never_appears(tmp_path: Path, error: BaseException) -> None:
    """After any exception the old folder remains and the new one is removed; system errors are translated."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text(OLD)

    expected = OutputError if isinstance(error, OSError) else type(error)

    def fill() -> None:
        with atomic_folder(path) as partial:
            (partial / "new").write_text("new")
            raise error

    with pytest.raises(expected):
        fill()

    assert names(tmp_path) == {"folder"}
    assert names(path) == {"old"}


@pytest.mark.parametrize(
    "error", [ValueError("(os error)"), ValueError("a bug"), RuntimeError("27")]
)
def test_only_numbers_of_system_errors_are_translated(error: Exception) -> None:
    """Errors from Rust contain the number of the system error; other exceptions are bugs and pass through."""
    with pytest.raises(type(error), match=re.escape(str(error))), translate_os_errors(Path("x")):
        raise error


def test_a_folder_may_contain_folders(tmp_path: Path) -> None:
    """Subfolders are moved too, and others may read them."""
    with atomic_folder(tmp_path / "deep" / "folder") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("text")
    assert (tmp_path / "deep" / "folder" / "inner" / "file").read_text() == "text"
    assert (tmp_path / "deep" / "folder").stat().st_mode & 0o777 == 0o755


def test_a_file_in_place_of_a_folder_is_an_output_error(tmp_path: Path) -> None:
    """A folder cannot be created below a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OutputError, match=r"cannot write .*/x: .*; free space or choose another path"
    ):
        write_atomic(tmp_path / "file" / "x", "text")
    with (
        pytest.raises(OutputError, match=r"cannot write .*/x: "),
        atomic_folder(tmp_path / "file" / "x"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_read_only_folder_is_an_output_error(tmp_path: Path, number: int, fail_at: int) -> None:
    """The message contains the system's reason, for a file, a folder and the lock of a run (F11)."""

    def write_file() -> None:
        write_atomic(tmp_path / "a" / "x", "text")

    def write_folder() -> None:
        with lock_folder(tmp_path / "run"), atomic_folder(tmp_path / "run" / "x"):
            pass

    for write in (write_file, write_folder):
        files = FaultyFiles(fail_at, number)
        with files.installed(), pytest.raises(OutputError, match=os.strerror(number)):
            write()


def test_errors_of_the_package_pass_through() -> None:
    """Only system errors become an OutputError."""
    with pytest.raises(UsageError, match=r"^usage$"), translate_os_errors(Path("x")):
        raise UsageError("usage")


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    """They may be as large as a data set."""
    process = start(REWRITE_FOREVER, tmp_path / "run.json")
    while not any(tmp_path.glob(".run.json.*.unfinished")):
        time.sleep(0.0005)
    kill(process)
    with lock_folder(tmp_path):
        assert names(tmp_path) <= {"run.json", ".lock"}


@pytest.mark.parametrize("name", ["model", "checkpoints/step-7"])
def test_partial_folders_of_a_killed_run_are_removed(tmp_path: Path, name: str) -> None:
    """They are removed from a locked folder and its subfolders; other hidden files remain."""
    path = tmp_path / name
    kill(start(FILL_FOREVER, path))
    assert len(names(path.parent)) == 1
    (path.parent / ".env.template").write_text("template")
    with lock_folder(tmp_path):
        assert names(path.parent) - {".lock"} == {".env.template"}


def test_a_folder_that_a_killed_run_was_replacing_is_restored(tmp_path: Path) -> None:
    """If the run is killed between moving the old folder away and the new one in, the next run restores the old one."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text(OLD)
    start(KILL_DURING_REPLACE, path).communicate()
    assert not path.exists()
    with lock_folder(tmp_path):
        assert names(tmp_path) == {"model", ".lock"}
        assert (path / "old").read_text() == OLD


@pytest.mark.parametrize("own_run", [False, True])
def test_partial_folders_of_another_process_are_not_touched(tmp_path: Path, own_run: bool) -> None:
    """Neither a run that fails to lock the folder removes them, nor one that locks the parent folder."""
    inner = tmp_path / "inner"
    with lock_folder(inner):
        writer = start(FILL_FOREVER, inner / "model")
        try:
            before = names(inner)
            if own_run:
                with lock_folder(tmp_path):
                    pass
            else:
                with pytest.raises(UsageError, match="in use"), lock_folder(inner):
                    pass
            assert names(inner) == before
            assert len(before) == 2
        finally:
            kill(writer)


def test_a_locked_folder_is_in_use_until_its_process_ends(tmp_path: Path) -> None:
    """The message names the process; SIGKILL releases the lock."""
    folder = tmp_path / "run"
    process = start(LOCK_FOREVER, folder)
    try:
        message = rf"run is in use by process {process.pid}; wait for it or choose another --out"
        with pytest.raises(UsageError, match=message), lock_folder(folder):
            pass
    finally:
        kill(process)
    with lock_folder(folder):
        assert (folder / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_ends_with_its_block_also_after_an_error(tmp_path: Path) -> None:
    """An error releases the folder; locking it twice is an error."""

    def fail() -> None:
        with lock_folder(tmp_path):
            raise CalderaError("inner")

    with pytest.raises(CalderaError, match=r"^inner$"):
        fail()
    with (
        lock_folder(tmp_path),
        pytest.raises(UsageError, match=f"in use by process {os.getpid()}"),
        lock_folder(tmp_path),
    ):
        pass


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    """Neither free space nor another folder would help."""
    with pytest.raises(
        OutputError, match="File name too long; choose a shorter name, then run again"
    ):
        write_atomic(tmp_path / ("x" * 256), "")
