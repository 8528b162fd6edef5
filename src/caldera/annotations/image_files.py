"""Image files of annotations: their folder, and the file of each name that a tool wrote."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from caldera.files.atomic import file_exists

_SAMPLE = 200
"""Names that decide which folder has the images."""

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
"""Label Studio puts eight digits before the name of an uploaded file."""


def normalize_name(name: str) -> str:
    r"""Return an image's name with `/` as the separator: 'images\\1.jpg' -> 'images/1.jpg'."""
    return name.replace("\\", "/").removeprefix("./")


class ImageFinder:
    """Finds image files by the names that annotations give them."""

    def __init__(self, roots: Sequence[Path], names: Sequence[str]) -> None:
        """Choose the folder, of those that exist, with the most of `names`; the first if none has any."""
        folders = [root for root in roots if root.is_dir()] or list(roots[-1:])
        step = max(1, len(names) // _SAMPLE)
        sample = names[::step]
        self.root = max(
            folders, key=lambda root: sum(_find(root, name) is not None for name in sample)
        )

    def path(self, name: str) -> Path:
        """Return the file of a name: exact, by the longest tail that exists, or where it should be."""
        return _find(self.root, name) or self.root / normalize_name(name)


def _find(root: Path, name: str) -> Path | None:
    """Return the first file below `root` that the name may mean."""
    return next((path for path in _candidates(root, name) if file_exists(path)), None)


def _candidates(root: Path, name: str) -> Iterator[Path]:
    """Yield the paths that a name may mean, the most literal first."""
    if not name:
        return
    yield root / name
    # Label Studio writes local files as /data/local-files/?d=folder/1.jpg, and quotes the paths of uploads.
    text = normalize_name(unquote(name.rpartition("?d=")[2]))
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        yield root.joinpath(*parts[start:])
    if parts and _UPLOAD_PREFIX.match(parts[-1]):
        yield root / _UPLOAD_PREFIX.sub("", parts[-1])
