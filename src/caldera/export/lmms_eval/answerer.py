"""Answers and log likelihoods for lmms-eval's questions; lmms-eval itself is not needed."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from PIL import Image, ImageOps

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.devices import DeviceConfig
from caldera.errors import CalderaError, ImageError, UsageError
from caldera.inference.engine import Engine, Request, offline_config
from caldera.inference.likelihood import LikelihoodScorer, LogLikelihood, ScoredContinuation
from caldera.inference.prompts import PromptBuilder, check_context_length
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle
from caldera.progress import Progress

_MAX_NEW_TOKENS = 1024
"""Default of lmms-eval's own LLaVA."""

_SUPPORTED = ("max_new_tokens", "temperature", "top_p", "do_sample", "until")

_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")

_log = logging.getLogger(__name__)

_Target = TypeVar("_Target")


@dataclass(frozen=True, slots=True)
class LmmsQuestion:
    """Question about one document of a task."""

    name: str
    """Task and document, for messages."""

    text: str
    """May contain a placeholder for each image."""

    images: Callable[[], Sequence[object] | None]
    """Opens the images."""


@dataclass(frozen=True, slots=True)
class LmmsGeneration:
    """Generation settings of a question."""

    sampling: SamplingParams
    stops: tuple[str, ...] = ()
    """An answer ends before the first of these."""


def decoding_from(settings: Mapping[str, Any]) -> tuple[LmmsGeneration, list[str]]:
    """Convert a task's `generation_kwargs`.

    Returns:
        The settings, and those that are not supported, as `name=value`.
    """
    max_new_tokens, temperature = settings.get("max_new_tokens"), settings.get("temperature") or 0.0
    sampling = SamplingParams(
        max_new_tokens=_MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    )
    if temperature and settings.get("do_sample") is not False:
        top_p = settings.get("top_p")
        sampling = replace(sampling, temperature=temperature, top_p=1.0 if top_p is None else top_p)
    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    unsupported = [
        f"{name}={value}"
        for name, value in settings.items()
        # A beam search of one beam is greedy decoding.
        if name not in _SUPPORTED and (name, value) not in (("num_beams", None), ("num_beams", 1))
    ]
    return LmmsGeneration(sampling, tuple(stop for stop in stops if stop)), unsupported


def conversation_from(question: LmmsQuestion, folder: Path) -> Conversation:
    """Return a conversation that ends with the question; its images are written to `folder`."""
    images = []
    for number, image in enumerate(question.images() or ()):
        if not isinstance(image, Image.Image):
            raise UsageError(
                f"the model was given {type(image).__name__}, but it accepts images only; choose a task without videos "
                "and sounds"
            )
        path = folder / f"{number}.png"
        _write_png(image, path)
        images.append(ImageRef(str(path)))
    return Conversation(question.name, (Turn("user", _insert_images(question.text, images)),))


def _write_png(image: Image.Image, path: Path) -> None:
    """Write an image upright and lossless."""
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in _PNG_MODES:
            upright = upright.convert("RGB")
        path.parent.mkdir(parents=True, exist_ok=True)
        upright.save(path, compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(
            f"an image of the data set cannot be decoded ({error}); correct it"
        ) from error


def _insert_images(text: str, images: Sequence[ImageRef]) -> tuple[str | ImageRef, ...]:
    """Put images at the placeholders; before a text without any, as lmms-eval's own LLaVA does."""
    if not images:
        return (text,)
    first, *rest = text.split(IMAGE_PLACEHOLDER)
    if not rest:
        spaced = [part for image in images for part in (" ", image)]
        return (*spaced[1:], f"\n{text}")
    if len(rest) != len(images):
        raise UsageError(
            f"the question has {len(rest)} {IMAGE_PLACEHOLDER} mark(s) but {len(images)} image(s); each needs one "
            "mark, or the text none at all"
        )
    parts: list[str | ImageRef] = [first]
    for image, segment in zip(images, rest, strict=True):
        parts += [image, segment]
    return tuple(part for part in parts if part != "")


class LmmsAnswerer:
    """Model that answers lmms-eval's questions."""

    def __init__(
        self,
        assistant: LlavaBundle,
        device: DeviceConfig,
        *,
        batch_size: int,
        seed: int,
        progress: Progress,
    ) -> None:
        """Answer in batches of `batch_size`; sampling starts from `seed`."""
        assistant.model.to(device.device)
        self._assistant = assistant
        self._images = DecodedImages(assistant.processor)
        self._prompt_builder = PromptBuilder(assistant)
        self._scorer = LikelihoodScorer(assistant, self._images)
        self._device, self._progress = device, progress
        self._batch_size, self._seed = batch_size, seed

    def answer(self, requests: Sequence[tuple[LmmsQuestion, LmmsGeneration]]) -> list[str]:
        """Answer questions, in their order; the number of answers that a stop truncated is logged.

        Raises:
            CalderaError: A question is not valid; a note on the error names it.
        """
        batches = _batches(requests, self._batch_size, key=lambda generation: generation)
        texts: dict[int, str] = {}
        config = offline_config(self._batch_size)
        with (
            self._progress.task("answering", len(requests)) as tick,
            Engine(self._assistant, config, compute=self._device) as engine,
        ):
            for indices in batches:
                texts |= self._answer_batch(engine, {index: requests[index] for index in indices})
                tick(len(indices))
        truncated = [
            truncate_at_stops(texts[index], generation.stops)
            for index, (_, generation) in enumerate(requests)
        ]
        if num_truncated := sum(texts[index] != text for index, text in enumerate(truncated)):
            _log.warning(
                "%s of %s answers were cut at one of the task's stops (until); ignore_until=True disables this, as in "
                "lmms-eval's own LLaVA",
                num_truncated,
                len(requests),
            )
        return truncated

    def log_likelihoods(self, requests: Sequence[tuple[LmmsQuestion, str]]) -> list[LogLikelihood]:
        """Return the log likelihood of each answer to its question, in their order."""
        results: dict[int, LogLikelihood] = {}
        with self._progress.task("scoring", len(requests)) as tick, self._device.autocast():
            for indices in _batches(requests, self._batch_size, key=lambda _: None):
                with TemporaryDirectory(prefix="caldera-lmms-") as folder:
                    prompts: list[ScoredContinuation] = []
                    for index in indices:
                        question, answer = requests[index]
                        with _note_question(question):
                            conversation = conversation_from(question, Path(folder, str(index)))
                            prompts.append(self._scorer.prompt(conversation, answer.strip()))
                    scores = self._scorer.score(prompts)
                results |= dict(zip(indices, scores, strict=True))
                tick(len(indices))
        return [results[index] for index in range(len(requests))]

    def _answer_batch(
        self, engine: Engine, batch: Mapping[int, tuple[LmmsQuestion, LmmsGeneration]]
    ) -> dict[int, str]:
        """Answer questions together; keys are the indices of the requests."""
        requests: list[Request] = []
        with TemporaryDirectory(prefix="caldera-lmms-") as folder:
            for index, (question, generation) in batch.items():
                # Each request has its own seed: a repeated question would otherwise get the same answer.
                sampling = replace(generation.sampling, seed=self._seed + index)
                with _note_question(question):
                    conversation = conversation_from(question, Path(folder, str(index)))
                    prompt = self._prompt_builder.from_files(conversation)
                    check_context_length(prompt.ids, sampling, engine.context_length)
                    requests.append(Request(prompt.load(self._images), sampling))
        streams = engine.submit_batch(requests)
        return {index: stream.read_all() for index, stream in zip(batch, streams, strict=True)}


def truncate_at_stops(text: str, stops: Iterable[str]) -> str:
    """Return an answer up to the first stop."""
    starts = [start for stop in stops if (start := text.find(stop)) >= 0]
    return text[: min(starts)].rstrip() if starts else text


def _batches(
    requests: Sequence[tuple[LmmsQuestion, _Target]], size: int, key: Callable[[_Target], object]
) -> Iterator[list[int]]:
    """Yield the indices of batches with equal `key` of the second element and questions of similar length."""
    groups: dict[object, list[int]] = defaultdict(list)
    for index, (_, target) in enumerate(requests):
        groups[key(target)].append(index)
    for indices in groups.values():
        indices.sort(key=lambda index: len(requests[index][0].text))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


@contextmanager
def _note_question(question: LmmsQuestion) -> Iterator[None]:
    """Add the question's name to an error as a note."""
    try:
        yield
    except CalderaError as error:
        error.add_note(f"question: {question.name}")
        raise
