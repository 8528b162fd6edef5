"""Images as records name them: paths, file: and data: URLs, bytes, and the forms of APIs and the `datasets` library."""

import base64
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from caldera.errors import ConversationError, UsageError, shorten_value

_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
"""Starts of JPEG, PNG, GIF and WebP in base64."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:/")
_NAME_KEYS = ("path", "url", "image_url", "image", "file_name", "filename")
_DATA_KEYS = ("bytes", "base64", "data")

_MIN_BASE64 = 64
"""Characters from which a text with the start of an image in base64 is no path."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image of a record."""

    path: str = ""
    """Path of the file, with / as separator."""

    content: str | bytes | None = field(default=None, repr=False)
    """The image itself, in base64 or as bytes, if it is not in a file."""

    key: str = ""
    """Mark of the image in the texts, if the record gives one."""

    @property
    def name(self) -> str:
        """File name; empty for an image that is not in a file."""
        return PurePosixPath(self.path).name


def parse_images(value: object) -> list[ImageSource]:
    """Return the images of a field: one, a list, or an object with the mark of each.

    Raises:
        ConversationError: The value is none of these.
    """
    if _is_empty(value):
        return []
    if isinstance(value, dict) and not value.keys() & {*_NAME_KEYS, *_DATA_KEYS, "source"}:
        sources = {key: parse_image(item) for key, item in value.items()}
        return [ImageSource(image.path, image.content, key) for key, image in sources.items()]
    return [parse_image(item) for item in (value if isinstance(value, list | tuple) else [value])]


def _is_empty(value: object) -> bool:
    return value is None or value == "" or value == [] or value == {}


def parse_image(value: object) -> ImageSource:
    """Return the image that a value names or holds."""
    match value:
        case str() if value.strip():
            return _parse_text(value)
        case bytes() if value:
            return ImageSource(content=value)
        case {"source": dict(source)}:
            return parse_image(source)
        case dict():
            name = next((value[key] for key in _NAME_KEYS if value.get(key)), "")
            content = next((value[key] for key in _DATA_KEYS if value.get(key)), None)
            is_inline = isinstance(content, bytes) or (
                isinstance(content, str) and not value.get("bytes")
            )
            if is_inline and isinstance(content, str | bytes):
                return ImageSource(name if isinstance(name, str) else "", content)
            if content is None and name:
                return parse_image(name)
    raise ConversationError(
        f"images should be a path or a list of paths, got {shorten_value(value)}; write the images to files and name "
        "them"
    )


def _parse_text(text: str) -> ImageSource:
    """Return the image of a path or URL."""
    scheme = _SCHEME.match(text)
    name = scheme[1].lower() if scheme else ""
    if name == "data":
        return ImageSource(content=text)
    if len(text) >= _MIN_BASE64 and text.startswith(_BASE64_STARTS) and "." not in text:
        return ImageSource(content=text)
    if name == "file":
        path = unquote(text[len("file:") :])
        path = path.removeprefix("//localhost") if path.startswith("//localhost/") else path
        path = path.removeprefix("//")
        return ImageSource(path[1:] if _DRIVE.match(path[1:]) else path)
    if scheme and text[scheme.end() :].startswith("//"):
        raise ConversationError(
            f"the image {shorten_value(text)} is a {name}: URL, which is not fetched; download it and name the file"
        )
    return ImageSource(text)


def inline_image_bytes(content: str | bytes) -> bytes:
    """Return the bytes of an image that a record holds in base64, a data: URL, or as bytes.

    Raises:
        ConversationError: The text is not base64.
    """
    if isinstance(content, bytes):
        return content
    header, comma, text = (
        content.partition(",") if content[:5].lower() == "data:" else ("", "", content)
    )
    if header and (not comma or not header.lower().endswith(";base64")):
        raise ConversationError(
            f"the image {shorten_value(content)} is a data: URL without base64; encode the image in base64"
        )
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ConversationError(
            f"the image {shorten_value(content)} is broken base64; encode the file again"
        ) from None


@dataclass(slots=True)
class ImageLocator:
    """Finds the files of image paths that were written on another machine."""

    root: Path
    """Folder that image paths are relative to."""

    images_from: tuple[tuple[str, str], ...] = ()
    """Pairs of a folder's former path and its current one."""

    _located: dict[str, tuple[str, str]] = field(default_factory=dict)
    _origins: dict[str, str] = field(default_factory=dict)

    def locate(self, path: str, notes: list[str]) -> str:
        """Return the path of an image relative to the root, or an absolute one; a guess is added to `notes`.

        Raises:
            ConversationError: Two paths lead to the same file.
        """
        if "\\" not in path and not self.images_from and not is_absolute(path):
            return path
        if path not in self._located:
            self._located[path] = self._search(path)
        current_path, note = self._located[path]
        if note:
            notes.append(note)
        return current_path

    def _search(self, path: str) -> tuple[str, str]:
        """Return the path of an image, and how it was found if that is a guess."""
        if "\\" in path and not self._exists(path):
            path = path.replace("\\", "/")
        for old, new in self.images_from:
            if path.startswith(f"{old}/"):
                return os.path.join(new, path[len(old) + 1 :]), ""  # noqa: PTH118
        if not is_absolute(path) or self._exists(path):
            return path, ""
        parts = PurePosixPath(path).parts[1:]
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            if self._exists(tail):
                origin = self._origins.setdefault(tail, path)
                if origin != path:
                    raise ConversationError(
                        f"the images {origin} and {path} would both be {self.root / tail}; "
                        "name the folders with --images-from OLD=NEW"
                    )
                return tail, "image found by the end of its absolute path"
        return path, ""

    def _exists(self, path: str) -> bool:
        return os.path.isfile(os.path.join(self.root, path))  # noqa: PTH113, PTH118


def is_absolute(path: str) -> bool:
    """Return whether a path of any system is absolute."""
    return path.startswith(("/", "\\")) or _DRIVE.match(path.replace("\\", "/")) is not None


def parse_images_from(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of `OLD=NEW`, with absolute new folders."""
    pairs = []
    for text in texts:
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise UsageError(f"--images-from is {text!r}; write OLD=NEW, such as /data/coco=photos")
        pairs.append((old.replace("\\", "/").rstrip("/"), str(Path(new).absolute())))
    return tuple(pairs)
