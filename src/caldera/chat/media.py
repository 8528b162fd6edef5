"""A path that a user typed in, a checked picture file out: the one place that opens a user's picture."""

import re
from pathlib import Path

from caldera.batches.picture_files import open_picture
from caldera.errors import PictureError
from caldera.storage import is_file_there


def users_picture(text: str) -> Path:
    """Return the file that a user means, after opening it once.

    Args:
        text: A path as typed or dropped on a terminal: quotes around it, backslashes in it and `~` are understood.

    Raises:
        PictureError: It is a web address, a folder, not there, or not a picture.
    """
    text = text.strip().strip("'\"")
    if "://" in text:
        raise PictureError(f"{text} is a web address; download the picture and give its file")
    path = Path(text).expanduser()
    if "\\" in text and not is_file_there(path):
        path = Path(re.sub(r"\\(.)", r"\1", text)).expanduser()
    open_picture(path)
    return path.resolve()
