"""Pictures' files in on standard input, their sizes or pixels out on standard output: a process of its own.

Decoders of pictures are where the faults and the memory are; here they can be stopped, or die, and take nothing with
them. Asked is an operation (`h` for the head, `d` to decode), the length of the file in eight bytes, and the file.
Answered is one line of JSON, `{"size": [width, height]}` or `{"fault": name}`, and after `d` the pixels as RGB.
"""

import json
import resource
import sys
from typing import BinaryIO

from PIL import Image

from caldera.batches.picture_files import PictureTooLargeError, decode_picture, picture_head
from caldera.errors import PictureError

NAME = "the image"


def serve(asked: BinaryIO, answered: BinaryIO) -> None:
    """Answer until there is nothing more to read."""
    while operation := asked.read(1):
        length = int.from_bytes(asked.read(8))
        said, pixels = answer(operation == b"d", asked.read(length))
        answered.write(json.dumps(said).encode() + b"\n")
        answered.write(pixels)
        answered.flush()


def answer(decode: bool, content: bytes) -> tuple[dict[str, object], bytes]:
    """Return the line and the pixels for one file."""
    try:
        if not decode:
            return {"size": picture_head(content, NAME)[1]}, b""
        picture = decode_picture(content, NAME)
        return {"size": picture.size}, picture.tobytes()
    except PictureTooLargeError:
        return {"fault": "too large"}, b""
    except PictureError:
        return {"fault": "broken"}, b""
    except (MemoryError, Image.DecompressionBombError):
        return {"fault": "memory"}, b""


if __name__ == "__main__":
    most = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    serve(sys.stdin.buffer, sys.stdout.buffer)
