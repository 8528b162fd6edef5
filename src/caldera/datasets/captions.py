"""Images with captions in, stage 1's conversations out: a brief request, a caption that people wrote.

As LLaVA's 595K (arXiv 2304.08485, appendix): each pair is one turn; the request is drawn from a list.
"""

import random
from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.caption_pairs import read_pairs
from caldera.annotations.coco import read_coco_captions
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.datasets.importer import ImportOptions, ImportResult
from caldera.files.skipped import SkippedItems
from caldera.instructions.request_phrases import CAPTION_REQUESTS


def import_captions(path: Path, skips: SkippedItems, options: ImportOptions) -> ImportResult:
    """Read a `.csv` or `.jsonl` of the fields image and caption.

    Raises:
        InputError: The file cannot be read, or a pair is bad and may not be left out.
    """
    return _imported(
        read_pairs(path, skips, options.images, find=options.check_exists), skips, options
    )


def import_coco(path: Path, skips: SkippedItems, options: ImportOptions) -> ImportResult:
    """Read the captions of a COCO folder; boxes are not needed.

    Raises:
        InputError: The file cannot be read, or an image is bad and may not be left out.
    """
    annotations = read_coco_captions(
        path, skips, options.split, image_folder=options.images, find=options.check_exists
    )
    return _imported(annotations, skips, options)


def _imported(
    annotations: AnnotationSet, skips: SkippedItems, options: ImportOptions
) -> ImportResult:
    """Make a conversation of each caption, or of as many of an image as are wanted, drawn."""
    imported = ImportResult(total=len(skips.items))
    for image in annotations.images:
        rng = random.Random(f"{options.seed} {image.id}")
        captions = list(image.captions)
        imported.total += len(captions)
        wanted = min(options.per_image or len(captions), len(captions))
        if left := len(captions) - wanted:
            captions = rng.sample(captions, wanted)
            imported.fixes["further caption of an image left out"] += left
        for number, caption in enumerate(captions):
            name = image.id if len(captions) == 1 else f"{image.id}-{number}"
            asked = (ImageRef(str(image.path)), f"\n{rng.choice(CAPTION_REQUESTS)}")
            turns = (Turn("user", asked), Turn("assistant", (caption,)))
            imported.conversations.append(Conversation(name, turns))
    return imported
