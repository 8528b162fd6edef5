"""Warning where a model made from the shipped backbones, which know drawings only, meets photos."""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from caldera.errors import ImageError
from caldera.formats.weight_names import digest_folder
from caldera.images.decoding import DEFAULT_DECODING, DecodingConfig, open_image
from caldera.images.photo_detection import looks_like_photo
from caldera.scenes.backbones import BACKBONES, FORMER_DIGESTS

log = logging.getLogger(__name__)

_MAX_FILES = 32
"""Number of image files of a training that are judged."""


class PhotoWarning:
    """Warns once about photos, if a model was made from a shipped backbone."""

    def __init__(self, source_digests: Mapping[str, str]) -> None:
        """Set the digests of what a model was made from, as its metadata names them."""
        self._backbones: list[str] = []
        if source_digests:
            shipped = {digest_folder(folder): name for name, folder in BACKBONES.items()}
            shipped |= FORMER_DIGESTS
            self._backbones = sorted(
                {shipped[digest] for digest in source_digests.values() if digest in shipped}
            )

    def check_image(self, image: Image.Image) -> None:
        """Warn if an RGB image is a photo, unless that was done before."""
        if self._backbones and looks_like_photo(image):
            self._warn("this is a photo")

    def check_files(
        self, paths: Sequence[Path], decoding: DecodingConfig = DEFAULT_DECODING
    ) -> None:
        """Warn if more than half of some image files, chosen at random, are photos, unless that was done before."""
        if not self._backbones or not paths:
            return
        chosen = random.Random(0).sample(paths, min(_MAX_FILES, len(paths)))
        num_photos = 0
        for path in chosen:
            try:
                num_photos += looks_like_photo(open_image(path, decoding))
            except ImageError:
                # The training reports it.
                continue
        if 2 * num_photos > len(chosen):
            self._warn(f"{num_photos} of {len(chosen)} images of the data look like photos")

    def _warn(self, reason: str) -> None:
        backbones = " and ".join(self._backbones)
        log.warning(
            "%s, but the model was made from %s, which saw drawn scenes only: expect wrong answers about photos. Use a "
            "vision tower that saw photos, such as efficientnet-lite0 or openai/clip-vit-large-patch14-336, and a "
            "general language model",
            reason,
            backbones,
        )
        self._backbones = []
