"""PNG files built chunk by chunk, which may be invalid."""

import struct
import zlib


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(*chunks: bytes, size: tuple[int, int] = (9, 7), depth: int = 8, colors: int = 2) -> bytes:
    """Return a PNG file with some chunks and a headerer that may be wrong."""
    header = struct.pack(">IIBBBBB", *size, depth, colors, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + b"".join(chunks)
        + png_chunk(b"IEND", b"")
    )
