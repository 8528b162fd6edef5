"""Bytes in, whole files out: what is written is there entirely or not at all, and no two runs share a folder."""

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from caldera.errors import OutputError, UsageError

_LOCK = ".lock"
"""The file in a run's folder that its process locks."""


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where a path is or will be; it need not exist yet."""
    standing = next(each for each in (path, *path.absolute().parents) if each.exists())
    return shutil.disk_usage(standing).free


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals while writing `path` into errors that say what to do.

    Raises:
        OutputError: The disk is full, the folder cannot be written, or the device failed.
    """
    try:
        yield
    except Exception as error:
        reason = _os_error_text(error)
        if reason is None:
            raise
        raise OutputError(
            f"cannot write {path}: {reason}; free space or choose another place, then run again"
        ) from error


def _os_error_text(error: Exception) -> str | None:
    """Return in which words the system refused, None where it did not.

    Safetensors and tokenizers write from Rust: a full disk ends in errors of their own, which only name its number.
    """
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else None


def write_atomic(path: Path, content: bytes | str | Iterable[str]) -> None:
    """Write a file beside its place, flush it to disk, then put it in place in one move.

    Args:
        path: Its place.
        content: All of it, or its pieces in order; what they raise leaves nothing behind.

    Raises:
        OutputError: It could not be written; a file that stood at `path` still stands.
    """
    pieces = [content] if isinstance(content, bytes | str) else content
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                for piece in pieces:
                    file.write(piece.encode() if isinstance(piece, str) else piece)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def file_exists(path: Path) -> bool:
    """Tell whether a file stands at `path`, which data may have made up and as long as they like."""
    try:
        return path.is_file()
    except OSError:  # such as a name too long for the file system
        return False


def to_plain_json(value: object) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return a value as it is after a trip through JSON: tuples are lists, keys are text."""
    return json.loads(json.dumps(value))


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


_PARTIAL_SUFFIX, _BACKUP_SUFFIX = ".unfinished", ".replaced"
"""How the folders end that `whole_folder` makes beside its place: one to be filled, one for what stood there before."""


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a fresh folder to fill; it takes `path`'s place when the block ends well, else it is removed.

    What a killed process leaves beside `path` is cleared away when the run's folder is held again.

    Raises:
        OutputError: It could not be written; a folder that stood at `path` still stands.
    """
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = _make_sibling(path, _PARTIAL_SUFFIX)
        try:
            yield fresh
            fresh.chmod(0o755)
            _fsync_tree(fresh)
            if path.exists():
                old = _make_sibling(path, _BACKUP_SUFFIX)
                kept = path.replace(old / path.name)
                try:
                    fresh.replace(path)
                except BaseException:
                    kept.replace(path)
                    old.rmdir()
                    raise
                shutil.rmtree(old)
            else:
                fresh.replace(path)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def _make_sibling(path: Path, ending: str) -> Path:
    """Make a hidden folder beside a place."""
    return Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=ending))


def _recover_after_crash(folder: Path) -> None:
    """Put back what a killed process was replacing in a run's folder or one below, and remove what it was filling.

    It is safe only while the folder is held: a run fills and replaces folders while it holds its own, so the process
    that left these has ended. Folders with a lock of their own are other runs and are left to them. Only towers are
    unpacked before the hold; of two processes that do that in one folder, one is refused in any case.
    """
    below = (path for path in folder.iterdir() if path.is_dir() and not (path / _LOCK).exists())
    for place in [folder, *below]:
        for replaced in place.glob(f".*{_BACKUP_SUFFIX}"):
            for kept in replaced.iterdir():
                if not (place / kept.name).exists():
                    kept.replace(place / kept.name)
            shutil.rmtree(replaced)
        for fresh in place.glob(f".*{_PARTIAL_SUFFIX}"):
            shutil.rmtree(fresh, ignore_errors=True)


def _fsync_tree(folder: Path) -> None:
    """Flush every file of a folder to disk, and let others read it, which some libraries' files do not."""
    for file in (entry for entry in folder.rglob("*") if entry.is_file()):
        file.chmod(0o644)
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a run's folder against a second run; the hold ends with the process, however it ends.

    What a killed run left half-written or half-replaced in it is cleared away or put back first.

    Raises:
        UsageError: Another process holds it.
        OutputError: It cannot be written.
    """
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with suppress(OSError):
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            raise UsageError(
                f"{folder} is in use by process {holder or '?'}; wait for it or choose another --out"
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        with translate_os_errors(folder):
            _recover_after_crash(folder)
        yield
    finally:
        os.close(lock)
