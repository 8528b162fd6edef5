"""Frames of boxes: stored or displayed pixels of an image, at its own size or at that before it was resized.

A camera stores pixels in one orientation, and EXIF has the orientation to display them in. Tools annotate either.
The annotated size shows which, unless the orientation keeps it (2 to 4) or the image is square. Then the other images
of the file decide; without any, an image with such an orientation is invalid.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from caldera.annotations.boxes import Box
from caldera.images.decoding import ImageHeader

Frame = Literal["stored", "displayed"]
Size = tuple[float, float]


@dataclass(frozen=True, slots=True)
class FrameMatch:
    """Frames of an image that an annotated size fits."""

    frames: tuple[Frame, ...] = ()
    """Frames that it may be the size of; empty if it is of another aspect ratio."""

    is_resized: bool = False
    """Whether it is the size before the image was resized."""


def match_frames(annotated: Size | None, header: ImageHeader) -> FrameMatch:
    """Compare an annotated size with the stored and the displayed size of an image."""
    sizes: dict[Frame, Size] = {
        "stored": (header.width, header.height),
        "displayed": header.upright_size,
    }
    if annotated is None:
        return FrameMatch(("stored", "displayed"))
    equal = tuple(frame for frame, size in sizes.items() if size == annotated)
    if equal:
        return FrameMatch(equal)
    scaled = tuple(frame for frame, size in sizes.items() if _same_ratio(annotated, size))
    return FrameMatch(scaled, is_resized=bool(scaled))


def _same_ratio(size: Size, other: Size) -> bool:
    """Return whether one size is the other one resized, with each side rounded."""
    small, large = sorted((size, other))
    low, high = zip(
        *(
            ((side - 1) / original, (side + 1) / original)
            for side, original in zip(small, large, strict=True)
        ),
        strict=True,
    )
    return max(low) < min(high)


def common_frame(matches: Iterable[tuple[FrameMatch, ImageHeader]]) -> Frame | None:
    """Return the frame that all images of a file agree on, of those whose size shows it; None if none does."""
    frames = {
        match.frames[0]
        for match, header in matches
        if header.orientation > 1 and len(match.frames) == 1
    }
    return frames.pop() if len(frames) == 1 else None


def to_displayed(box: Box, orientation: int) -> Box:
    """Turn a box of the stored image, in fractions, into that of the displayed image."""
    x, y = (box.left, box.right), (box.top, box.bottom)
    flipped_x, flipped_y = (1 - box.right, 1 - box.left), (1 - box.bottom, 1 - box.top)
    across, down = {
        2: (flipped_x, y),
        3: (flipped_x, flipped_y),
        4: (x, flipped_y),
        5: (y, x),
        6: (flipped_y, x),
        7: (flipped_y, flipped_x),
        8: (y, flipped_x),
    }.get(orientation, (x, y))
    return Box(across[0], down[0], across[1], down[1])
