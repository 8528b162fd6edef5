"""Validation of a data file: every record and image is checked before training."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from caldera.conversation import from_record
from caldera.errors import ConversationError, InputError
from caldera.files.atomic import file_exists
from caldera.files.records import read_records
from caldera.files.skipped_items import SkippedItem
from caldera.images.decoding import open_image
from caldera.progress import Advance, Progress


@dataclass(slots=True)
class ValidationReport:
    """Counts of a data file, and its invalid records."""

    records: int = 0
    turns: int = 0
    images: set[str] = field(default_factory=set)
    """Image paths as in the records."""

    multi_image: int = 0
    """Number of records with more than one image."""

    text_only: int = 0
    """Number of records without an image."""

    repeated_ids: int = 0
    """Number of records that share their id with another one, which is allowed."""

    invalid: list[SkippedItem] = field(default_factory=list)


def validate_file(
    file: Path,
    images: Path,
    *,
    decode_images: bool,
    ignore: frozenset[str],
    progress: Progress,
) -> ValidationReport:
    """Check every record of a file, and each of its images once."""
    report = ValidationReport()
    ids: Counter[str] = Counter()
    image_errors: dict[str, str | None] = {}
    with progress.task("checking, in kB", _size_in_kb(file)) as advance:
        for location, record in read_records(file, _advance_by_kb(advance)):
            report.records += 1
            try:
                conversation = from_record(record, location, ignore)
                ids[conversation.id] += 1
                report.turns += len(conversation.turns)
                report.multi_image += len(conversation.images) > 1
                report.text_only += not conversation.images
                for name in conversation.images:
                    if name not in image_errors:
                        image_errors[name] = _image_error(images / name, decode=decode_images)
                    if image_errors[name] is not None:
                        raise ConversationError(f"{location}: {image_errors[name]}")
            except InputError as error:
                reason = str(error).removeprefix(f"{location}: ")
                report.invalid.append(SkippedItem(location, reason))
    report.images = set(image_errors)
    report.repeated_ids = sum(count for count in ids.values() if count > 1)
    return report


def _image_error(path: Path, *, decode: bool) -> str | None:
    """Return the error of an invalid image, None for a valid one."""
    if not decode:
        return None if file_exists(path) else f"{path} does not exist; check the path and --images"
    try:
        open_image(path)
    except InputError as error:
        return str(error)
    return None


def _advance_by_kb(advance: Advance) -> Callable[[int], None]:
    """Return a callback for read bytes that advances the progress by whole kB."""
    num_read = 0

    def on_bytes_read(count: int) -> None:
        nonlocal num_read
        before, num_read = num_read, num_read + count
        if steps := num_read // 1000 - before // 1000:
            advance(steps)

    return on_bytes_read


def _size_in_kb(file: Path) -> int:
    """Return the size of a file; 0 if it cannot be read, which is reported when it is opened."""
    try:
        return file.stat().st_size // 1000
    except OSError:
        return 0
