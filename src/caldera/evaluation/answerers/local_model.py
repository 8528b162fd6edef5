"""A model folder answers.

A benchmark asks many questions about an image, and the vision tower is most of the work of a short answer. Each
image goes through the tower alone, so what it becomes depends on no other, nor on what an earlier start answered.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from caldera import __version__
from caldera.devices import DeviceConfig
from caldera.errors import CalderaError, InputError
from caldera.evaluation.answerers.answerer import Answer, AnswerConfig, OnAnswers, option_letter
from caldera.evaluation.benchmark import Item
from caldera.formats.model_folder import load_model_folder
from caldera.images.decoding import open_image
from caldera.inference.batch_generator import BatchGenerator
from caldera.inference.likelihood import LikelihoodScorer, LogLikelihood, ScoredContinuation
from caldera.inference.prompts import FilePrompt
from caldera.inference.sampling import SamplingParams
from caldera.model.assistant import LlavaBundle
from caldera.progress import Progress

MAX_BYTES = 1 << 30
"""Of features that are kept at a time; some 450 images of CLIP ViT-L/14 at 336 pixels in fp32."""

_BYTES = 4
"""Of a number, in fp32."""


class ImageFeatureCache:
    """The features of images that were looked at since the last `forget`."""

    def __init__(self, assistant: LlavaBundle) -> None:
        """Look at images with an assistant's tower, where that is."""
        self._processor = assistant.processor
        self._vision = assistant.model.vision
        self._features: dict[Path, Tensor] = {}

    @property
    def capacity(self) -> int:
        """Images whose features may be kept together."""
        side = self._processor.side
        tiles = [across * down // side**2 for across, down in self._processor.pinpoints]
        views = 1 + max(tiles, default=0)
        each = views * self._vision.tokens_per_view * self._vision.width * _BYTES
        return max(1, MAX_BYTES // each)

    @torch.inference_mode()
    def run(self, paths: Sequence[Path]) -> None:
        """Look at images that were not looked at yet.

        Raises:
            ImageError: One cannot be used.
        """
        device = next(self._vision.parameters()).device
        for path in paths:
            if path not in self._features:
                pixels = self._processor(open_image(path))  # (views, channels, height, width)
                self._features[path] = self._vision(pixels.to(device)).cpu()

    def clear(self) -> None:
        """Let go of them."""
        self._features.clear()

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return features, (views, patches, vision width)."""
        if not paths:
            return torch.zeros(0, self._vision.tokens_per_view, self._vision.width)
        return torch.cat([self._features[path] for path in paths])


def split_by_images(items: Sequence[Item], most: int) -> Iterator[list[Item]]:
    """Yield all items in blocks about at most `most` images each, those about an image together, else in order.

    An item about more images than that is a block of its own. Where all images are few enough, the only block is
    the items as they are.
    """
    first_met: dict[str, int] = {}
    for at, item in enumerate(items):
        for path in item.conversation.images:
            first_met.setdefault(path, at)

    def place(at: int) -> int:
        return min((first_met[path] for path in items[at].conversation.images), default=at)

    block: list[int] = []
    images: set[str] = set()
    for at in sorted(range(len(items)), key=place):
        joined = images.union(items[at].conversation.images)
        if block and len(joined) > most:
            yield [items[one] for one in sorted(block)]
            block, joined = [], set(items[at].conversation.images)
        block.append(at)
        images = joined
    if block:
        yield [items[one] for one in sorted(block)]


class LocalModelAnswerer:
    """Answers with an assistant of our own."""

    def __init__(
        self, assistant: LlavaBundle, digest: str, *, asking: AnswerConfig, compute: DeviceConfig
    ) -> None:
        """Answer with `assistant`, whose folder has this digest.

        Raises:
            UsageError: It cannot be asked in this way.
        """
        self._assistant, self._asking, self._compute = assistant, asking, compute
        self._sampling(1)  # refuses what cannot be, before anything is loaded or asked
        assistant.model.to(compute.device)
        self._seen = ImageFeatureCache(assistant)
        self._generator = BatchGenerator(assistant, self._seen)
        self._weigher = LikelihoodScorer(assistant, self._seen)
        self._digest = digest

    @property
    def identity(self) -> Mapping[str, str]:
        """Model, precision and decoding; batches too, as sums of other shapes are rounded otherwise."""
        asking, drawn = self._asking, {}
        if asking.temperature:
            drawn = {"top_p": str(asking.top_p), "seed": str(asking.seed)}
        return {
            "model": self._digest,
            "caldera": __version__,
            "template": self._assistant.card.template,
            "image mode": self._assistant.card.image_aspect,
            "dtype": str(self._compute.dtype).removeprefix("torch."),
            "device": self._compute.device.type,
            "temperature": str(asking.temperature),
            **drawn,
            "choice_method": asking.choice_method,
            "batch_size": str(asking.batch_size),
        }

    @property
    def model_info(self) -> Mapping[str, str]:
        """The stage that wrote the model."""
        card = self._assistant.card
        return {"stage": card.stage or "joined only", "projector": card.projector}

    @property
    def deterministic(self) -> bool:
        """Whether it is greedy."""
        return self._asking.temperature == 0

    @property
    def batched(self) -> bool:
        """Always."""
        return True

    def prompt(self, item: Item, images: Sequence[str]) -> str:
        """Return the prompt as the model gets it, `<image>` where an image stands.

        Raises:
            CalderaError: The template has no place for it.
        """
        return self._generator.prompt_text(item.conversation)

    def ask(
        self,
        items: Sequence[Item],
        done: Collection[str],
        on_answers: OnAnswers,
        *,
        folder: Path,
        max_new_tokens: int,
    ) -> None:
        """Ask in batches of like length, chosen among all items whether done or not.

        Raises:
            CalderaError: The model fails.
        """
        sampling = self._sampling(max_new_tokens)
        with self._compute.autocast():
            for block in split_by_images(items, self._seen.capacity):
                for planned in self._batches(block):
                    batch = [item for item in planned if item.id not in done]
                    if batch:
                        on_answers(self._answer(batch, folder, sampling))
                self._seen.clear()

    def _batches(self, block: Sequence[Item]) -> Iterator[list[Item]]:
        """Yield items of like length together, so that little is padded."""
        order = sorted(block, key=lambda item: len(self._generator.prompt_text(item.conversation)))
        for at in range(0, len(order), self._asking.batch_size):
            yield order[at : at + self._asking.batch_size]

    def _answer(
        self, batch: Sequence[Item], folder: Path, sampling: SamplingParams
    ) -> list[Answer]:
        """Answer a batch; items that cannot be asked fail alone."""
        ready = _PreparedBatch()
        for item in batch:
            try:
                self._prepare(item, folder, sampling, ready)
            except CalderaError as fault:
                ready.failed.append(Answer(item.id, error=str(fault)))
        answers = ready.failed
        if ready.prompts:
            texts = self._generator.generate([prompt for _, prompt in ready.prompts], sampling)
            names = [item.id for item, _ in ready.prompts]
            answers += [Answer(name, text) for name, text in zip(names, texts, strict=True)]
        answers += [self._choose_option(item, options) for item, options in ready.options]
        return answers

    def _prepare(
        self, item: Item, folder: Path, sampling: SamplingParams, ready: "_PreparedBatch"
    ) -> None:
        """Render what is asked about an item and look at its images.

        Raises:
            CalderaError: An image cannot be used, or the item is too long for the model.
        """
        self._seen.run([folder / path for path in item.conversation.images])
        if item.choices and self._asking.choice_method != "generation":
            options = [
                option_letter(item, at) if self._asking.choice_method == "letter" else option
                for at, option in enumerate(item.choices)
            ]
            weighed = [
                self._weigher.prompt(item.conversation, option, folder) for option in options
            ]
            ready.options.append((item, weighed))
            return
        prompt = self._generator.prompt(item.conversation, folder)
        self._generator.check_fit([prompt], sampling)
        ready.prompts.append((item, prompt))

    def _choose_option(self, item: Item, options: Sequence[ScoredContinuation]) -> Answer:
        """Choose the likeliest option and answer with its letter; the first of equals."""
        weights = self._weigher.score(options)

        def weight(one: LogLikelihood) -> float:
            return one.per_token if self._asking.choice_method == "option-mean" else one.sum

        best = max(range(len(weights)), key=lambda at: weight(weights[at]))
        told = tuple((one.total, one.tokens) for one in weights)
        return Answer(item.id, option_letter(item, best), option_log_likelihoods=told)

    def _sampling(self, max_new_tokens: int) -> SamplingParams:
        """Say how tokens are chosen.

        Raises:
            UsageError: A setting is out of its range.
        """
        asking = self._asking
        return SamplingParams(
            temperature=asking.temperature,
            top_p=asking.top_p,
            seed=asking.seed,
            max_new_tokens=max_new_tokens,
        )


@dataclass(slots=True)
class _PreparedBatch:
    """What of a batch can be asked, and what cannot."""

    prompts: list[tuple[Item, FilePrompt]] = field(default_factory=list)
    options: list[tuple[Item, list[ScoredContinuation]]] = field(default_factory=list)
    failed: list[Answer] = field(default_factory=list)


def load_answerer(
    folder: Path, *, asking: AnswerConfig, compute: DeviceConfig
) -> LocalModelAnswerer:
    """Load a model folder to answer with.

    Raises:
        ModelFolderError: It cannot be loaded.
        UsageError: It cannot be asked in this way.
    """
    assistant = load_model_folder(folder)
    return LocalModelAnswerer(
        assistant, digest_model_folder(folder), asking=asking, compute=compute
    )


def digest_model_folder(folder: Path) -> str:
    """Return the sha256 of all that a model folder holds: weights, settings and words.

    Raises:
        InputError: A file cannot be read.
    """
    total = hashlib.sha256()
    try:
        for file in sorted(file for file in folder.iterdir() if file.is_file()):
            with file.open("rb") as opened:
                total.update(file.name.encode() + b"\0")
                total.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}; check the path") from error
    return total.hexdigest()


def ask(
    generator: BatchGenerator,
    items: Sequence[Item],
    *,
    folder: Path,
    max_new_tokens: int,
    progress: Progress,
    name: str,
    batch_size: int = 64,
) -> dict[str, str]:
    """Ask every item once and return the answers by item id.

    Args:
        generator: Answers.
        items: What to ask.
        folder: Folder that image paths start from.
        max_new_tokens: Longest answer.
        progress: Follows the work.
        name: What the progress is called.
        batch_size: Items that are answered together.

    Raises:
        CalderaError: An image cannot be used, or an item is too long for the model.
    """
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    prompts = {item.id: generator.prompt(item.conversation, folder) for item in items}
    order = sorted(prompts, key=lambda name: len(prompts[name].ids))
    answers: dict[str, str] = {}
    with progress.task(name, len(items)) as tick:
        for at in range(0, len(order), batch_size):
            names = order[at : at + batch_size]
            replies = generator.generate([prompts[name] for name in names], sampling)
            answers |= dict(zip(names, replies, strict=True))
            tick(len(names))
    return answers
