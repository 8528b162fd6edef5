"""Command that pretrains the two shipped backbones, a CLIP vision tower and a LLaMA, on synthetic scenes.

    python -m backbones --out OUT --work WORK

It takes some hours on two cores, and is deterministic except for rounding that depends on threads.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from caldera.devices import tune_malloc
from caldera.scenes.backbones import BACKBONES


def main() -> None:
    """Pretrain one backbone or both."""
    parser = argparse.ArgumentParser(description="Rebuild the shipped backbones.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two model folders")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for rendered images and texts"
    )
    parser.add_argument("--only", choices=sorted(BACKBONES), help="rebuild only this one")
    parser.add_argument(
        "--start", type=Path, help="language model to continue from, with phase --from-phase"
    )
    parser.add_argument(
        "--from-phase", type=int, default=1, help="first phase of the language model's training"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    tune_malloc()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.only != "scenes-llama":
        from backbones.vision_pretraining import VisionPretraining, pretrain_vision

        pretrain_vision(args.out / "scenes-vit", args.work, VisionPretraining())
    if args.only != "scenes-vit":
        from backbones.language_pretraining import pretrain_language
        from backbones.language_settings import LanguagePretraining

        settings = LanguagePretraining()
        settings = replace(settings, phases=settings.phases[args.from_phase - 1 :])
        if not settings.phases:
            parser.error(f"--from-phase {args.from_phase}: there is no such phase")
        pretrain_language(args.out / "scenes-llama", settings, args.start)


if __name__ == "__main__":
    main()
