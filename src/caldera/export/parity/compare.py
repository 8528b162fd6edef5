"""One model in two implementations in, where and by how much they differ out, stage by stage.

An image goes from file to answer through stages; the first one that differs tells where a difference begins.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from caldera.errors import ImageError
from caldera.images.decoding import open_image
from caldera.images.processor import ImageProcessor
from caldera.progress import Progress

NEW_TOKENS = 64
"""Tokens of an answer that are compared, unless asked otherwise."""

COMPARED = ("pixels", "features", "image tokens", "prompt", "logits")
"""Stages on the way to an answer, in order; before them stands the file's decoding, behind them the answer."""

FILE_LIMIT = 8
"""Levels of 255 by which two decoders of JPEG may differ."""


@dataclass(frozen=True, slots=True)
class ParityCase:
    """An image file and what is asked about it."""

    path: Path
    question: str
    informational: bool = False
    """Whether it is only shown to see how it is read and shaped; then it does not decide about the model."""

    new_tokens: int = NEW_TOKENS
    """Longest answer that is compared."""


@dataclass(frozen=True, slots=True)
class StageOutputs:
    """What one implementation makes of an image and a question."""

    pixels: Tensor
    """(views, channels, height, width)."""

    features: Tensor
    """Of the tower at the chosen layer, (views, patches, vision width)."""

    image_tokens: Tensor
    """Projected, (image tokens, width)."""

    ids: tuple[int, ...]
    """The prompt, with the image token's id under each image token."""

    logits: Tensor
    """At every position of the prompt, (tokens, vocabulary)."""

    answer: tuple[int, ...]
    """The likeliest tokens, one after the other, without the end mark."""


class Implementation(Protocol):
    """Answers questions about images, and shows its work."""

    def run(self, image: Image.Image, shown: ParityCase) -> StageOutputs:
        """Go from a decoded RGB image to an answer."""
        ...


class OtherSide(Implementation, Protocol):
    """An implementation that is compared with caldera's."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def limits(self) -> Mapping[str, float]:
        """How far each of COMPARED may differ, as a share of caldera's largest value there."""
        ...

    @property
    def min_equal_answers(self) -> float:
        """Share of answers that must be equal."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What it was seen to compute otherwise, once images went through it."""
        ...

    def read(self, path: Path) -> np.ndarray | None:
        """Decode a file as it does by itself, (height, width, channels); None if it cannot."""
        ...

    def known_shape_difference(
        self, size: tuple[int, int], processor: ImageProcessor
    ) -> str | None:
        """Say in which way it is known to bring an image of a size, (width, height), otherwise to the tower."""
        ...


class ReferenceSide(Implementation, Protocol):
    """Caldera's implementation."""

    def margin(self, shown: ParityCase, answer: Sequence[int], ours: int, theirs: int) -> float:
        """Return by how many logits `ours` is likelier than `theirs` after `answer`."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Decode token ids."""
        ...


@dataclass(frozen=True, slots=True)
class StageDifference:
    """How far one stage differs, over the images that decide."""

    stage: str
    largest: float
    """Largest absolute difference; infinite where shapes or ids differ."""

    where: str
    """The image it was met at."""

    limit: float
    good: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether one answer is the same."""

    image: str
    question: str
    ours: str
    theirs: str
    equal: bool
    informational: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parity:
    """A comparison."""

    against: str
    gaps: tuple[StageDifference, ...]
    answers: tuple[Answer, ...]
    min_equal_answers: float
    """Share of answers that must be equal."""

    notes: tuple[str, ...] = ()
    """What the other implementation was seen to compute otherwise."""

    @property
    def counted(self) -> tuple[int, int]:
        """Equal answers, and answers, among the images that decide."""
        deciding = [answer for answer in self.answers if not answer.informational]
        return sum(answer.equal for answer in deciding), len(deciding)

    @property
    def good(self) -> bool:
        """Whether the other implementation gives what caldera gives."""
        equal, total = self.counted
        return all(gap.good for gap in self.gaps) and equal >= self.min_equal_answers * total

    @property
    def fault(self) -> str:
        """Say where it first differs."""
        for gap in self.gaps:
            if not gap.good:
                return f"{gap.stage} differ by {gap.largest:.3g} (limit {gap.limit:.3g}) at {gap.where}"
        equal, total = self.counted
        return f"{equal} of {total} answers are equal, {self.min_equal_answers:.0%} are wanted"


@dataclass(slots=True)
class _MaxDifference:
    """The largest difference of a stage so far, and the one that came nearest to its limit."""

    by: float = 0.0
    limit: float = 0.0
    where: str = "-"
    good: bool = True
    worst: float = field(default=-1.0)

    def add(self, by: float, limit: float, where: str) -> None:
        """Take in the difference at one image."""
        share = by / limit if limit else (0.0 if by == 0 else float("inf"))
        self.good &= by <= limit
        if share > self.worst:
            self.worst, self.by, self.limit, self.where = share, by, limit, where


def compare(
    own: ReferenceSide,
    other: OtherSide,
    shown: Sequence[ParityCase],
    processor: ImageProcessor,
    progress: Progress,
) -> Parity:
    """Show every image to both implementations.

    Args:
        own: Caldera's.
        other: The one it is compared with.
        shown: Images and questions.
        processor: How caldera prepares images.
        progress: Follows the work.

    Raises:
        ImageError: An image cannot be used.
    """
    largest = {stage: _MaxDifference() for stage in ("file", *COMPARED)}
    answers = []
    with progress.task(f"comparing with {other.name}", len(shown)) as tick:
        for one in shown:
            image = open_image(one.path)
            ours, theirs = own.run(image, one), other.run(image, one)
            notes = list(_known_differences(one, image, other, processor))
            odd = one.informational and bool(notes)
            read = _max_pixel_difference(np.asarray(image), other.read(one.path))
            if not odd:
                largest["file"].add(read, FILE_LIMIT, one.path.name)
                for stage, by, limit in _differences(ours, theirs, other.limits):
                    largest[stage].add(by, limit, one.path.name)
            equal = ours.answer == theirs.answer
            if not equal:
                notes.append(_first_divergence(own, one, ours.answer, theirs.answer))
            answers.append(
                Answer(
                    one.path.name,
                    one.question,
                    own.text(ours.answer),
                    own.text(theirs.answer),
                    equal,
                    odd,
                    tuple(notes),
                )
            )
            tick()
    gaps = [
        StageDifference(stage, found.by, found.where, found.limit, found.good)
        for stage, found in largest.items()
        if stage == "file" or stage in other.limits
    ]
    return Parity(other.name, tuple(gaps), tuple(answers), other.min_equal_answers, other.notes)


def _known_differences(
    shown: ParityCase, image: Image.Image, other: OtherSide, processor: ImageProcessor
) -> Iterable[str]:
    """Yield in which known ways another implementation reads or shapes an image otherwise."""
    read = other.read(shown.path)
    if read is None:
        yield f"{other.name} cannot read the file"
    elif read.shape[:2] != (image.height, image.width):
        yield f"{other.name} reads it as {read.shape[1]} x {read.shape[0]}, not {image.width} x {image.height}"
    elif (by := _max_pixel_difference(np.asarray(image), read)) > FILE_LIMIT:
        yield f"{other.name} reads other colours, by up to {by:.0f} of 255"
    if otherwise := other.known_shape_difference(image.size, processor):
        yield otherwise


def _max_pixel_difference(ours: np.ndarray, theirs: np.ndarray | None) -> float:
    """Return by how many levels two decoded images differ."""
    if theirs is None or ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours.astype(int) - theirs.astype(int)).max(initial=0))


def _differences(
    ours: StageOutputs, theirs: StageOutputs, limits: Mapping[str, float]
) -> Iterable[tuple[str, float, float]]:
    """Yield each stage with its largest difference and its limit, both in the stage's own units."""
    same_prompt = ours.ids == theirs.ids
    pairs = {
        "pixels": (ours.pixels, theirs.pixels),
        "features": (ours.features, theirs.features),
        "image tokens": (ours.image_tokens, theirs.image_tokens),
        "logits": (ours.logits, theirs.logits),
    }
    for stage in COMPARED:
        if stage not in limits:
            continue
        if stage == "prompt":
            yield stage, 0.0 if same_prompt else float("inf"), limits[stage]
            continue
        one, another = pairs[stage]
        scale = float(one.abs().max())
        fits = one.shape == another.shape and (stage != "logits" or same_prompt)
        by = float((one - another).abs().max()) if fits else float("inf")
        yield stage, float("inf") if math.isnan(by) else by, limits[stage] * scale


def _first_divergence(
    own: ReferenceSide, shown: ParityCase, ours: Sequence[int], theirs: Sequence[int]
) -> str:
    """Say where two answers part, and how near to each other the two tokens were for caldera."""
    pairs = zip(ours, theirs, strict=False)
    at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    if at >= min(len(ours), len(theirs)):
        return f"one answer ends after {at} tokens, the other goes on"
    by = own.margin(shown, ours[:at], ours[at], theirs[at])
    said = f"{own.text([ours[at]])!r} and {own.text([theirs[at]])!r}"
    return f"the answers part at token {at + 1}: {said}, which caldera finds {by:.3g} logits apart"


def as_tensor(values: np.ndarray) -> Tensor:
    """Return a copy of an array as a tensor in fp32."""
    return torch.from_numpy(np.array(values, dtype=np.float32))


def check_readable(paths: Sequence[Path]) -> None:
    """Open every image once, before a long comparison.

    Raises:
        ImageError: There is none, or one cannot be used.
    """
    if not paths:
        raise ImageError("there is no image to compare with; give some with --images")
    for path in paths:
        open_image(path)
