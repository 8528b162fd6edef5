"""Questions as lmms-eval puts them in, a model's answers or how likely given ones are out; lmms-eval is not needed."""

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
from caldera.inference.batch_generator import BatchGenerator
from caldera.inference.likelihood import LikelihoodScorer, LogLikelihood, ScoredContinuation
from caldera.inference.prompts import FilePrompt
from caldera.inference.sampling import SamplingParams
from caldera.model.assistant import LlavaBundle
from caldera.progress import Progress

_MAX_NEW_TOKENS = 1024
"""Where a task does not say, as lmms-eval's own LLaVA has it."""

_SUPPORTED = ("max_new_tokens", "temperature", "top_p", "do_sample", "until")

_NO_OP_VALUES: dict[str, tuple[object, ...]] = {"num_beams": (None, 1)}
"""Values of other settings that change nothing."""

_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")

_log = logging.getLogger(__name__)

_Asked = TypeVar("_Asked")


@dataclass(frozen=True, slots=True)
class LmmsQuestion:
    """What is asked about one document of a task."""

    name: str
    """Task and document, for messages."""

    text: str
    """May hold a mark for each image."""

    images: Callable[[], Sequence[object] | None]
    """Opens the images."""


@dataclass(frozen=True, slots=True)
class LmmsGeneration:
    """How answers are written."""

    sampling: SamplingParams
    stops: tuple[str, ...] = ()
    """An answer ends before the first of these."""


def decoding_from(settings: Mapping[str, Any]) -> tuple[LmmsGeneration, list[str]]:
    """Read a task's `generation_kwargs`.

    Returns:
        How answers are written, and the settings that are not followed, as `name=value`.

    Raises:
        UsageError: A value is out of its range.
    """
    longest, temperature = settings.get("max_new_tokens"), settings.get("temperature") or 0.0
    sampling = SamplingParams(max_new_tokens=_MAX_NEW_TOKENS if longest is None else longest)
    if temperature and settings.get("do_sample") is not False:
        top_p = settings.get("top_p")
        sampling = replace(sampling, temperature=temperature, top_p=1.0 if top_p is None else top_p)
    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    left = [
        f"{name}={value}"
        for name, value in settings.items()
        if name not in _SUPPORTED and value not in _NO_OP_VALUES.get(name, ())
    ]
    return LmmsGeneration(sampling, tuple(stop for stop in stops if stop)), left


def conversation_from(question: LmmsQuestion, folder: Path) -> Conversation:
    """Turn a question into a conversation that ends with it; its images are written to `folder`, as they are.

    Raises:
        ImageError: An image cannot be used.
        UsageError: There is something else than images, or not as many as the text has marks.
        RecordError: Nothing is asked.
    """
    images = []
    for number, image in enumerate(question.images() or ()):
        if not isinstance(image, Image.Image):
            raise UsageError(
                f"the model was given {type(image).__name__}, but it sees images only; choose a task without "
                "videos and sounds"
            )
        path = folder / f"{number}.png"
        _write(image, path)
        images.append(ImageRef(str(path)))
    return Conversation(question.name, (Turn("user", _parts(question.text, images)),))


def _write(image: Image.Image, path: Path) -> None:
    """Write an image upright and without loss, so that all that is known of image files holds for it.

    Raises:
        ImageError: It cannot be decoded.
    """
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


def _parts(text: str, images: Sequence[ImageRef]) -> tuple[str | ImageRef, ...]:
    """Put images where the text has marks for them; before it, as lmms-eval's own LLaVA does, if it has none.

    Raises:
        UsageError: There are marks, but not as many as images.
    """
    if not images:
        return (text,)
    first, *rest = text.split(IMAGE_PLACEHOLDER)
    if not rest:
        spaced = [part for image in images for part in (" ", image)]
        return (*spaced[1:], f"\n{text}")
    if len(rest) != len(images):
        raise UsageError(
            f"the question has {len(rest)} {IMAGE_PLACEHOLDER} mark(s) but {len(images)} image(s); each needs one mark, "
            "or the text none at all"
        )
    parts: list[str | ImageRef] = [first]
    for image, after in zip(images, rest, strict=True):
        parts += [image, after]
    return tuple(part for part in parts if part != "")


class LmmsAnswerer:
    """Answers with one assistant."""

    def __init__(
        self,
        assistant: LlavaBundle,
        compute: DeviceConfig,
        *,
        batch_size: int,
        seed: int,
        progress: Progress,
    ) -> None:
        """Answer `batch_size` questions together; what is drawn is drawn from `seed`."""
        assistant.model.to(compute.device)
        images = DecodedImages(assistant.processor)
        self._generator = BatchGenerator(assistant, images)
        self._weigher = LikelihoodScorer(assistant, images)
        self._compute, self._progress = compute, progress
        self._batch_size, self._seed = batch_size, seed

    def answer(self, asked: Sequence[tuple[LmmsQuestion, LmmsGeneration]]) -> list[str]:
        """Answer questions, in their order; how many answers a stop cut short is logged.

        Raises:
            CalderaError: A question cannot be asked; a note says which.
        """
        batches = _batches(asked, self._batch_size, key=lambda one: one[1])
        answers: dict[int, str] = {}
        whole: dict[int, str] = {}
        with self._progress.task("answering", len(asked)) as tick, self._compute.autocast():
            for number, places in enumerate(batches):
                decoding = asked[places[0]][1]
                # each batch draws anew: a question that is asked twice would else get one answer twice
                sampling = replace(decoding.sampling, seed=self._seed + number)
                questions = [asked[place][0] for place in places]
                texts = self._answer(questions, sampling)
                for place, text in zip(places, texts, strict=True):
                    whole[place], answers[place] = text, truncate_at_stops(text, decoding.stops)
                tick(len(places))
        if cut := sum(whole[place] != answers[place] for place in whole):
            _log.warning(
                "%s of %s answers were cut at one of the task's stops (until); ignore_until=True keeps them whole, "
                "as lmms-eval's own LLaVA does", cut, len(asked),
            )  # fmt: skip
        return [answers[place] for place in range(len(asked))]

    def log_likelihoods(self, asked: Sequence[tuple[LmmsQuestion, str]]) -> list[LogLikelihood]:
        """Return how likely each answer is to its question, in their order.

        Raises:
            CalderaError: A question cannot be asked; a note says which.
        """
        weights: dict[int, LogLikelihood] = {}
        with self._progress.task("weighing", len(asked)) as tick, self._compute.autocast():
            for places in _batches(asked, self._batch_size, key=lambda one: None):
                with TemporaryDirectory(prefix="caldera-lmms-") as folder:
                    prompts: list[ScoredContinuation] = []
                    for place in places:
                        question, answer = asked[place]
                        with _note_question(question):
                            conversation = conversation_from(question, Path(folder, str(place)))
                            prompts.append(self._weigher.prompt(conversation, answer.strip()))
                    found = self._weigher.score(prompts)
                weights |= dict(zip(places, found, strict=True))
                tick(len(places))
        return [weights[place] for place in range(len(asked))]

    def _answer(self, questions: Sequence[LmmsQuestion], sampling: SamplingParams) -> list[str]:
        """Answer questions together."""
        with TemporaryDirectory(prefix="caldera-lmms-") as folder:
            prompts: list[FilePrompt] = []
            for number, question in enumerate(questions):
                with _note_question(question):
                    conversation = conversation_from(question, Path(folder, str(number)))
                    prompts.append(self._generator.prompt(conversation))
                    self._generator.check_fit(prompts[-1:], sampling)
            return self._generator.generate(prompts, sampling)


def truncate_at_stops(text: str, stops: Iterable[str]) -> str:
    """Return an answer up to the first place where a stop begins."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)].rstrip() if places else text


def _batches(
    asked: Sequence[tuple[LmmsQuestion, _Asked]],
    size: int,
    key: Callable[[tuple[LmmsQuestion, _Asked]], object],
) -> Iterator[list[int]]:
    """Yield the places of what is asked together: alike by `key`, and of like length."""
    groups: dict[object, list[int]] = defaultdict(list)
    for place, one in enumerate(asked):
        groups[key(one)].append(place)
    for places in groups.values():
        places.sort(key=lambda place: len(asked[place][0].text))
        for at in range(0, len(places), size):
            yield places[at : at + size]


@contextmanager
def _note_question(question: LmmsQuestion) -> Iterator[None]:
    """Add to a fault which question it is about.

    Raises:
        CalderaError: It happened.
    """
    try:
        yield
    except CalderaError as fault:
        fault.add_note(f"asked: {question.name}")
        raise
