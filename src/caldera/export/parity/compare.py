"""Comparison of one model in two implementations, stage by stage.

An image passes through stages from file to answer; the first stage that differs is the origin of a difference.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from caldera.errors import ImageError
from caldera.images.decoding import open_image
from caldera.images.processor import MAX_ASPECT_RATIO, ImageProcessor
from caldera.progress import Progress

if TYPE_CHECKING:
    from caldera.export.parity.caldera_side import Caldera

NEW_TOKENS = 64
"""Default number of answer tokens to compare."""

COMPARED = ("pixels", "features", "image tokens", "prompt", "logits")
"""Compared stages in order; the decoding of the file precedes them, the answer follows."""

FILE_LIMIT = 8
"""Levels of 255 by which two decoders of JPEG may differ."""


@dataclass(frozen=True, slots=True)
class ParityCase:
    """An image file and a question about it."""

    path: Path
    question: str
    informational: bool = False
    """Whether a known difference in reading or shaping this image is accepted."""

    new_tokens: int = NEW_TOKENS


@dataclass(frozen=True, slots=True)
class StageOutputs:
    """Outputs of all stages for an image and a question."""

    pixels: Tensor
    """(views, channels, height, width)."""

    features: Tensor
    """Output of the tower at the chosen layer, (views, patches, vision width)."""

    image_tokens: Tensor
    """Projected features, (image tokens, width)."""

    ids: tuple[int, ...]
    """The prompt, with the image token's id at each image token."""

    logits: Tensor
    """At every position of the prompt, (tokens, vocabulary)."""

    answer: tuple[int, ...]
    """Greedy tokens, without the end token."""


class OtherSide(Protocol):
    """An implementation to compare with caldera's."""

    name: str
    min_equal_answers: float
    """Fraction of answers that must be equal."""

    @property
    def vocab_size(self) -> int | None:
        """Tokens that it has logits for, where caldera has more; the others are not compared."""
        ...

    @property
    def limits(self) -> Mapping[str, float]:
        """Accepted difference of stages in COMPARED, relative to caldera's largest absolute value."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Known deviations that were detected while it ran."""
        ...

    def run(self, image: Image.Image, case: ParityCase) -> StageOutputs:
        """Run all stages from a decoded RGB image to an answer."""
        ...

    def read(self, path: Path) -> np.ndarray | None:
        """Decode a file by its own decoder, (height, width, channels); None if it cannot."""
        ...

    def known_shape_difference(
        self, size: tuple[int, int], processor: ImageProcessor
    ) -> str | None:
        """Describe the known difference in preparing an image of a size, (width, height), if any."""
        ...


@dataclass(frozen=True, slots=True)
class StageDifference:
    """Difference of one stage over the images that decide."""

    stage: str
    max_difference: float
    """Absolute difference that is largest relative to its limit; infinite if shapes or ids differ."""

    image: str
    limit: float
    good: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of both implementations."""

    image: str
    question: str
    reference: str
    """Caldera's answer."""

    compared: str
    """The other implementation's answer."""

    equal: bool
    informational: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parity:
    """Result of a comparison."""

    against: str
    stages: tuple[StageDifference, ...]
    answers: tuple[Answer, ...]
    min_equal_answers: float
    """Fraction of answers that must be equal."""

    notes: tuple[str, ...] = ()
    """Known deviations of the other implementation that were detected."""

    @property
    def num_equal(self) -> tuple[int, int]:
        """Number of equal answers and of all answers, among the images that decide."""
        deciding = [answer for answer in self.answers if not answer.informational]
        return sum(answer.equal for answer in deciding), len(deciding)

    @property
    def good(self) -> bool:
        """True if the other implementation agrees within its limits."""
        equal, total = self.num_equal
        return all(stage.good for stage in self.stages) and equal >= self.min_equal_answers * total

    @property
    def fault(self) -> str:
        """The first difference over its limit."""
        for stage in self.stages:
            if not stage.good:
                return f"{stage.stage} differ by {stage.max_difference:.3g} (limit {stage.limit:.3g}) at {stage.image}"
        equal, total = self.num_equal
        return f"{equal} of {total} answers are equal, {self.min_equal_answers:.0%} are required"


@dataclass(slots=True)
class _MaxDifference:
    """The difference of a stage that is largest relative to its limit."""

    difference: float = 0.0
    limit: float = 0.0
    image: str = "-"
    good: bool = True
    ratio: float = -1.0

    def update(self, difference: float, limit: float, image: str) -> None:
        """Add the difference at one image."""
        ratio = difference / limit if limit else (0.0 if difference == 0 else float("inf"))
        self.good &= difference <= limit
        if ratio > self.ratio:
            self.ratio, self.difference, self.limit, self.image = ratio, difference, limit, image


def compare(
    reference: "Caldera",
    other: OtherSide,
    cases: Sequence[ParityCase],
    processor: ImageProcessor,
    progress: Progress,
) -> Parity:
    """Run every case in both implementations and compare all stages."""
    largest = {stage: _MaxDifference() for stage in ("file", *COMPARED)}
    answers = []
    with progress.task(f"comparing with {other.name}", len(cases)) as tick:
        for case in cases:
            image = open_image(case.path)
            expected, actual = reference.run(image, case), other.run(image, case)
            notes = list(_known_differences(case, image, other, processor))
            is_informational = case.informational and bool(notes)
            if not is_informational:
                name = case.path.name
                file_difference = _max_pixel_difference(np.asarray(image), other.read(case.path))
                largest["file"].update(file_difference, FILE_LIMIT, name)
                for stage, difference, limit in _differences(expected, actual, other):
                    largest[stage].update(difference, limit, name)
            is_equal = expected.answer == actual.answer
            if not is_equal:
                notes.append(_first_divergence(reference, case, expected.answer, actual.answer))
            answers.append(
                Answer(
                    case.path.name,
                    case.question,
                    reference.text(expected.answer),
                    reference.text(actual.answer),
                    is_equal,
                    is_informational,
                    tuple(notes),
                )
            )
            tick()
    stages = [
        StageDifference(stage, entry.difference, entry.image, entry.limit, entry.good)
        for stage, entry in largest.items()
        if stage == "file" or stage in other.limits
    ]
    return Parity(other.name, tuple(stages), tuple(answers), other.min_equal_answers, other.notes)


def _known_differences(
    case: ParityCase, image: Image.Image, other: OtherSide, processor: ImageProcessor
) -> Iterable[str]:
    """Yield the known differences in how another implementation reads or shapes an image."""
    pixels = other.read(case.path)
    if pixels is None:
        yield f"{other.name} cannot read the file"
    elif pixels.shape[:2] != (image.height, image.width):
        yield f"{other.name} reads it as {pixels.shape[1]} x {pixels.shape[0]}, not {image.width} x {image.height}"
    elif (difference := _max_pixel_difference(np.asarray(image), pixels)) > FILE_LIMIT:
        yield f"{other.name} reads other colors, by up to {difference:.0f} of 255"
    if shape_difference := other.known_shape_difference(image.size, processor):
        yield shape_difference


def long_image_difference(size: tuple[int, int], processor: ImageProcessor) -> str | None:
    """Describe the rounding of a long image, of which caldera enlarges the visible part only; None for others."""
    if processor.aspect == "square" and max(size) > MAX_ASPECT_RATIO * min(size):
        return "caldera enlarges only the visible part of such a long image: one level of rounding"
    return None


def _max_pixel_difference(expected: np.ndarray, actual: np.ndarray | None) -> float:
    """Return the largest difference of two decoded images, in levels."""
    if actual is None or expected.shape != actual.shape:
        return float("inf")
    return float(np.abs(expected.astype(int) - actual.astype(int)).max(initial=0))


def _differences(
    expected: StageOutputs, actual: StageOutputs, other: OtherSide
) -> Iterable[tuple[str, float, float]]:
    """Yield each stage with its largest difference and its limit, both in the stage's own units."""
    same_prompt, limits = expected.ids == actual.ids, other.limits
    pairs = {
        "pixels": (expected.pixels, actual.pixels),
        "features": (expected.features, actual.features),
        "image tokens": (expected.image_tokens, actual.image_tokens),
        "logits": tuple(side.logits[:, : other.vocab_size] for side in (expected, actual)),
    }
    for stage in COMPARED:
        if stage not in limits:
            continue
        if stage == "prompt":
            yield stage, 0.0 if same_prompt else float("inf"), limits[stage]
            continue
        first, second = pairs[stage]
        scale = float(first.abs().max())
        has_same_shape = first.shape == second.shape and (stage != "logits" or same_prompt)
        difference = float((first - second).abs().max()) if has_same_shape else float("inf")
        yield stage, float("inf") if math.isnan(difference) else difference, limits[stage] * scale


def _first_divergence(
    reference: "Caldera", case: ParityCase, expected: Sequence[int], actual: Sequence[int]
) -> str:
    """Describe the first different token of two answers, and its margin in caldera's logits."""
    shorter = min(len(expected), len(actual))
    index = next((i for i in range(shorter) if expected[i] != actual[i]), shorter)
    if index == shorter:
        return f"one answer ends after {index} tokens, the other continues"
    margin = reference.margin(case, expected[:index], expected[index], actual[index])
    tokens = f"{reference.text([expected[index]])!r} and {reference.text([actual[index]])!r}"
    return f"the answers diverge at token {index + 1}: {tokens}, which differ by {margin:.3g} logits in caldera"


def as_tensor(values: np.ndarray) -> Tensor:
    """Return a copy of an array as a tensor in fp32."""
    return torch.from_numpy(np.array(values, dtype=np.float32))


def check_readable(paths: Sequence[Path]) -> None:
    """Decode every image once, before a long comparison."""
    if not paths:
        raise ImageError("there is no image to compare with; pass some with --images")
    for path in paths:
        open_image(path)
