"""Images' files in on standard input, their sizes or pixels out on standard output: a process of its own.

Decoders of images are where the faults and the memory are; here they can be stopped, or die, and take nothing with
them. Asked is an operation (`h` for the head, `d` to decode), the length of the file in eight bytes, and the file.
Answered is one line of JSON, `{"size": [width, height]}` or `{"fault": name}`, and after `d` the pixels as RGB.
"""

import json
import resource
import sys
from typing import BinaryIO

from PIL import Image

from caldera.errors import ImageError
from caldera.images.decoding import ImageTooLargeError, decode_image, read_image_header

NAME = "the image"


def main_loop(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Answer until there is nothing more to read."""
    while operation := stdin.read(1):
        length = int.from_bytes(stdin.read(8))
        said, pixels = handle_file(operation == b"d", stdin.read(length))
        stdout.write(json.dumps(said).encode() + b"\n")
        stdout.write(pixels)
        stdout.flush()


def handle_file(decode: bool, content: bytes) -> tuple[dict[str, object], bytes]:
    """Return the line and the pixels for one file."""
    try:
        if not decode:
            return {"size": read_image_header(content, NAME)[1]}, b""
        image = decode_image(content, NAME)
        return {"size": image.size}, image.tobytes()
    except ImageTooLargeError:
        return {"fault": "too large"}, b""
    except ImageError:
        return {"fault": "broken"}, b""
    except (MemoryError, Image.DecompressionBombError):
        return {"fault": "memory"}, b""


if __name__ == "__main__":
    most = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    main_loop(sys.stdin.buffer, sys.stdout.buffer)
