"""What an importer is told and what it gives: Conversations that show images by their whole paths."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from caldera.conversation import Conversation, ImageRef
from caldera.errors import ImageError
from caldera.files.skipped import SkippedItems

AnswerPromptPlacement = Literal["each", "first", "none"]
"""Which questions of a conversation end with the sentence that says how to answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """What some importers need to be told."""

    images: Path | None = None
    """Folder that image names start from."""

    check_exists: bool = True
    """Whether to look if each image is there."""

    split: str | None = None
    """Which part of a collection to read."""

    answers: Path | None = None
    """File of the answers, where they are not beside the questions."""

    layout: str = "QCM-LEA"
    """How a ScienceQA problem is laid out: a name that `science_qa.parse_form` knows."""

    answer_prompt: AnswerPromptPlacement = "each"
    """Which questions end with the sentence that says how to answer."""

    per_image: int = 0
    """How many captions of an image are taken, each as a conversation; 0 takes all."""

    seed: int = 0
    """Of the wording of questions."""


@dataclass(slots=True)
class ImportResult:
    """What an importer made of a file."""

    conversations: list[Conversation] = field(default_factory=list)
    total: int = 0
    """Records, questions or pairs that were met, the bad ones among them."""

    fixes: Counter[str] = field(default_factory=Counter)
    """What was set right on the way, and how often."""


Importer = Callable[[Path, SkippedItems, ImportOptions], ImportResult]


class ImageFolder:
    """Finds images by the names that a set gives them."""

    def __init__(self, root: Path, *, find: bool) -> None:
        self._root, self._find = str(root), find
        self._found: dict[tuple[str, ...], str | None] = {}

    def resolve(self, *names: str) -> str:
        """Return the whole path of the first of several names that is there; of the first, where nobody looks.

        Raises:
            ImageError: None is there.
        """
        if not self._find:
            return os.path.join(self._root, names[0])  # noqa: PTH118 - of hundreds of thousands
        if names not in self._found:
            paths = (os.path.join(self._root, name) for name in names)  # noqa: PTH118
            self._found[names] = next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113
        found = self._found[names]
        if found is None:
            raise ImageError(
                f"{Path(self._root, names[0])} does not exist; check --images, or pass --no-find if it comes later"
            )
        return found


class PathRewriter:
    """Rewrites image paths to start from another folder."""

    def __init__(self, start: Path, to: Path) -> None:
        """Paths that now start from `start` will start from `to`."""
        self._start, self._to = str(start), str(to)
        self._folders: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """Return the path as it is from the new folder; one that is absolute stays so only on another drive."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            whole = os.path.join(self._start, folder)  # noqa: PTH118
            self._folders[folder] = os.path.relpath(whole, self._to)
        moved = self._folders[folder]
        return name if moved == "." else os.path.join(moved, name)  # noqa: PTH118

    def rewrite(self, conversation: Conversation) -> Conversation:
        """Return a conversation with all its images moved."""
        turns = tuple(
            replace(
                turn,
                parts=tuple(
                    ImageRef(self(part.path)) if isinstance(part, ImageRef) else part
                    for part in turn.parts
                ),
            )
            if turn.images
            else turn
            for turn in conversation.turns
        )
        return replace(conversation, turns=turns)
