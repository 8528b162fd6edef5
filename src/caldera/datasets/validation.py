"""A data file in, everything that is wrong with it out, before any time is spent on training."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from caldera.conversation import Conversation, from_record
from caldera.errors import ConversationError, InputError
from caldera.files.atomic import file_exists
from caldera.files.records import read_records
from caldera.files.skipped import SkippedItem
from caldera.images.decoding import open_image
from caldera.progress import Advance, Progress


@dataclass(slots=True)
class ValidationReport:
    """What a check found."""

    records: int = 0
    turns: int = 0
    images: set[str] = field(default_factory=set)
    """As the records name them."""

    multi_image: int = 0
    """Records with more than one image."""

    text_only: int = 0
    """Records with none."""

    repeated_ids: int = 0
    """Records whose id another one has, too; that is allowed."""

    bad: list[SkippedItem] = field(default_factory=list)


def validate_file(
    file: Path,
    images: Path,
    *,
    open_images: bool,
    ignore: frozenset[str],
    progress: Progress,
) -> ValidationReport:
    """Check every record of a file, and every image it shows, each once.

    Args:
        file: `.json` or `.jsonl`.
        images: Folder that image paths start from.
        open_images: Decode each image; else only look whether it is there.
        ignore: Names of surplus fields to pass over.
        progress: Follows the work.

    Raises:
        InputError: The file as a whole cannot be read.
    """
    findings = ValidationReport()
    ids: Counter[str] = Counter()
    faults: dict[str, str | None] = {}
    with progress.task("checking, in kB", _size(file)) as tick:
        for where, record in read_records(file, _advance_by_kb(tick)):
            findings.records += 1
            try:
                conversation = from_record(record, where, ignore)
                ids[conversation.id] += 1
                _count(findings, conversation)
                for name in conversation.images:
                    if name not in faults:
                        faults[name] = _image_error(images / name, open_images=open_images)
                    if faults[name] is not None:
                        raise ConversationError(f"{where}: {faults[name]}")
            except InputError as fault:
                findings.bad.append(SkippedItem(where, str(fault).removeprefix(f"{where}: ")))
    findings.images = set(faults)
    findings.repeated_ids = sum(count for count in ids.values() if count > 1)
    return findings


def _count(findings: ValidationReport, conversation: Conversation) -> None:
    """Add a good record to the counts."""
    findings.turns += len(conversation.turns)
    findings.multi_image += len(conversation.images) > 1
    findings.text_only += not conversation.images


def _image_error(path: Path, *, open_images: bool) -> str | None:
    """Return what is wrong with an image, None if nothing is."""
    if not open_images:
        return None if file_exists(path) else f"{path} does not exist; check the path and --images"
    try:
        open_image(path)
    except InputError as fault:
        return str(fault)
    return None


def _advance_by_kb(tick: Advance) -> Callable[[int], None]:
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
