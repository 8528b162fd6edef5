"""`data generate`: annotations in, a data file out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.registry import SourceOptions, read_annotations
from caldera.conversation import write_conversations
from caldera.errors import InputError, UnknownNameError, UsageError
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.dialogues import (
    KINDS,
    GeneratedData,
    Kind,
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
from caldera.instructions.photo_teacher import PhotoTeacher
from caldera.progress import Progress

DEFAULT_KINDS = {"coco": "conversation,detail,reasoning,context", "pairs": "caption"}
"""Kinds that suit each annotation source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """Annotations, teacher and kinds of a data file."""

    source: str
    """Format of the annotations: a name in SOURCES."""

    path: Path
    options: SourceOptions
    teacher: str = "scripted"
    """`scripted`, or a name in LLM_CLIENTS, which needs `llm_teacher`."""

    llm_teacher: LLMTeacherConfig | None = None
    """Configuration of the LLM teacher; None: the scripted teacher."""

    kinds: str | None = None
    """Kinds with shares, in the format of `parse_kinds`; None: those that suit the source."""

    seed: int = 0
    max_bad_fraction: float = 0.0
    """Maximum fraction of images that may be skipped."""


def parse_kinds(
    text: str, default_shares: Mapping[Kind, float] = MappingProxyType({})
) -> dict[Kind, float]:
    """Parse kinds with their shares, such as 'conversation,detail:0.5'; the default share is 1."""
    names = {str(kind): kind for kind in KINDS}
    kinds: dict[Kind, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition(":")
        if name not in names:
            raise UnknownNameError("kind of instruction", name, names)
        kind = names[name]
        try:
            kinds[kind] = float(share or default_shares.get(kind, 1))
        except ValueError:
            raise UsageError(
                f"the share of {name} is {share!r}; write a number such as {name}:0.5"
            ) from None
        if not 0 < kinds[kind] <= 1:
            raise UsageError(f"the share of {name} is {share}; it must be above 0 and at most 1")
    return kinds


def generate_data(config: GenerateConfig, out: Path, progress: Progress) -> GeneratedData:
    """Write a data file about annotated images, atomically."""
    if config.llm_teacher is None and config.teacher in LLM_CLIENTS:
        raise UsageError(f"the teacher {config.teacher} is an LLM; set GenerateConfig.llm_teacher")
    if config.llm_teacher is None and config.teacher != "scripted":
        raise UnknownNameError("teacher", config.teacher, {"scripted", *LLM_CLIENTS})
    kinds = _kinds(config)
    skipped = SkippedItems(config.max_bad_fraction)
    annotations = _read(config, kinds, skipped)
    listing = out.with_suffix(".skipped.jsonl")
    skipped.finish(annotations.total, listing)
    if not annotations.images:
        raise InputError(f"{config.path} has no image that can be used; {listing} has the reasons")
    if config.llm_teacher is not None:
        data = generate_with_llm(
            config.llm_teacher, annotations, kinds, seed=config.seed, out=out, progress=progress
        )
    else:
        data = _generate_scripted(config, annotations, kinds, out, progress)
    return data


def estimate_data_cost(config: GenerateConfig, llm_teacher: LLMTeacherConfig) -> CostEstimate:
    """Estimate what an LLM teacher would be sent, and its cost, without sending or writing anything."""
    skipped = SkippedItems(config.max_bad_fraction)
    kinds = _kinds(config)
    annotations = _read(config, kinds, skipped)
    skipped.finish(annotations.total)
    return estimate_cost(llm_teacher, annotations, kinds, config.seed)


def _read(
    config: GenerateConfig, kinds: Mapping[Kind, float], skipped: SkippedItems
) -> AnnotationSet:
    """Read the annotations; boxes only if a kind needs them."""
    options = replace(config.options, with_boxes=set(kinds) != {"caption"})
    return read_annotations(config.source, config.path, skipped, options)


def _kinds(config: GenerateConfig) -> dict[Kind, float]:
    """Return the kinds with their shares; for an LLM teacher the default shares are those of LLaVA's data."""
    text = config.kinds or DEFAULT_KINDS.get(config.source, "caption")
    return parse_kinds(text, LLAVA_KIND_SHARES if config.llm_teacher else {})


def _generate_scripted(
    config: GenerateConfig,
    annotations: AnnotationSet,
    kinds: dict[Kind, float],
    out: Path,
    progress: Progress,
) -> GeneratedData:
    """Write the data file with the scripted teacher."""
    teacher = PhotoTeacher(annotations.categories, config.seed)
    total = count_dialogues(annotations.images, kinds, config.seed).total()
    with progress.task("writing dialogues", total) as tick:
        data = generate_dialogues(
            annotations,
            teacher,
            kinds,
            seed=config.seed,
            relative_to=out.parent,
            shuffle_groups=True,
            tick=tick,
        )
    if not data.conversations:
        raise InputError(
            f"the scripted teacher wrote nothing about {config.path}: {dict(data.rejected)}; choose other --kinds"
        )
    write_conversations(out, data.conversations)
    return data
