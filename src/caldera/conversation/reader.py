"""Reader of conversation files: one for training, checks, imports, mixes and statistics, so that all of them agree."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from caldera.conversation.arrow_files import is_arrow_data
from caldera.conversation.image_marks import Mark, place_images, split_marks
from caldera.conversation.image_values import ImageLocator, ImageSource, is_absolute
from caldera.conversation.record_forms import PAIR_FIELDS, TURN_FIELDS, RawRecord, RecordParser
from caldera.conversation.turns import IMAGE_PLACEHOLDER, Conversation, ImageRef, Part, Role, Turn
from caldera.errors import ConversationError, ImageError, InputError, shorten_value
from caldera.files.atomic import file_exists
from caldera.files.records import OnBrokenLine, OnBytesRead, read_records
from caldera.files.skipped_items import SkippedItems
from caldera.images.decoding import DEFAULT_DECODING, DecodingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """Options of the reader of conversation files."""

    ignore_fields: frozenset[str] = frozenset()
    """Unknown fields that are no error."""

    images: Path | None = None
    """Folder that image paths are relative to; by default the file's."""

    images_from: tuple[tuple[str, str], ...] = ()
    """Former and current path of folders of images."""

    check_images: bool = False
    """Whether a record whose image does not exist is invalid."""

    decoding: DecodingConfig = DEFAULT_DECODING
    """Limits on the images, for those who decode them."""


_UNFILLED_MARKS = ("<bbox>", "<ref-object>")
"""Marks that ms-swift replaces by boxes of another field."""


@dataclass(slots=True)
class ConversationParser:
    """Parser of the records of one file."""

    locate: Callable[[ImageSource, list[str]], str]
    """Returns the path of an image; what was changed is added to the list."""

    ignore_fields: frozenset[str] = frozenset()
    importing: bool = False
    """Whether to drop unknown fields, a first answer and a last question, which are errors otherwise."""

    def parse(
        self, record: object, location: str, notes: list[str], default_id: str = ""
    ) -> Conversation:
        """Return the conversation of a record; what was changed is added to `notes`.

        Raises:
            ConversationError: The record is invalid; the message starts with its location.
        """
        identity = record.get("id") if isinstance(record, dict) else None
        name = "" if identity is None else f"record {shorten_value(str(identity))}"
        try:
            parser = RecordParser(self.ignore_fields, self.importing, notes)
            raw = parser.parse(record, default_id or location)
            if self.importing:
                _trim_ends(raw, notes)
            turns = self._turns(raw, notes)
            return Conversation(raw.id, turns, location).require_answer()
        except (ConversationError, ImageError) as error:
            is_named = name and not str(error).startswith(("field ", "unknown field"))
            separator = " " if str(error).startswith("has ") else ": "
            subject = f"{name}{separator}" if is_named else ""
            raise type(error)(f"{location}: {subject}{error}") from None

    def _turns(self, raw: RawRecord, notes: list[str]) -> tuple[Turn, ...]:
        """Return the turns of a record with its images in their places."""
        questions = [pieces for role, pieces in raw.turns if role == "user"]
        answers = [
            str(pieces[0]) if len(pieces) == 1 else "".join(map(str, pieces))
            for role, pieces in raw.turns
            if role == "assistant"
        ]
        for answer in answers:
            _check_answer(answer, notes)
        placed = iter(place_images(questions, answers, raw.images, notes))
        texts = iter(answers)
        return tuple(
            [
                Turn("user", self._parts(next(placed), notes))
                if role == "user"
                else Turn("assistant", (next(texts),))
                for role, _ in raw.turns
            ]
        )

    def _parts(self, pieces: list[str | ImageSource], notes: list[str]) -> tuple[Part, ...]:
        """Return texts, those in succession joined, and paths of images."""
        parts: list[Part] = []
        for piece in pieces:
            if isinstance(piece, ImageSource):
                parts.append(ImageRef(self.locate(piece, notes)))
            elif parts and isinstance(parts[-1], str):
                parts[-1] += piece
            elif piece:
                parts.append(piece)
        return tuple(parts)


def _check_answer(answer: str, notes: list[str]) -> None:
    """Note a mark in an answer, which is text; raise for one that stands for boxes."""
    for piece in split_marks(answer):
        if isinstance(piece, Mark):
            is_own = piece.text == IMAGE_PLACEHOLDER
            mark = IMAGE_PLACEHOLDER if is_own else f"mark {shorten_value(piece.text)}"
            notes.append(f"{mark} in an answer kept as text")
    if any(mark in answer for mark in _UNFILLED_MARKS):
        raise ConversationError(
            "has a mark <bbox> or <ref-object> in an answer, in place of boxes; write them into the text"
        )


def _trim_ends(raw: RawRecord, notes: list[str]) -> None:
    """Drop an answer without a question at the start, and a question without an answer at the end."""

    def drop(index: int, role: Role, note: str) -> None:
        if raw.turns and raw.turns[index][0] == role:
            if any(not isinstance(piece, str) for piece in raw.turns[index][1]):
                raise ConversationError("the last turn, which shows an image, has no answer")
            del raw.turns[index]
            notes.append(note)

    drop(0, "assistant", "first turn, the assistant's, removed")
    drop(-1, "user", "last turn, without an answer, removed")


def from_record(
    record: object, location: str, ignore_fields: frozenset[str] = frozenset()
) -> Conversation:
    """Return the Conversation of one parsed JSON object.

    Args:
        record: The object, in any of the forms of docs/data.md.
        location: File and line or index, for messages.
        ignore_fields: Names of additional fields to ignore.

    Raises:
        ConversationError: The record is invalid; the message has the location, the field and what to do.
    """
    parser = ConversationParser(lambda image, _: _path(image, "FILE"), ignore_fields)
    return parser.parse(record, location, [])


def _path(image: ImageSource, file: object) -> str:
    """Return the path of an image; raise if the record holds the image itself."""
    if image.content is not None:
        raise ConversationError(
            f"an image is given as data ({shorten_value(image.content)}) instead of a path; write it to a file with: "
            f"caldera data import llava {file} --out NEW.json"
        )
    return image.path


def iter_conversations(
    file: Path,
    skipped: SkippedItems,
    options: ReadOptions,
    on_bytes_read: OnBytesRead = lambda _: None,
) -> Iterator[Conversation]:
    """Yield the valid records of a file; the others, and notes about changed ones, are added to `skipped`.

    Raises:
        InputError: The file cannot be read, or an invalid record may not be skipped.
    """
    root = options.images or file.parent
    locator = ImageLocator(root, options.images_from)
    missing: dict[str, bool] = {}

    def locate(image: ImageSource, notes: list[str]) -> str:
        path = locator.locate(_path(image, file), notes)
        if options.check_images:
            if path not in missing:
                missing[path] = not file_exists(root / path)
            if missing[path]:
                advice = (
                    ", or name its folder with --images-from OLD=NEW" if is_absolute(path) else ""
                )
                raise ImageError(
                    f"{root / path} does not exist; check the path and --images{advice}"
                )
        return path

    parser = ConversationParser(locate, options.ignore_fields)
    for index, (location, record) in enumerate(
        located_records(file, skipped.add_or_raise, on_bytes_read)
    ):
        notes: list[str] = []
        try:
            conversation = parser.parse(record, location, notes, f"{file.stem}-{index}")
        except InputError as error:
            skipped.add_or_raise(location, error)
            continue
        for note in dict.fromkeys(notes):
            skipped.note(location, note)
        yield conversation


def located_records(
    file: Path, on_broken_line: OnBrokenLine, on_bytes_read: OnBytesRead = lambda _: None
) -> Iterator[tuple[str, object]]:
    """Yield the records of a file of JSON with their locations; a list inside of one object is unwrapped.

    Raises:
        InputError: The file cannot be read, or is not JSON.
    """
    if is_arrow_data(file):
        raise InputError(
            f"{file} holds tables of the datasets library; convert it with: caldera data import llava {file} "
            "--out NEW.json"
        )
    if file.is_dir():
        raise InputError(
            f"{file} is a folder; give a file of conversations, which are written about images with captions or "
            f"boxes by: caldera data generate coco {file} --out NEW.json"
        )
    if file.suffix.lower() in (".csv", ".tsv"):
        raise InputError(
            f"{file} is a table; captions in it are read by: caldera data import captions {file} --out NEW.json"
        )
    for location, record in read_records(file, on_bytes_read, on_broken_line):
        if location != str(file) and location != f"{file}:1":
            yield location, record
            continue
        yield from _unwrap(location, record)


def _unwrap(location: str, record: object) -> Iterator[tuple[str, object]]:
    """Yield the records of the only list, or the records by id, in an object that is not a record itself."""
    if not isinstance(record, dict) or _is_record(record):
        yield location, record
        return
    lists = {
        key: value
        for key, value in record.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    }
    if len(lists) == 1:
        [(name, items)] = lists.items()
        for index, item in enumerate(items):
            yield f"{location}: {name}[{index}]", item
    elif record and all(isinstance(item, dict) and _is_record(item) for item in record.values()):
        for name, item in record.items():
            yield f"{location}: {shorten_value(name)}", {"id": name, **item}
    else:
        yield location, record


def _is_record(record: dict[str, object]) -> bool:
    """Return whether an object has the turns of a record."""
    return any(name in record for name in TURN_FIELDS) or any(
        {*pair} <= record.keys() for pair in PAIR_FIELDS
    )


def read_conversations(
    path: Path,
    ignore_fields: frozenset[str] = frozenset(),
    *,
    skipped: SkippedItems | None = None,
    options: ReadOptions | None = None,
) -> list[Conversation]:
    """Return all conversations of a data file.

    Args:
        path: File in any of the formats of docs/data.md.
        ignore_fields: Names of additional fields to ignore.
        skipped: Takes invalid records, and notes about changed ones; by default the first invalid one is an error.
        options: All options, in place of `ignore_fields`.

    Raises:
        InputError: The file or a record in it is invalid.
    """
    options = options or ReadOptions(ignore_fields=ignore_fields)
    if skipped is not None:
        return list(iter_conversations(path, skipped, options))
    skipped = SkippedItems()
    conversations = list(iter_conversations(path, skipped, options))
    skipped.finish(len(conversations))
    return conversations
