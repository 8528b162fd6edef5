"""Importer protocol: options and results, and the reading, image paths and skipped lists that data commands share."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from caldera.conversation import Conversation, ImageRef, to_record, write_conversations
from caldera.errors import AnnotationError, ImageError, InputError, UnknownNameError
from caldera.files.skipped_items import SkippedItems

AnswerPromptPlacement = Literal["each", "first", "none"]
"""Questions of a conversation that end with the sentence that asks for a short answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """Options of the importers; each reads the ones it needs."""

    images: Path | None = None
    """Folder that image names are relative to."""

    images_from: tuple[tuple[str, str], ...] = ()
    """Former and current path of folders of images."""

    ignore_fields: frozenset[str] = frozenset()
    """Fields of records that may be lost although they hold media."""

    new_images: Path = Path("images")
    """Folder for images that the records themselves hold."""

    check_exists: bool = True
    """Check that each image exists."""

    split: str | None = None
    """Part of a collection to read."""

    answers: Path | None = None
    """File of the answers, if it is not next to the questions."""

    layout: str = "QCM-LEA"
    """Layout of a ScienceQA problem, by a name that `science_qa.parse_layout` accepts."""

    answer_prompt: AnswerPromptPlacement = "each"
    """Questions that end with the sentence that asks for a short answer."""

    columns: str | None = None
    """Columns or fields of the image and the caption, 'file_name,text'; None: by their usual names."""

    per_image: int = 0
    """Maximum number of captions per image, each a conversation; 0 for all."""

    kinds: str | None = None
    """Kinds of questions about class folders, separated by commas; None for all."""

    phrases: Path | None = None
    """JSON file of noun phrases by class name, for class folders."""

    hold_out: str | None = None
    """Number of images to hold out from class folders, or the split to hold out."""

    hold_out_option: str = "--hold-out "
    """How a user sets the number of images to hold out, for messages."""

    seed: int = 0
    """Seed for the wording of questions, and for the choice of images to hold out."""

    def __post_init__(self) -> None:
        """Check the placement of the sentence that asks for a short answer."""
        placements = get_args(AnswerPromptPlacement)
        if self.answer_prompt not in placements:
            raise UnknownNameError("choice of --answer-prompt", self.answer_prompt, placements)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutQuestion:
    """A question about an image that is held out, in the form of `caldera evaluate custom`."""

    id: str
    image: str
    kind: str
    question: str
    answer: tuple[str, ...]
    """The answers that are right."""


@dataclass(slots=True)
class ImportResult:
    """Conversations of a file, with absolute image paths."""

    conversations: list[Conversation] = field(default_factory=list)
    total: int = 0
    """Number of records, questions or pairs, skipped ones included."""

    fixes: Counter[str] = field(default_factory=Counter)
    """Number of fixes by description."""

    classes: Counter[str] = field(default_factory=Counter)
    """Number of images by class, where images have classes."""

    held_out: list[HeldOutQuestion] = field(default_factory=list)
    """Questions about images that are held out, with absolute image paths."""


Importer = Callable[[Path, SkippedItems, ImportOptions], ImportResult]
"""Import of a file or folder; raises InputError if it cannot be read, or an invalid item may not be skipped."""


ResolveImage = Callable[..., str]
"""Function from the possible names of an image to its path."""


def image_resolver(root: Path, *, check_exists: bool) -> ResolveImage:
    """Return a function for the path of the first of several names that exists, or of the first without a check."""

    @cache
    def resolve(*names: str) -> str:
        # os.path is several times as fast as pathlib, for data sets of hundreds of thousands of images.
        paths = [os.path.join(root, name) for name in names]  # noqa: PTH118
        for path in paths:
            if not check_exists or os.path.isfile(path):  # noqa: PTH113
                return path
        raise ImageError(
            f"{root / names[0]} does not exist; check --images, or pass --no-check-images if the images are added later"
        )

    return resolve


class PathRewriter:
    """Rewrites image paths relative to the folder `start` as paths relative to the folder `to`."""

    def __init__(self, start: Path, to: Path) -> None:
        self._start, self._to = str(start), str(to)
        self._folders: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """Return the path relative to the new folder; an absolute path stays absolute only on another drive."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            full_path = os.path.join(self._start, folder)  # noqa: PTH118
            self._folders[folder] = os.path.relpath(full_path, self._to)
        moved = self._folders[folder]
        return name if moved == "." else os.path.join(moved, name)  # noqa: PTH118

    def rewrite(self, conversation: Conversation) -> Conversation:
        """Return a conversation with all its image paths rewritten."""
        if not conversation.images:
            return conversation
        turns = tuple(
            replace(
                turn,
                parts=tuple(
                    ImageRef(self(part.path)) if isinstance(part, ImageRef) else part
                    for part in turn.parts
                ),
            )
            for turn in conversation.turns
        )
        return replace(conversation, turns=turns)


def representable_conversations(
    conversations: Iterable[Conversation], source: Path, skipped: SkippedItems
) -> Iterator[Conversation]:
    """Yield the conversations that a data file can represent; one whose text contains <image> is skipped."""
    for conversation in conversations:
        try:
            to_record(conversation)
        except InputError as error:
            skipped.add_or_raise(f"{source}: record {conversation.id}", error)
        else:
            yield conversation


def read_json(path: Path, advice: str = "check the path") -> Any:  # noqa: ANN401 - any JSON value
    """Return the content of a JSON file."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise AnnotationError(f"cannot read {path}: {error.strerror}; {advice}") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is broken JSON: {error}") from error


def write_with_skipped(
    out: Path, conversations: Iterable[Conversation], skipped: SkippedItems, total: int
) -> None:
    """Write a data file and, next to it, the list of skipped and changed records."""
    write_conversations(out, conversations)
    skipped.finish(total, skipped_path(out))


def finish_with_records(
    skipped: SkippedItems, num_valid: int, total: int, source: Path, out: Path
) -> None:
    """List the skipped and changed records of an output; raise if they are over the limit, or no record is valid."""
    listing = skipped_path(out)
    skipped.finish(max(1, total), listing)
    if not num_valid:
        advice = f"; {listing} has the reasons" if skipped.items or skipped.notes else ""
        raise InputError(f"{source} has no valid record to write{advice}")


def skipped_path(file: Path, *, is_input: bool = False) -> Path:
    """Return the path of the list of records that were skipped or changed for a file or folder.

    A file that is only read keeps the list of the command that wrote it.
    """
    return file.with_suffix(f"{'.check' if is_input else ''}.skipped.jsonl")
