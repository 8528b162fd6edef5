"""`data generate`: annotations to data file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.registry import SourceOptions, read_annotations
from caldera.conversation import write_conversations
from caldera.errors import InputError, UnknownNameError, UsageError
from caldera.files.skipped import SkippedItems
from caldera.instructions.dialogues import (
    KINDS,
    GeneratedData,
    Kind,
    Teacher,
    count_dialogues,
    generate_dialogues,
)
from caldera.instructions.llm_teacher.teacher import (
    LLAVA_KIND_SHARES,
    LLM_CLIENTS,
    CostEstimate,
    LLMTeacherConfig,
    estimate_cost,
    generate_with_llm,
)
from caldera.instructions.scripted_teacher import ScriptedTeacher
from caldera.progress import Progress

TEACHERS: dict[str, Callable[[Sequence[str], int], Teacher]] = {
    "scripted": ScriptedTeacher,
}
"""Makers of teachers that need no language model, each from the categories that were looked for and a seed."""


def check_teacher(name: str) -> None:
    """Check that a teacher without a language model is called exactly `name`.

    Raises:
        UnknownNameError: There is none.
        UsageError: It is a language model, which has to be ordered as `Teaching`.
    """
    if name in LLM_CLIENTS:
        raise UsageError(f"the teacher {name} is a language model; say which with Order.teaching")
    if name not in TEACHERS:
        raise UnknownNameError("teacher", name, {*TEACHERS, *LLM_CLIENTS})


def find_teacher(name: str, categories: Sequence[str], seed: int) -> Teacher:
    """Make the teacher called exactly `name`.

    Raises:
        UsageError: There is none, or it is a language model.
    """
    check_teacher(name)
    return TEACHERS[name](categories, seed)


def parse_kinds(text: str, usual: Mapping[Kind, float] = MappingProxyType({})) -> dict[Kind, float]:
    """Read kinds with their shares: 'conversation,detail:0.5'; one without a share has its `usual` one, or all.

    Raises:
        UsageError: A kind is unknown, or a share is not a number between 0 and 1.
    """
    known = {str(kind): kind for kind in KINDS}
    kinds: dict[Kind, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition(":")
        if name not in known:
            raise UnknownNameError("kind of instruction", name, known)
        try:
            kinds[known[name]] = float(share or usual.get(known[name], 1))
        except ValueError:
            raise UsageError(
                f"the share of {name} is {share!r}; write a number such as {name}:0.5"
            ) from None
        if not 0 < kinds[known[name]] <= 1:
            raise UsageError(f"the share of {name} is {share}; it must lie between 0 and 1")
    return kinds


DEFAULT_KINDS = {"coco": "conversation,detail,reasoning,context", "pairs": "caption"}


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """What is to be written about which annotations."""

    source: str
    """Kind of annotations: a name in SOURCES."""

    path: Path
    options: SourceOptions
    teacher: str = "scripted"
    """A name in TEACHERS; not looked at where a language model teaches."""

    teaching: LLMTeacherConfig | None = None
    """The language model that writes instead."""

    kinds: str | None = None
    """Kinds with shares, as `parse_kinds` reads them; by default those that suit the source."""

    seed: int = 0
    max_bad: float = 0.0
    """Share of images that may be left out."""


def generate_data(order: GenerateConfig, out: Path, progress: Progress) -> GeneratedData:
    """Write a data file about annotated images, whole or not at all.

    Raises:
        CalderaError: A name is unknown, annotations are bad, the teacher ends the run, or the file cannot be written.
    """
    if order.teaching is None:
        check_teacher(order.teacher)
    kinds = _kinds(order)
    skips = SkippedItems(order.max_bad)
    annotations = read_annotations(order.source, order.path, skips, order.options)
    if order.teaching is not None:
        written = generate_with_llm(
            order.teaching, annotations, kinds, seed=order.seed, out=out, progress=progress
        )
    else:
        written = _generate_scripted(order, annotations, kinds, out, progress)
    if skips.items:
        skips.write(out.with_suffix(".bad.jsonl"))
    return written


def estimate_data_cost(order: GenerateConfig, teaching: LLMTeacherConfig) -> CostEstimate:
    """Tell what a language model would be sent, and about what it would cost; nothing is sent or written.

    Raises:
        CalderaError: A name is unknown, or annotations are bad.
    """
    annotations = read_annotations(
        order.source, order.path, SkippedItems(order.max_bad), order.options
    )
    return estimate_cost(teaching, annotations, _kinds(order), order.seed)


def _kinds(order: GenerateConfig) -> dict[Kind, float]:
    """Read which kinds are wanted; a language model writes LLaVA's mix of those without a share."""
    text = order.kinds or DEFAULT_KINDS.get(order.source, "caption")
    return parse_kinds(text, LLAVA_KIND_SHARES if order.teaching else {})


def _generate_scripted(
    order: GenerateConfig,
    annotations: AnnotationSet,
    kinds: dict[Kind, float],
    out: Path,
    progress: Progress,
) -> GeneratedData:
    """Have a teacher without a language model write the file.

    Raises:
        CalderaError: There is no such teacher, it wrote nothing, or the file cannot be written.
    """
    writer = find_teacher(order.teacher, annotations.categories, order.seed)
    total = count_dialogues(annotations.images, kinds, order.seed).total()
    with progress.task("writing dialogues", total) as tick:
        written = generate_dialogues(
            annotations, writer, kinds, seed=order.seed, beside=out.parent, tick=tick
        )
    if not written.conversations:
        raise InputError(f"the teacher wrote nothing about {order.path}: {dict(written.rejected)}")
    write_conversations(out, written.conversations)
    return written
