"""Files and folders are written whole or not at all, also when the process dies or the disk fills up."""

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

OLD = "old " * 1000

WRITING_FOR_EVER = """
import sys
from pathlib import Path
from caldera.storage import write_whole
for number in range(1, 10**9):
    write_whole(Path(sys.argv[1]), f"{number} " * 200_000)
"""

FILLING_FOR_EVER = """
import sys, time
from pathlib import Path
from caldera.storage import whole_folder
with whole_folder(Path(sys.argv[1])) as fresh:
    (fresh / "a.txt").write_text("half")
    print("begun", flush=True)
    time.sleep(600)
"""

KILLED_WHILE_REPLACING = """
import os, signal, sys
from pathlib import Path
from caldera.storage import whole_folder
moved = Path.replace
def replace(self, target):
    if self.name.endswith(".unfinished"):
        os.kill(os.getpid(), signal.SIGKILL)
    return moved(self, target)
Path.replace = replace
with whole_folder(Path(sys.argv[1])) as fresh:
    (fresh / "new").write_text("new")
"""

HOLDING_FOR_EVER = """
import sys, time
from pathlib import Path
from caldera.storage import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""

FULL_DISK = """
import resource, sys
from pathlib import Path
from caldera.errors import OutputError
from caldera.storage import whole_folder, write_whole
folder, what = Path(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

def fill(fresh):
    (fresh / "small").write_text("x")
    if what == "folder":
        (fresh / "large").write_text("x" * 200_000)
    elif what == "weights":
        import torch
        from safetensors.torch import save_file
        save_file({"a": torch.zeros(50_000)}, fresh / "large.safetensors")
    else:
        from tokenizers import Tokenizer, models
        words = {f"word{number}": number for number in range(20_000)}
        Tokenizer(models.WordLevel(words, unk_token="word0")).save(str(fresh / "large.json"))

try:
    if what == "file":
        write_whole(folder / "kept", "x" * 200_000)
    else:
        with whole_folder(folder / "kept") as fresh:
            fill(fresh)
except OutputError as error:
    print(error)
"""


def start(program: str, *words: str | Path) -> subprocess.Popen[str]:
    """Run a program in a second process, and wait for its first word if it says one."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    if "print" in program:
        assert process.stdout is not None
        assert process.stdout.readline()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    """End a process at once and wait until it is gone."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def names(folder: Path) -> set[str]:
    """Return the names of all that lies in a folder, hidden or not."""
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("content", ["é\n", b"\x00\xff", "", b""])
def test_what_is_written_is_what_is_read(tmp_path: Path, content: str | bytes) -> None:
    """Text as UTF-8, bytes as they are, in folders made for it, and nothing else beside it."""
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(path.parent) == {"file"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_is_written_for_people_and_comes_back(tmp_path: Path) -> None:
    """Letters stay letters; tuples come back as lists."""
    value = {"é": (1, 2.5, None), "inner": {"7": [True]}}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == to_plain_json(value)
    assert to_plain_json({7: (1,)}) == {"7": [1]}
    assert "é" in (tmp_path / "a.json").read_text()


def test_a_file_whose_writer_is_killed_holds_one_whole_version(tmp_path: Path) -> None:
    """SIGKILL at six moments of endless rewriting: the file is always of one piece."""
    path = tmp_path / "file"
    versions = set()
    for patience in (0.0, 0.003, 0.007, 0.013, 0.029, 0.041):
        path.unlink(missing_ok=True)
        process = start(WRITING_FOR_EVER, path)
        deadline = time.monotonic() + 60
        while not path.is_file() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(patience)
        kill(process)
        numbers = path.read_text().split()
        assert len(numbers) == 200_000
        assert len(set(numbers)) == 1
        versions.add(numbers[0])
    assert len(versions) > 1, "every kill met the same version; the moments are chosen badly"


def test_a_folder_whose_filler_is_killed_is_as_it_was(tmp_path: Path) -> None:
    """The old folder stands, or none; a later run takes its place."""
    path = tmp_path / "folder"
    kill(start(FILLING_FOR_EVER, path))
    assert not path.exists()
    path.mkdir()
    (path / "a.txt").write_text("old")
    kill(start(FILLING_FOR_EVER, path))
    assert (path / "a.txt").read_text() == "old"

    with atomic_folder(path) as fresh:
        (fresh / "b.txt").write_text("new")

    assert names(path) == {"b.txt"}


@pytest.mark.parametrize("what", ["file", "folder", "weights", "tokenizer"])
def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path: Path, what: str) -> None:
    """With the system refusing to write on, Python or Rust, the old content stays, no remains, and one line says so."""
    kept = tmp_path / "kept"
    if what != "file":
        kept.mkdir()
    old = kept if what == "file" else kept / "old"
    old.write_text(OLD)

    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), what],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == (
        f"cannot write {kept}: File too large; free space or choose another place, then run again\n"
    )
    assert old.read_text() == OLD
    assert names(tmp_path) == {"kept"}


@pytest.mark.parametrize("fault", [ValueError("a bug"), KeyboardInterrupt(), OSError(5, "EIO")])
def test_a_folder_that_was_not_filled_well_never_appears(
    tmp_path: Path, fault: BaseException
) -> None:
    """Whatever ends the block, the old folder stays and the fresh one goes; system faults are put in words."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text(OLD)

    expected = OutputError if isinstance(fault, OSError) else type(fault)

    def fill() -> None:
        with atomic_folder(path) as fresh:
            (fresh / "new").write_text("new")
            raise fault

    with pytest.raises(expected):
        fill()

    assert names(tmp_path) == {"folder"}
    assert names(path) == {"old"}


@pytest.mark.parametrize(
    "error", [ValueError("(os error)"), ValueError("a bug"), RuntimeError("27")]
)
def test_only_the_systems_own_numbers_count(error: Exception) -> None:
    """Rust's errors are known by the system's number they carry; other errors are faults and stay what they are."""
    with pytest.raises(type(error), match=re.escape(str(error))), translate_os_errors(Path("x")):
        raise error


def test_a_folder_may_hold_folders(tmp_path: Path) -> None:
    """All of it is put in place, and can be read by others."""
    with atomic_folder(tmp_path / "deep" / "folder") as fresh:
        (fresh / "inner").mkdir()
        (fresh / "inner" / "file").write_text("text")
    assert (tmp_path / "deep" / "folder" / "inner" / "file").read_text() == "text"
    assert (tmp_path / "deep" / "folder").stat().st_mode & 0o777 == 0o755


def test_a_file_in_the_folders_place_is_said(tmp_path: Path) -> None:
    """No folder can be made below a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*/x: .*; free space or choose another"):
        write_atomic(tmp_path / "file" / "x", "text")
    with (
        pytest.raises(OutputError, match=r"cannot write .*/x: "),
        atomic_folder(tmp_path / "file" / "x"),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    """The system's own reason is in the line."""
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_atomic(tmp_path / "x", "text")


def test_faults_of_our_own_pass_through() -> None:
    """Only the system's refusals become an OutputError."""
    with pytest.raises(UsageError, match=r"^mine$"), translate_os_errors(Path("x")):
        raise UsageError("mine")


@pytest.mark.parametrize("place", ["model", "checkpoints/step-7"])
def test_what_a_killed_run_was_filling_is_removed(tmp_path: Path, place: str) -> None:
    """The next run that holds the folder finds nothing half-filled in it or one below; hidden files of others stay."""
    path = tmp_path / place
    kill(start(FILLING_FOR_EVER, path))
    assert len(names(path.parent)) == 1
    (path.parent / ".env.template").write_text("mine")
    with lock_folder(tmp_path):
        assert names(path.parent) - {".lock"} == {".env.template"}


def test_what_a_killed_run_was_replacing_is_put_back(tmp_path: Path) -> None:
    """Killed between moving the old folder away and the new one in, the old one stands again for the next run."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text(OLD)
    start(KILLED_WHILE_REPLACING, path).communicate()
    assert not path.exists()
    with lock_folder(tmp_path):
        assert names(tmp_path) == {"model", ".lock"}
        assert (path / "old").read_text() == OLD


@pytest.mark.parametrize("own_run", [False, True])
def test_what_another_process_fills_is_left_alone(tmp_path: Path, own_run: bool) -> None:
    """A run that does not get hold of a folder removes nothing from it, nor does one that holds the folder above."""
    inner = tmp_path / "inner"
    with lock_folder(inner):
        writer = start(FILLING_FOR_EVER, inner / "model")
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


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path: Path) -> None:
    """The line names the process; SIGKILL frees the folder."""
    folder = tmp_path / "run"
    process = start(HOLDING_FOR_EVER, folder)
    try:
        message = rf"run is in use by process {process.pid}; wait for it or choose another --out"
        with pytest.raises(UsageError, match=message), lock_folder(folder):
            pass
    finally:
        kill(process)
    with lock_folder(folder):
        assert (folder / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_hold_ends_with_its_block_however_it_ends(tmp_path: Path) -> None:
    """An error inside does not leave the folder locked; a second hold inside another is refused."""

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
