"""Import of photos in class folders, or of a table of images and labels, as questions about their classes.

A fixed number of images can be held out for `caldera evaluate custom`; identical files count as one image, so none is
on both sides.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from caldera.annotations.annotated_image import unique_ids
from caldera.annotations.labeled_images import (
    LabeledImage,
    LabeledImages,
    LabelOptions,
    read_labeled_images,
)
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.datasets.importer import HeldOutQuestion, ImportOptions, ImportResult, read_json
from caldera.errors import InputError, UnknownNameError, UsageError
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.class_questions import (
    CLASS_QUESTION_KINDS,
    ClassQuestion,
    ClassQuestionKind,
    class_questions,
)

_NUMBER = re.compile(r"[-+]?\d*[.,]?\d+(?:e[-+]?\d+)?\s*%?", re.IGNORECASE)
"""A number that counts no images: negative, a fraction or a percentage."""

_HELD_OUT_KINDS: tuple[ClassQuestionKind, ...] = ("naming", "presence")
"""Kinds of the questions about images that are held out."""


def import_folders(path: Path, skipped: SkippedItems, options: ImportOptions) -> ImportResult:
    """Import class folders, or a table or JSON records with an image and a label in each row.

    Each question is a conversation of its own, as an earlier answer would give a later one away.
    """
    kinds = _parse_kinds(options.kinds)
    training, held_out = _split(path, skipped, options)
    imported = ImportResult(total=training.total, classes=training.num_images)
    ids = _unique_ids(training.images, path)
    questions = class_questions(training.images, kinds, options.seed)
    for image, image_questions in zip(training.images, questions, strict=True):
        for name, question in _numbered(ids[image.path], image_questions):
            turns = (
                Turn("user", (ImageRef(str(image.path)), f"\n{question.text}")),
                Turn("assistant", (question.answer,)),
            )
            imported.conversations.append(Conversation(name, turns))
    ids = _unique_ids(held_out, path)
    questions = class_questions(held_out, _HELD_OUT_KINDS, options.seed)
    imported.held_out = [
        HeldOutQuestion(
            id=name,
            image=str(image.path),
            kind=question.kind,
            question=question.text,
            answer=(question.answer, *question.accepted),
        )
        for image, image_questions in zip(held_out, questions, strict=True)
        for name, question in _numbered(ids[image.path], image_questions)
    ]
    return imported


def _parse_kinds(text: str | None) -> Sequence[ClassQuestionKind]:
    """Return the kinds of questions that an option names, in their usual order; all by default."""
    if text is None:
        return CLASS_QUESTION_KINDS
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CLASS_QUESTION_KINDS:
            raise UnknownNameError("kind of --kinds", name, CLASS_QUESTION_KINDS)
    return [kind for kind in CLASS_QUESTION_KINDS if kind in names]


def _split(
    path: Path, skipped: SkippedItems, options: ImportOptions
) -> tuple[LabeledImages, list[LabeledImage]]:
    """Return the images to train on, and those that are held out: a number of them, or a split of its own."""
    reading = LabelOptions(
        split=options.split,
        image_folder=options.images,
        columns=options.columns,
        phrases=_read_phrases(options.phrases),
        check_images=options.check_exists,
    )
    training = read_labeled_images(path, skipped, reading)
    if options.hold_out is None:
        return training, []
    if not options.hold_out.isdecimal():
        if _NUMBER.fullmatch(options.hold_out):
            raise UsageError(
                f"--hold-out {options.hold_out} is neither a number of images nor the name of a split; give a whole "
                "number, such as 50, or a name, such as test"
            )
        held_out = read_labeled_images(path, skipped, replace(reading, split=options.hold_out))
        # Both readings met the files that belong to no split.
        skipped.notes[:] = dict.fromkeys(skipped.notes)
        digests = {image.digest for image in held_out.images}
        training_images = [image for image in training.images if image.digest not in digests]
        for image in training.images:
            if image.digest in digests:
                skipped.note(str(image.path), "not trained on, as it is also held out")
        if not training_images:
            raise UsageError(
                f"every image to train on is also held out with --hold-out {options.hold_out}; choose another split "
                "with --split or --hold-out"
            )
        training.images = training_images
        training.total += held_out.total
        classes = training.num_images
        for image in held_out.images:
            if unknown := set(image.labels) - classes.keys():
                names = ", ".join(sorted(unknown))
                skipped.note(
                    str(image.path), f"held out, of a class without training images: '{names}'"
                )
        return training, held_out.images
    held_out_digests = _choose_held_out(training.images, options)
    held_out_images = [image for image in training.images if image.digest in held_out_digests]
    training.images = [image for image in training.images if image.digest not in held_out_digests]
    return training, held_out_images


def _choose_held_out(images: Sequence[LabeledImage], options: ImportOptions) -> set[str]:
    """Return the digests of the number of images to hold out; each class keeps an image.

    The order depends on the content alone, so that images that are added later change little of it.
    """
    assert options.hold_out is not None  # as checked
    count, seed = int(options.hold_out), options.seed
    remaining = Counter(label for image in images for label in image.labels)
    chosen: set[str] = set()
    order = sorted(
        images, key=lambda image: hashlib.sha256(f"{seed} {image.digest}".encode()).digest()
    )
    for image in order:
        if len(chosen) < count and all(remaining[label] > 1 for label in image.labels):
            chosen.add(image.digest)
            remaining.subtract(image.labels)
    if len(chosen) < count:
        usual = min(len(chosen), max(1, len(images) // 10))
        raise UsageError(
            f"{count} of {len(images)} images cannot be held out with an image of each class left to train on; hold "
            f"out {len(chosen)} or fewer, for example {options.hold_out_option}{usual}"
        )
    return chosen


def _read_phrases(file: Path | None) -> dict[str, str]:
    """Read noun phrases by class name."""
    if file is None:
        return {}
    content = read_json(file)
    if not isinstance(content, dict) or not all(
        isinstance(phrase, str) and phrase.strip() for phrase in content.values()
    ):
        raise InputError(
            f'{file} should hold noun phrases by class, such as {{"longsleeve": "a long-sleeved shirt"}}'
        )
    return {name: " ".join(phrase.split()) for name, phrase in content.items()}


def _unique_ids(images: Sequence[LabeledImage], source: Path) -> dict[Path, str]:
    """Return an id for each image, from its path below the folder or the folder of the table."""
    root = source if source.is_dir() else source.parent
    names = {image.path: Path(os.path.relpath(image.path, root)).as_posix() for image in images}
    ids = unique_ids(tuple(names.values()))
    return {path: ids[name] for path, name in names.items()}


def _numbered(
    image_id: str, questions: Sequence[ClassQuestion]
) -> Iterator[tuple[str, ClassQuestion]]:
    """Yield the questions about an image with an id for each."""
    for number, question in enumerate(questions):
        yield f"{image_id}-{number}", question
