"""Fields of a record that hold media which would be lost: video, audio, point clouds, further images."""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath

from caldera.errors import ConversationError, shorten_value

_MEDIA_WORD = re.compile(
    r"(?:video|audio|speech|sound|wav|waveform|spectrogram|mp3|mp4|clip|frame|lidar|pcd|pdf|mesh|depth|point_?cloud)s?"
)
_IMAGE_WORD = re.compile(r"(?:image|img|picture|photo|pixel|gif)s?")
_FACT_WORD = re.compile(
    r"(?:id|width|height|size|hash|md5|sha\d*|fps|duration|length|num|count|caption|description|title|category|type|"
    r"format|license|resolution|quality|shape|source|dataset|split|index|idx|has|is|author)s?"
)
"""Words that make a field a fact about a medium rather than the medium."""

_SUFFIXES = re.compile(
    r"\.(?:mp4|avi|mov|webm|mkv|m4v|flv|mpe?g|wav|mp3|flac|ogg|opus|m4a|aac|pcd|ply|las|npy|npz|obj|glb|pdf)$", re.I
)  # fmt: skip
_IMAGE_SUFFIXES = re.compile(r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif)$", re.IGNORECASE)
_WORD = re.compile(r"point_?clouds?|[a-z]+|\d+", re.IGNORECASE)


def raise_if_lost(
    fields: Mapping[str, object], image_paths: Collection[str], ignore: Collection[str] = ()
) -> None:
    """Check that no field which is not used holds the subject of a record.

    Args:
        fields: The fields that are not used.
        image_paths: Images of the record that are used.
        ignore: Fields that the user ignores; they may hold media if the record shows an image.

    Raises:
        ConversationError: A field seems to hold a medium.
    """
    names = {PurePosixPath(path.replace("\\", "/")).name for path in image_paths}
    for name, value in fields.items():
        if is_empty(value) or not _holds_media(name, value, names):
            continue
        if name not in ignore:
            raise ConversationError(
                f"the field {name!r} holds {shorten_value(value)}, a medium that is not used; remove the record"
                + (" or the field" if names else "")
            )
        if not names and not _is_fact(name):
            raise ConversationError(
                f"the ignored field {name!r} holds {shorten_value(value)}, the only medium of the record; remove the "
                "record"
            )


def is_empty(value: object) -> bool:
    """Return whether a value holds nothing, so that nothing is lost with it."""
    if isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return all(is_empty(item) for item in items)
    # NaN is the empty cell of a table.
    return value is None or value == "" or value is False or value != value


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _is_fact(name: str) -> bool:
    """Return whether a field holds a fact about a medium, by its name."""
    return any(map(_FACT_WORD.fullmatch, _words(name)))


def _holds_media(name: str, value: object, used: Collection[str]) -> bool:
    """Return whether a field holds a medium other than the used images.

    Without a used image a fact about a medium, such as its id, means that the medium is missing.
    """
    words, texts = _words(name), list(_texts(value))
    if any(_SUFFIXES.search(text) for text in texts):
        return True
    if any(map(_MEDIA_WORD.fullmatch, words)):
        is_data = isinstance(value, list | tuple | dict) or name in ("video", "audio")
        return not (_is_fact(name) and used) and (bool(texts) or (is_data and len(words) == 1))
    is_image = any(map(_IMAGE_WORD.fullmatch, words))
    image_texts = [
        text
        for text in texts
        if (_IMAGE_SUFFIXES.search(text) or text.startswith("data:image/"))
        and PurePosixPath(text.replace("\\", "/")).name not in used
    ]
    is_link = all(text.startswith(("http://", "https://")) for text in image_texts)
    is_origin = is_link and ("url" in words or not is_image)
    return (bool(image_texts) and not (used and is_origin)) or (
        is_image and not used and value != 0
    )


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in a value; bytes count as a data URL."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, bytes):
        yield "data:image/"
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
