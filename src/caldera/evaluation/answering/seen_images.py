"""Items in, blocks about few enough images out; and the images' features, each of which a tower gives once a block.

A benchmark asks many questions about an image, and the vision tower is most of the work of a short answer. Each
image goes through the tower alone, so what it becomes depends on no other, nor on what an earlier start answered.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from caldera.batches.image_files import open_image
from caldera.evaluation.benchmark import Item
from caldera.model.folder import LlavaBundle

MAX_BYTES = 1 << 30
"""Of features that are kept at a time; some 450 images of CLIP ViT-L/14 at 336 pixels in fp32."""

_BYTES = 4
"""Of a number, in fp32."""


class ImageFeatureCache:
    """The features of images that were looked at since the last `forget`."""

    def __init__(self, assistant: LlavaBundle) -> None:
        """Look at images with an assistant's tower, where that is."""
        self._processor = assistant.processor
        self._vision = assistant.model.vision
        self._features: dict[Path, Tensor] = {}

    @property
    def capacity(self) -> int:
        """Images whose features may be kept together."""
        side = self._processor.side
        tiles = [across * down // side**2 for across, down in self._processor.pinpoints]
        views = 1 + max(tiles, default=0)
        each = views * self._vision.tokens_per_view * self._vision.width * _BYTES
        return max(1, MAX_BYTES // each)

    @torch.inference_mode()
    def run(self, paths: Sequence[Path]) -> None:
        """Look at images that were not looked at yet.

        Raises:
            ImageError: One cannot be used.
        """
        device = next(self._vision.parameters()).device
        for path in paths:
            if path not in self._features:
                pixels = self._processor(open_image(path))  # (views, channels, height, width)
                self._features[path] = self._vision(pixels.to(device)).cpu()

    def clear(self) -> None:
        """Let go of them."""
        self._features.clear()

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return features, (views, patches, vision width)."""
        if not paths:
            return torch.zeros(0, self._vision.tokens_per_view, self._vision.width)
        return torch.cat([self._features[path] for path in paths])


def split_by_images(items: Sequence[Item], most: int) -> Iterator[list[Item]]:
    """Yield all items in blocks about at most `most` images each, those about an image together, else in order.

    An item about more images than that is a block of its own. Where all images are few enough, the only block is
    the items as they are.
    """
    first_met: dict[str, int] = {}
    for at, item in enumerate(items):
        for path in item.conversation.images:
            first_met.setdefault(path, at)

    def place(at: int) -> int:
        return min((first_met[path] for path in items[at].conversation.images), default=at)

    block: list[int] = []
    images: set[str] = set()
    for at in sorted(range(len(items)), key=place):
        joined = images.union(items[at].conversation.images)
        if block and len(joined) > most:
            yield [items[one] for one in sorted(block)]
            block, joined = [], set(items[at].conversation.images)
        block.append(at)
        images = joined
    if block:
        yield [items[one] for one in sorted(block)]
