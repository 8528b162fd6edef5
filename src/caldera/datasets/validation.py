"""Validation of a data file: every record and image is checked before training."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from caldera.conversation.reader import ReadOptions, iter_conversations
from caldera.errors import ImageError
from caldera.files.skipped_items import SkippedItems
from caldera.images.decoding import TRUNCATED_NOTE, DecodingConfig, is_truncated, open_image
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


def validate_file(
    file: Path,
    skipped: SkippedItems,
    options: ReadOptions,
    *,
    decode_images: bool,
    progress: Progress,
) -> ValidationReport:
    """Check every record of a file, and each of its images once; invalid records are added to `skipped`."""
    report = ValidationReport()
    root = options.images or file.parent
    options = replace(options, check_images=True)
    check = partial(_image_error, decoding=options.decoding, skipped=skipped)
    ids: Counter[str] = Counter()
    image_errors: dict[str, ImageError | None] = {}
    with progress.task("checking, in kB", _size_in_kb(file)) as advance:
        for conversation in iter_conversations(file, skipped, options, _advance_by_kb(advance)):
            for name in conversation.images:
                if name not in image_errors:
                    image_errors[name] = check(root / name) if decode_images else None
            errors = filter(None, (image_errors[name] for name in conversation.images))
            if error := next(errors, None):
                location = conversation.location
                error = ImageError(f"{location}: record {conversation.id!r}: {error}")
                skipped.add_or_raise(location, error)
                continue
            ids[conversation.id] += 1
            report.turns += len(conversation.turns)
            report.multi_image += len(conversation.images) > 1
            report.text_only += not conversation.images
            report.images.update(conversation.images)
    report.records = ids.total() + len(skipped.items)
    report.repeated_ids = sum(count for count in ids.values() if count > 1)
    return report


def _image_error(path: Path, decoding: DecodingConfig, skipped: SkippedItems) -> ImageError | None:
    """Return the error of an image that cannot be decoded; one that is truncated but allowed is noted."""
    try:
        open_image(path, decoding)
    except ImageError as error:
        return error
    if decoding.allow_truncated and is_truncated(path):
        skipped.note(str(path), TRUNCATED_NOTE)
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
