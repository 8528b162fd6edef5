"""Atomic writes of files and folders, and locks on run folders."""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caldera.errors import OutputError, UsageError

_LOCK = ".lock"
"""Lock file in a run's folder."""

_PARTIAL_SUFFIX, _BACKUP_SUFFIX = ".unfinished", ".replaced"
"""Suffixes of hidden entries next to what is written: the new content, and a folder's old content during the swap."""


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of a path, which need not exist yet."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn system errors while writing `path` into an OutputError that suggests what to do."""
    try:
        yield
    except Exception as error:
        reason = _os_error_text(error)
        if reason is None:
            raise
        too_long = reason == os.strerror(errno.ENAMETOOLONG)
        advice = "choose a shorter name" if too_long else "free space or choose another path"
        raise OutputError(f"cannot write {path}: {reason}; {advice}, then run again") from error


def _os_error_text(error: Exception) -> str | None:
    """Return the system's reason of an error; None if it is not a system error.

    Safetensors and tokenizers write from Rust: their own exceptions only contain the number of the system error.
    """
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else None


def write_atomic(path: Path, content: bytes | str | Iterable[str]) -> None:
    """Write a temporary file in the same folder, flush it to disk, and rename it to `path`.

    Whatever fails, the chunks of the content included, an earlier file at `path` is unchanged.
    """
    chunks = [content] if isinstance(content, bytes | str) else content
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(_PARTIAL_SUFFIX, f".{path.name}.", path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    file.write(chunk.encode() if isinstance(chunk, str) else chunk)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def file_exists(path: Path) -> bool:
    """Return whether `path` is a file; any path from a data file is allowed."""
    try:
        return path.is_file()
    except OSError:
        # For example, the name is too long for the file system.
        return False


def to_plain_json(value: object) -> Any:  # noqa: ANN401 - JSON
    """Return a value as it is read back from JSON: tuples become lists, keys become text."""
    return json.loads(json.dumps(value))


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` when the block succeeds, and is removed when it fails.

    Leftovers of a killed process are removed when the run's folder is locked again.
    """
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _make_sibling(path, _PARTIAL_SUFFIX)
        backup_folder = None
        try:
            yield partial
            partial.chmod(0o755)
            _fsync_tree(partial)
            if path.exists():
                backup_folder = _make_sibling(path, _BACKUP_SUFFIX)
                path.replace(backup_folder / path.name)
            partial.replace(path)
            # Before the caller removes older content, the new name must be on disk.
            _fsync(path.parent)
        except BaseException:
            if not partial.exists():
                path.replace(partial)
            if backup_folder:
                _restore(backup_folder)
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if backup_folder:
            # If this fails, the next run removes it.
            shutil.rmtree(backup_folder, ignore_errors=True)


def _restore(backup_folder: Path) -> None:
    """Move a folder that was being replaced back, unless another has taken its place."""
    for backup in backup_folder.iterdir():
        if not (backup_folder.parent / backup.name).exists():
            backup.replace(backup_folder.parent / backup.name)
    shutil.rmtree(backup_folder)


def _make_sibling(path: Path, suffix: str) -> Path:
    return Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=suffix))


def _recover_after_crash(folder: Path) -> None:
    """Restore what a killed process was replacing in a run's folder or its subfolders, and remove partial writes.

    This is safe only while the folder is locked: a run writes only while it holds the lock, so the process that left
    them has ended. Subfolders with a lock file are other runs and are not touched. Only towers are unpacked before the
    folder is locked; of two processes that do so in one folder, one fails in any case.
    """
    below = (path for path in folder.iterdir() if path.is_dir() and not (path / _LOCK).exists())
    for parent in [folder, *below]:
        for backup_folder in parent.glob(f".*{_BACKUP_SUFFIX}"):
            _restore(backup_folder)
        for partial in parent.glob(f".*{_PARTIAL_SUFFIX}"):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink()


def _fsync_tree(folder: Path) -> None:
    """Flush every file of a folder to disk, and make it readable: some libraries write files only for their owner."""
    for file in (entry for entry in folder.rglob("*") if entry.is_file()):
        file.chmod(0o644)
        _fsync(file)


def _fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run's folder against a second run; the lock ends with the process, however it ends.

    Folders that a killed run left half-written or half-replaced are removed or restored first.
    """
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with translate_os_errors(folder):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
                raise UsageError(
                    f"{folder} is in use by process {holder or '?'}; wait for it or choose another --out"
                ) from error
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            _recover_after_crash(folder)
        yield
    finally:
        os.close(lock)
