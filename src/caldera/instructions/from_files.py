"""An annotation file or folder in, a data file out: what the command `data generate` calls."""

from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.sources import SourceOptions, read_annotations
from caldera.conversation import write_conversations
from caldera.errors import InputError
from caldera.instructions.teachers import find_teacher, parse_kinds
from caldera.instructions.writing import Written, count_dialogues, write_instructions
from caldera.progress import Progress
from caldera.skips import Skips

DEFAULT_KINDS = {"coco": "conversation,detail,reasoning,context", "pairs": "caption"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What is to be written about which annotations."""

    source: str
    """Kind of annotations: a name in SOURCES."""

    path: Path
    options: SourceOptions
    teacher: str = "scripted"
    kinds: str | None = None
    """Kinds with shares, as `parse_kinds` reads them; by default those that suit the source."""

    seed: int = 0
    max_bad: float = 0.0
    """Share of pictures that may be left out."""


def generate_file(order: Order, out: Path, progress: Progress) -> Written:
    """Write a data file about annotated pictures, whole or not at all.

    Raises:
        CalderaError: A name is unknown, annotations are bad, or the file cannot be written.
    """
    kinds = parse_kinds(order.kinds or DEFAULT_KINDS.get(order.source, "caption"))
    skips = Skips(order.max_bad)
    annotations = read_annotations(order.source, order.path, skips, order.options)
    writer = find_teacher(order.teacher, annotations.categories, order.seed)
    total = count_dialogues(annotations.images, kinds, order.seed).total()
    with progress.job("writing dialogues", total) as tick:
        written = write_instructions(
            annotations, writer, kinds, seed=order.seed, beside=out.parent, tick=tick
        )
    if not written.conversations:
        raise InputError(f"the teacher wrote nothing about {order.path}: {dict(written.refused)}")
    write_conversations(out, written.conversations)
    if skips.taken:
        skips.write(out.with_suffix(".bad.jsonl"))
    return written
