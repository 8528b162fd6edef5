"""Worker process that decodes image files: files on standard input, sizes or pixels on standard output.

Decoding untrusted files is where crashes and memory peaks happen; in a process of its own it can be killed without
harm to the server. A request is an operation (`h` for the header, `d` to decode), the length of the file in eight
bytes, and the file. A reply is one line of JSON, `{"size": [width, height]}` or `{"fault": name}`, followed after `d`
by the pixels as RGB.
"""

import json
import resource
import sys
from typing import BinaryIO

from PIL import Image

from caldera.errors import ImageError
from caldera.images.decoding import (
    DecodingConfig,
    ImageTooLargeError,
    decode_image,
    parse_image_header,
)

NAME = "the image"


def main_loop(stdin: BinaryIO, stdout: BinaryIO, config: DecodingConfig) -> None:
    """Reply to requests until the input ends."""
    while operation := stdin.read(1):
        length = int.from_bytes(stdin.read(8))
        reply, pixels = handle_file(operation == b"d", stdin.read(length), config)
        stdout.write(json.dumps(reply).encode() + b"\n")
        stdout.write(pixels)
        stdout.flush()


def handle_file(
    decode: bool, content: bytes, config: DecodingConfig
) -> tuple[dict[str, object], bytes]:
    """Return the reply and the pixels for one file."""
    try:
        if not decode:
            header = parse_image_header(content, NAME)
            return {"size": header.decoded_size(NAME, config)}, b""
        image = decode_image(content, NAME, config)
        return {"size": image.size}, image.tobytes()
    except ImageTooLargeError:
        return {"fault": "too large"}, b""
    except ImageError:
        return {"fault": "broken"}, b""
    except (MemoryError, Image.DecompressionBombError):
        return {"fault": "memory"}, b""


if __name__ == "__main__":
    max_memory, max_pixels, max_side = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
    limits = DecodingConfig(max_pixels=max_pixels, max_side=max_side)
    main_loop(sys.stdin.buffer, sys.stdout.buffer, limits)
