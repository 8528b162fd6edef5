"""A data file in, everything that is wrong with it out, before any time is spent on training."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from caldera.batches.picture_files import open_picture
from caldera.conversation import Conversation, from_record
from caldera.errors import InputError, RecordError
from caldera.progress import Progress, Tick
from caldera.record_files import iterate_records
from caldera.skips import Skip
from caldera.storage import is_file_there


@dataclass(slots=True)
class Findings:
    """What a check found."""

    records: int = 0
    turns: int = 0
    pictures: set[str] = field(default_factory=set)
    """As the records name them."""

    several: int = 0
    """Records with more than one picture."""

    without: int = 0
    """Records with none."""

    repeated_ids: int = 0
    """Records whose id another one has, too; that is allowed."""

    bad: list[Skip] = field(default_factory=list)


def check_file(
    file: Path,
    pictures: Path,
    *,
    open_pictures: bool,
    ignore: frozenset[str],
    progress: Progress,
) -> Findings:
    """Check every record of a file, and every picture it shows, each once.

    Args:
        file: `.json` or `.jsonl`.
        pictures: Folder that picture paths start from.
        open_pictures: Decode each picture; else only look whether it is there.
        ignore: Names of surplus fields to pass over.
        progress: Follows the work.

    Raises:
        InputError: The file as a whole cannot be read.
    """
    findings = Findings()
    ids: Counter[str] = Counter()
    faults: dict[str, str | None] = {}
    with progress.job("checking, in kB", _size(file)) as tick:
        for where, record in iterate_records(file, _in_kilobytes(tick)):
            findings.records += 1
            try:
                conversation = from_record(record, where, ignore)
                ids[conversation.id] += 1
                _count(findings, conversation)
                for name in conversation.pictures:
                    if name not in faults:
                        faults[name] = _fault(pictures / name, open_pictures=open_pictures)
                    if faults[name] is not None:
                        raise RecordError(f"{where}: {faults[name]}")
            except InputError as fault:
                findings.bad.append(Skip(where, str(fault).removeprefix(f"{where}: ")))
    findings.pictures = set(faults)
    findings.repeated_ids = sum(count for count in ids.values() if count > 1)
    return findings


def _count(findings: Findings, conversation: Conversation) -> None:
    """Add a good record to the counts."""
    findings.turns += len(conversation.turns)
    findings.several += len(conversation.pictures) > 1
    findings.without += not conversation.pictures


def _fault(path: Path, *, open_pictures: bool) -> str | None:
    """Return what is wrong with a picture, None if nothing is."""
    if not open_pictures:
        return (
            None if is_file_there(path) else f"{path} does not exist; check the path and --pictures"
        )
    try:
        open_picture(path)
    except InputError as fault:
        return str(fault)
    return None


def _in_kilobytes(tick: Tick) -> Callable[[int], None]:
    """Return a follower of bytes that ticks once a kB."""
    read = 0

    def follow(count: int) -> None:
        nonlocal read
        before, read = read, read + count
        if steps := read // 1000 - before // 1000:
            tick(steps)

    return follow


def _size(file: Path) -> int:
    """Return how many kB there are to read; what cannot be read is said when it is."""
    try:
        return file.stat().st_size // 1000
    except OSError:
        return 0
