"""Import of conversation files in the forms of docs/data.md: LLaVA's JSON, ShareGPT, messages, datasets tables.

Besides what training reads directly, an import drops unknown fields, a first turn of the assistant and a last one of
the user (as LLaVA's code does), finds images whose suffix a download changed, and writes images that records hold to
files. Each change is noted.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from caldera.conversation.arrow_files import is_arrow_data, read_arrow_rows
from caldera.conversation.image_values import ImageLocator, ImageSource, inline_image_bytes
from caldera.conversation.reader import ConversationParser, located_records
from caldera.datasets.importer import ImportOptions, ImportResult, ResolveImage, image_resolver
from caldera.errors import InputError, shorten_value
from caldera.files.atomic import write_atomic
from caldera.files.skipped_items import SkippedItems
from caldera.images.decoding import parse_image_header

IMAGE_SUFFIXES = (".jpg", ".png", ".gif", ".jpeg", ".webp", ".JPG", ".PNG")
"""Suffixes tried for an image; mix665k names all images of OCR-VQA .jpg, but the downloads have other suffixes."""


def import_llava(path: Path, skipped: SkippedItems, options: ImportOptions) -> ImportResult:
    """Import a file of conversations, or a folder of the datasets library."""
    root = options.images or (path if path.is_dir() else path.parent)
    resolve_image = image_resolver(root, check_exists=options.check_exists)
    locator = ImageLocator(root, options.images_from)

    def locate(image: ImageSource, notes: list[str]) -> str:
        if image.content is not None:
            notes.append("image in the record written to a file")
            return _write_image(image.content, options.new_images)
        return _find_image(locator.locate(image.path, notes), resolve_image, notes)

    parser = ConversationParser(locate, options.ignore_fields, importing=True)
    imported = ImportResult()
    for index, (location, record) in enumerate(_records(path, options.split, skipped)):
        notes: list[str] = []
        try:
            conversation = parser.parse(record, location, notes, f"{path.stem}-{index}")
        except InputError as error:
            skipped.add_or_raise(location, error)
            continue
        imported.conversations.append(conversation)
        for note in dict.fromkeys(notes):
            skipped.note(location, note)
    imported.total = len(imported.conversations) + len(skipped.items)
    skipped.raise_if_over_limit(imported.total)
    return imported


def _records(path: Path, split: str | None, skipped: SkippedItems) -> Iterator[tuple[str, object]]:
    """Return the records of a JSON file or of tables."""
    if is_arrow_data(path):
        return read_arrow_rows(path, split)
    return located_records(path, skipped.add_or_raise)


def _find_image(name: str, resolve_image: ResolveImage, notes: list[str]) -> str:
    """Return the path of an image; if the file does not exist, other suffixes are tried."""
    stem = name.removesuffix(PurePosixPath(name).suffix)
    path = resolve_image(name, *(stem + suffix for suffix in IMAGE_SUFFIXES))
    if not path.endswith(name):
        notes.append("image found with another suffix")
    return path


def _write_image(content: str | bytes, folder: Path) -> str:
    """Write an image to a file named by its content, and return the path."""
    data = inline_image_bytes(content)
    kind = parse_image_header(data, f"the image {shorten_value(content)}").format
    name = hashlib.sha256(data).hexdigest()[:32]
    path = folder / f"{name}.{kind.lower().replace('jpeg', 'jpg')}"
    if not path.exists():
        write_atomic(path, data)
    return str(path)
