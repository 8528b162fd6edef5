"""Rebuild the two backbones that ship with caldera: a CLIP vision tower and a LLaMA, pretrained on drawn scenes.

    python -m backbones --out OUT --work WORK

It takes some hours on two cores, and is deterministic except for the rounding of threads.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from caldera.devices import tune_malloc
from caldera.scenes.backbones import BACKBONES


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
        from backbones.vision_pretraining import VisionPretraining, pretrain_vision

        pretrain_vision(wanted.out / "scenes-vit", wanted.work, VisionPretraining())
    if wanted.only != "scenes-vit":
        from backbones.language_pretraining import LanguagePretraining, pretrain_language

        settings = LanguagePretraining()
        if wanted.start:
            settings = replace(settings, phases=settings.phases[-1:])
        pretrain_language(wanted.out / "scenes-llama", wanted.work, settings, wanted.start)


if __name__ == "__main__":
    main()
