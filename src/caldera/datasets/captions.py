"""Import of image captions as stage-1 conversations: a brief request, then a human-written caption.

As in LLaVA's 595K (arXiv 2304.08485, appendix), each pair is one turn and the request is sampled from a list.
"""

import random
from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.caption_pairs import read_pairs
from caldera.annotations.coco import CocoOptions, read_coco
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.datasets.importer import ImportOptions, ImportResult
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.request_phrases import CAPTION_REQUESTS


def import_captions(path: Path, skipped: SkippedItems, options: ImportOptions) -> ImportResult:
    """Import a table or JSON file with an image and a caption in each row."""
    pairs = read_pairs(
        path,
        skipped,
        options.images,
        columns=options.columns,
        split=options.split,
        check_images=options.check_exists,
    )
    return _to_conversations(pairs, skipped, options)


def import_coco(path: Path, skipped: SkippedItems, options: ImportOptions) -> ImportResult:
    """Import the captions of a COCO folder; boxes are not needed."""
    coco_options = CocoOptions(
        split=options.split,
        images=options.images,
        with_boxes=False,
        check_images=options.check_exists,
    )
    return _to_conversations(read_coco(path, skipped, coco_options), skipped, options)


def _to_conversations(
    annotations: AnnotationSet, skipped: SkippedItems, options: ImportOptions
) -> ImportResult:
    """Make a conversation of each caption, or of at most `per_image` sampled captions of each image."""
    imported = ImportResult(total=len(skipped.items))
    for image in annotations.images:
        rng = random.Random(f"{options.seed} {image.id}")
        captions = list(image.captions)
        imported.total += len(captions)
        num_captions = min(options.per_image or len(captions), len(captions))
        if surplus := len(captions) - num_captions:
            captions = rng.sample(captions, num_captions)
            imported.fixes["further caption of an image skipped"] += surplus
        for number, caption in enumerate(captions):
            name = image.id if len(captions) == 1 else f"{image.id}-{number}"
            question = (ImageRef(str(image.path)), f"\n{rng.choice(CAPTION_REQUESTS)}")
            turns = (Turn("user", question), Turn("assistant", (caption,)))
            imported.conversations.append(Conversation(name, turns))
    return imported
