"""A path that a user typed in, a checked picture file out: the one place that opens a user's picture."""

from contextlib import suppress
from pathlib import Path

from caldera.batches.pictures import open_picture
from caldera.errors import PictureError


def users_picture(text: str) -> Path:
    """Return the file that a user means, after opening it once.

    Args:
        text: A path as typed or dropped on a terminal: quotes around it and `~` are understood.

    Raises:
        PictureError: It is a web address, a folder, not there, or not a picture.
    """
    text = text.strip().strip("'\"")
    if "://" in text:
        raise PictureError(f"{text} is a web address; download the picture and give its file")
    path = Path(text).expanduser()
    with suppress(OSError):  # such as a name too long for the file system: opening it says so
        if path.is_dir():
            raise PictureError(f"{path} is a folder; give a picture file")
        if path.exists() and not path.is_file():
            raise PictureError(f"{path} is not a regular file; give a picture file")
    open_picture(path)
    return path.resolve()
