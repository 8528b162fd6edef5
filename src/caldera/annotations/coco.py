"""Reader of COCO folders: captions and boxes of images, checked against each other and against the image files.

What is wrong with an image, its captions or its boxes makes that image invalid, and nothing else. Captions and boxes
are joined by file name. Boxes become fractions of the displayed image; the size of the image file decides what their
numbers mean (see `box_frames` and `box_units`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, unique_ids
from caldera.annotations.coco_boxes import BoxReader, ListedImage, parse_box_meaning
from caldera.annotations.coco_entries import CocoFile, ImageEntry
from caldera.annotations.coco_layouts import CocoSource, find_source, image_folders
from caldera.annotations.image_files import ImageFinder
from caldera.errors import AnnotationError, InputError
from caldera.files.atomic import file_exists
from caldera.files.skipped_items import SkippedItems


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoOptions:
    """Options of reading a COCO folder."""

    split: str | None = None
    images: Path | None = None
    """Folder of the images; None: found near the annotations."""

    captions: Path | None = None
    instances: Path | None = None
    """Annotation files; None for both: found in the folder."""

    with_boxes: bool = True
    """Read boxes if there are any; without them neither sizes nor image files are read."""

    check_images: bool = True
    """Check that each image exists."""

    boxes: str | None = None
    """Unit and frame of the boxes, as in 'percent,stored'; None: decided by the files."""


def read_coco(
    folder: Path, skipped: SkippedItems, options: CocoOptions = CocoOptions()
) -> AnnotationSet:
    """Read captions and boxes of one split; invalid images are added to `skipped`, whose limit the caller checks.

    Args:
        folder: Folder of the annotations and images in any layout of `coco_layouts`, or an annotation file.
        skipped: Collects invalid images, and what was changed in others.
        options: What to read.
    """
    source = find_source(folder, options.split, options.captions, options.instances)
    caption_file = _open(source, source.captions)
    needs_boxes = options.with_boxes or caption_file is None
    box_file = caption_file
    if source.boxes != source.captions:
        box_file = _open(source, source.boxes if needs_boxes else None)
    main = caption_file or box_file
    # A source has at least one of the two files.
    assert main is not None
    if not main.images:
        raise AnnotationError(f"{main.path} lists no images; add them to 'images'")
    files = [main] if box_file in (None, main) else [main, box_file]
    num_unattributed = 0
    for file in files:
        owners = file.owners(next((other for other in files if other is not file), None))
        num_unattributed += file.read_annotations(owners, skipped, with_boxes=needs_boxes)
    listed = _locate(main, box_file, options, source)
    meaning = parse_box_meaning(options.boxes)
    reader = BoxReader(box_file if options.with_boxes else None, listed, skipped, meaning)
    annotations = _build(listed, reader, skipped, with_captions=caption_file is not None)
    categories = box_file.categories if box_file and options.with_boxes else ()
    total = len(listed) + num_unattributed
    return replace(annotations, categories=categories, total=total)


def _open(source: CocoSource, path: Path | None) -> CocoFile | None:
    return CocoFile(path, source.read(path)) if path else None


def _join(main: CocoFile, box_file: CocoFile | None) -> list[ImageEntry | None]:
    """Return the entry with the boxes of each image: the one with the same file name, in the same file or another.

    An image that the file of boxes lists under another name with the same id is invalid: one of the ids is wrong.
    """
    if box_file is None or box_file is main:
        return [image if box_file else None for image in main.images]
    by_name = {image.name: image for image in reversed(box_file.images) if image.name}
    by_tail = _unique_tails(box_file.images)
    tails = _unique_tails(main.images)
    names = {image.name for image in main.images}
    by_key = {image.key: image for image in reversed(box_file.images) if image.key}
    by_pair = {(image.key, image.name): image for image in box_file.images}
    partners: list[ImageEntry | None] = []
    for image in main.images:
        tail = Path(image.name).name
        partner = by_name.get(image.name)
        if image.fault:
            # Its id or its name may be that of another image.
            partners.append(by_pair.get((image.key, image.name)))
            continue
        if partner is None and tail in tails:
            partner = by_tail.get(tail)
        if partner is None and (same_id := by_key.get(image.key)):
            is_other = same_id.name not in names and Path(same_id.name).name not in tails
            if same_id.name and is_other:
                reason = (
                    f"id {image.key} is {image.name}, but {same_id.name} in {same_id.location}; "
                    "correct the ids or names, or leave one of the files out"
                )
                image.set_fault(image.location, reason)
            if not same_id.name or is_other:
                partner = same_id
        partners.append(partner)
    return partners


def _unique_tails(images: Sequence[ImageEntry]) -> dict[str, ImageEntry]:
    """Return images by their name without folders, where no other has it."""
    tails = [Path(image.name).name for image in images]
    counts = Counter(tails)
    return {tail: image for tail, image in zip(tails, images, strict=True) if counts[tail] == 1}


def _locate(
    main: CocoFile, box_file: CocoFile | None, options: CocoOptions, source: CocoSource
) -> list[ListedImage]:
    """Return every image with its file; images without one, or with that of another, are marked."""
    roots = source.image_folders
    if options.images:
        roots = (*image_folders(options.images, options.split),)
    finder = ImageFinder(roots, [image.name for image in main.images])
    listed = [
        ListedImage(image, boxes, finder.path(image.name))
        for image, boxes in zip(main.images, _join(main, box_file), strict=True)
    ]
    if not options.check_images:
        return listed
    usable = [image for image in listed if not image.fault]
    missing = [image for image in usable if not file_exists(image.path)]
    for image in missing:
        counts = f"{len(missing)} of {len(listed)} images are missing"
        reason = f"{image.path} does not exist; check --images, or remove the entry: {counts}"
        image.entry.set_fault(image.entry.location, reason)
    num_names = Counter(image.path for image in usable)
    for image in usable:
        if num_names[image.path] > 1:
            reason = f"{image.path} would be the file of two images; correct their names"
            image.entry.set_fault(image.entry.location, reason)
    return listed


def _build(
    listed: Sequence[ListedImage], reader: BoxReader, skipped: SkippedItems, *, with_captions: bool
) -> AnnotationSet:
    """Return the valid images; the others are added to `skipped`."""
    pool: list[tuple[str, AnnotatedImage]] = []
    for index, image in enumerate(listed):
        name = image.entry.name
        if not (with_captions or image.fault or image.box_entries):
            # Files of boxes list images without objects, and images that nobody has labeled yet, alike.
            skipped.note(f"image {name}", "the image has no box; it is not used")
            continue
        try:
            pool.append((name, _to_annotated(image, reader)))
        except InputError as error:
            skipped.add_or_raise(f"image {name}" if name else image.entry.location, error)
            boxed = {entry.category for entry in image.box_entries if not entry.is_crowd}
            uncounted = reader.uncounted(image) | boxed
            unused = AnnotatedImage(f"skipped {index}", image.path, 0, 0, (), (), uncounted)
            pool.append(("", unused))
    ids = unique_ids([name for name, _ in pool if name])
    images = [replace(image, id=ids[name]) if name else image for name, image in pool]
    valid = tuple(image for image, (name, _) in zip(images, pool, strict=True) if name)
    return AnnotationSet(valid, listed=() if len(valid) == len(images) else tuple(images))


def _to_annotated(image: ListedImage, reader: BoxReader) -> AnnotatedImage:
    """Return an image with its captions and boxes, or raise an InputError; its id follows later."""
    if fault := image.fault:
        location, reason = fault
        raise AnnotationError(f"{location}: {reason}")
    entry = image.entry
    if not entry.captions and not image.box_entries:
        raise AnnotationError(
            f"{entry.location}: image {entry.name} has no caption and no box; add one or remove it"
        )
    instances = reader.read(image)
    width, height = image.header.upright_size if image.header else entry.size or (0, 0)
    return AnnotatedImage(
        "",
        image.path,
        int(width),
        int(height),
        tuple(entry.captions),
        instances,
        reader.uncounted(image),
    )
