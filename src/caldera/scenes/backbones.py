"""The two tiny pretrained backbones that ship with caldera, and the program that rebuilds them.

    python -m caldera.scenes.backbones --out OUT --work WORK

takes some hours on two cores. Both are deterministic but for the rounding of threads.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from caldera.errors import UnknownNameError
from caldera.processor import tune_malloc

_SHIPPED = Path(__file__).parent / "pretrained"

BACKBONES: dict[str, Path] = {
    "scenes-vit": _SHIPPED / "scenes-vit",
    "scenes-llama": _SHIPPED / "scenes-llama",
}
"""Folders of the shipped backbones, in transformers' format."""


def find_backbone(name: str) -> Path:
    """Return the folder of a shipped backbone, or `name` itself if it is a folder.

    Raises:
        UnknownNameError: It is neither.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if Path(name).is_dir():
        return Path(name)
    raise UnknownNameError("backbone or folder", name, BACKBONES)


def main() -> None:
    """Rebuild one backbone or both."""
    parser = argparse.ArgumentParser(description="Rebuild the shipped backbones.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two model folders")
    parser.add_argument("--work", type=Path, required=True, help="folder for drawings and texts")
    parser.add_argument("--only", choices=sorted(BACKBONES), help="rebuild this one alone")
    parser.add_argument("--start", type=Path, help="language model to go on from, last phase only")
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    tune_malloc()
    wanted.work.mkdir(parents=True, exist_ok=True)
    if wanted.only != "scenes-llama":
        from caldera.scenes.vision_pretraining import VisionPretraining, pretrain_vision

        pretrain_vision(wanted.out / "scenes-vit", wanted.work, VisionPretraining())
    if wanted.only != "scenes-vit":
        from caldera.scenes.language_pretraining import LanguagePretraining, pretrain_language

        settings = LanguagePretraining()
        if wanted.start:
            settings = replace(settings, phases=settings.phases[-1:])
        pretrain_language(wanted.out / "scenes-llama", wanted.work, settings, wanted.start)


if __name__ == "__main__":
    main()
