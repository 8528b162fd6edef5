"""Answers from a model folder, by the inference engine.

Items are answered in batches of similar length, planned over all items of a run. A batch is prefilled and decoded by
itself, so an answer depends on its batch alone: a run that was killed and resumed gives the same bytes in any
precision. In fp32 answers do not depend on the batch either. In bf16 they can: nearly equal logits are rounded
differently in batches of other shapes (of the demo's 4,741 answers one changes when each prompt is prefilled alone).
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from caldera import __version__
from caldera.batches.image_sources import ImageSource
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import CalderaError, InputError
from caldera.evaluation.answerers.answerer import (
    Answer,
    AnswerConfig,
    OnAnswers,
    PreparedItem,
    option_letter,
)
from caldera.evaluation.benchmark import Item
from caldera.formats.model_paths import find_model
from caldera.formats.open_model import load_model
from caldera.formats.photo_warning import PhotoWarning
from caldera.images.anyres import TileLayout
from caldera.images.decoding import open_image
from caldera.inference.engine import Engine, Request, offline_config
from caldera.inference.likelihood import LikelihoodScorer, LogLikelihood
from caldera.inference.prompts import FilePrompt, PromptBuilder, check_context_length
from caldera.inference.sampling import SamplingParams
from caldera.interruption import deferred_signals
from caldera.model.bundle import LlavaBundle

MAX_BYTES = 1 << 30
"""Memory for features of one block of items; about 450 images of CLIP ViT-L/14 at 336 pixels in fp32."""

_BYTES_PER_VALUE = 4

_BATCH_SIZE = 64
"""Items that `generate_answers` answers together."""


class ImageFeatureCache:
    """Features of the images of one block of items; each image is encoded once, alone."""

    def __init__(self, assistant: LlavaBundle, engine: Engine) -> None:
        """Encode images with an assistant's vision tower, on the engine's thread."""
        self._processor = assistant.processor
        self._vision = assistant.model.vision
        self._engine = engine
        self._features: dict[tuple[Path, bool], Tensor] = {}
        """Features by path and whether the image is one of several."""

    @property
    def capacity(self) -> int:
        """Number of images whose features fit into MAX_BYTES."""
        side = self._processor.side
        tiles = [width * height // side**2 for width, height in self._processor.pinpoints]
        views = 1 + max(tiles, default=0)
        values = views * self._vision.tokens_per_view * self._vision.width
        return max(1, MAX_BYTES // (values * _BYTES_PER_VALUE))

    def encode(self, paths: Sequence[Path], layouts: Sequence[TileLayout]) -> None:
        """Encode the images that are not cached yet.

        Raises:
            ImageError: An image cannot be used.
        """
        for path, layout in zip(paths, layouts, strict=True):
            if (path, layout.newline) not in self._features:
                pixels = self._processor(open_image(path), layout)  # (views, channels, side, side)
                self._features[path, layout.newline] = self._engine.encode_views(pixels)

    def clear(self) -> None:
        """Release all features."""
        self._features.clear()

    def __call__(
        self, paths: Sequence[Path], layouts: Sequence[TileLayout] | None = None
    ) -> Tensor:
        """Return features of encoded images, (views, patches, vision width)."""
        if not paths:
            return torch.zeros(0, self._vision.tokens_per_view, self._vision.width)
        newlines = [layout.newline for layout in layouts] if layouts else [False] * len(paths)
        return torch.cat([self._features[image] for image in zip(paths, newlines, strict=True)])


def split_by_images(items: Sequence[PreparedItem], capacity: int) -> Iterator[list[PreparedItem]]:
    """Yield blocks of items about at most `capacity` images; items about the same image are in the same block.

    Items keep their order within a block. An item about more images than `capacity` has a block of its own. If all
    images fit, the only block is `items` as it is.
    """
    image_paths = [prepared.item.conversation.images for prepared in items]
    first_index: dict[str, int] = {}
    for index, paths in enumerate(image_paths):
        for path in paths:
            first_index.setdefault(path, index)
    by_image = sorted(
        range(len(items)),
        key=lambda index: min((first_index[path] for path in image_paths[index]), default=index),
    )
    block: list[int] = []
    images: set[str] = set()
    for index in by_image:
        union = images.union(image_paths[index])
        if block and len(union) > capacity:
            yield [items[member] for member in sorted(block)]
            block, union = [], set(image_paths[index])
        block.append(index)
        images = union
    if block:
        yield [items[member] for member in sorted(block)]


class LocalModelAnswerer:
    """Answers items with a loaded model folder."""

    def __init__(
        self, assistant: LlavaBundle, digest: str, *, config: AnswerConfig, compute: DeviceConfig
    ) -> None:
        """Answer with `assistant`, whose folder has this digest."""
        self._assistant, self._config, self._compute = assistant, config, compute
        assistant.model.to(compute.device)
        self._prompt_builder = PromptBuilder(assistant)
        self._photo_warning = PhotoWarning(assistant.card.source_digests)
        self._digest = digest

    @property
    def identity(self) -> Mapping[str, str]:
        """Model, precision, decoding and batch size: sums of other shapes are rounded differently."""
        config, sampling = self._config, {}
        if config.temperature:
            sampling = {"top_p": str(config.top_p), "seed": str(config.seed)}
        return {
            "model": self._digest,
            "caldera": __version__,
            "template": self._assistant.card.template,
            "image mode": self._assistant.card.image_aspect,
            "dtype": str(self._compute.dtype).removeprefix("torch."),
            "device": self._compute.device.type,
            "temperature": str(config.temperature),
            **sampling,
            "choice_method": config.choice_method,
            "batch_size": str(config.batch_size),
        }

    @property
    def model_info(self) -> Mapping[str, str]:
        """Training stage and projector of the model, and its name and commit on the Hub."""
        card = self._assistant.card
        hub = {"hub": card.sources["source"]} if "@" in card.sources.get("source", "") else {}
        return {"stage": card.stage or "joined only", "projector": card.projector, **hub}

    @property
    def deterministic(self) -> bool:
        """True for greedy decoding."""
        return self._config.temperature == 0

    @property
    def batched(self) -> bool:
        """Always true."""
        return True

    def prepare(self, item: Item, folder: Path, image_digests: Sequence[str]) -> PreparedItem:
        """Render and tokenize the prompt of an item.

        Raises:
            CalderaError: The template has no place for it, or the size of an image cannot be read.
        """
        prompt = self._prompt_builder.from_files(item.conversation, folder)
        return PreparedItem(item, folder, prompt.text, prompt)

    def ask(
        self,
        items: Sequence[PreparedItem],
        answered: Collection[str],
        on_answers: OnAnswers,
        *,
        max_new_tokens: int,
    ) -> None:
        """Answer items in batches of similar length.

        Raises:
            CalderaError: The model failed.
            Interrupted: A signal ended the work after a batch.
        """
        images = {path for item in items for path in _prompt(item).images}
        self._photo_warning.check_files(sorted(images))
        batch_size = self._config.batch_size
        sampling = {
            prepared.item.id: self._sampling(self._room(prepared, max_new_tokens), index)
            for index, prepared in enumerate(items)
        }
        with (
            deferred_signals() as stop_request,
            Engine(self._assistant, offline_config(batch_size), compute=self._compute) as engine,
        ):
            features = ImageFeatureCache(self._assistant, engine)
            for block in split_by_images(items, features.capacity):
                by_length = sorted(block, key=lambda prepared: len(_prompt(prepared).ids))
                for start in range(0, len(by_length), batch_size):
                    planned = by_length[start : start + batch_size]
                    batch = [item for item in planned if item.item.id not in answered]
                    if batch:
                        on_answers(self._answer_batch(engine, batch, features, sampling))
                        stop_request.raise_if_requested("stopped")
                features.clear()

    def _answer_batch(
        self,
        engine: Engine,
        batch: Sequence[PreparedItem],
        features: ImageFeatureCache,
        sampling: Mapping[str, SamplingParams],
    ) -> list[Answer]:
        """Answer a batch; an item that cannot be asked fails alone. `sampling` is by item id."""
        answers: list[Answer] = []
        requests: dict[str, Request] = {}
        for prepared in batch:
            item, prompt = prepared.item, _prompt(prepared)
            try:
                features.encode(prompt.images, prompt.layouts)
                if item.choices and self._config.choice_method != "generation":
                    answers.append(self._choose_option(engine, prepared, features))
                else:
                    check_context_length(prompt.ids, sampling[item.id], engine.context_length)
                    requests[item.id] = Request(prompt.load(features), sampling[item.id])
            except CalderaError as error:
                answers.append(Answer(item.id, error=str(error)))
        streams = engine.submit_batch(list(requests.values()))
        for item_id, stream in zip(requests, streams, strict=True):
            try:
                answers.append(Answer(item_id, stream.read_all()))
            except CalderaError as error:
                answers.append(Answer(item_id, error=str(error)))
        return answers

    def _choose_option(
        self, engine: Engine, prepared: PreparedItem, features: ImageFeatureCache
    ) -> Answer:
        """Return the letter of the most likely option; the first of equals."""
        item, method = prepared.item, self._config.choice_method
        scorer = LikelihoodScorer(self._assistant, features)
        options = [
            option_letter(item, index) if method == "letter" else option
            for index, option in enumerate(item.choices)
        ]
        continuations = [
            scorer.prompt(item.conversation, option, prepared.folder) for option in options
        ]
        likelihoods = engine.run_between_steps(lambda _: scorer.score(continuations))

        def score(likelihood: LogLikelihood) -> float:
            return likelihood.per_token if method == "option-mean" else likelihood.sum

        best = max(range(len(likelihoods)), key=lambda index: score(likelihoods[index]))
        pairs = tuple((likelihood.sum, likelihood.num_tokens) for likelihood in likelihoods)
        return Answer(item.id, option_letter(item, best), option_log_likelihoods=pairs)

    def _room(self, prepared: PreparedItem, max_new_tokens: int) -> int:
        """Return the maximum length of an item's answer: the rest of the context, if that is less; at least 1."""
        context_length = self._assistant.model.context_length
        if context_length is None:
            return max_new_tokens
        return max(1, min(max_new_tokens, context_length - len(_prompt(prepared).ids)))

    def _sampling(self, max_new_tokens: int, index: int) -> SamplingParams:
        """Return the sampling parameters of an item; each has its own seed."""
        return SamplingParams(
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            seed=self._config.seed + index,
            max_new_tokens=max_new_tokens,
        )


def _prompt(prepared: PreparedItem) -> FilePrompt:
    assert prepared.prompt is not None, "prepared by this answerer"
    return prepared.prompt


def load_answerer(
    model: str | Path, *, config: AnswerConfig, compute: DeviceConfig
) -> LocalModelAnswerer:
    """Load a model to answer with; a text may be a name on the Hugging Face Hub.

    Raises:
        ModelFormatError: It is no model, or cannot be loaded.
        HubError: A repository on the Hub or a file of it cannot be used.
        OutputError: The disk has too little space for the download.
        UsageError: A setting is out of its range.
    """
    folder = find_model(model)
    assistant = load_model(folder)
    return LocalModelAnswerer(
        assistant, digest_model_folder(folder), config=config, compute=compute
    )


def digest_model_folder(folder: Path, ignore: Collection[str] = ()) -> str:
    """Return the sha256 of all files of a model folder but those of the names `ignore`.

    Raises:
        InputError: A file cannot be read.
    """
    total = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            if path.name in ignore:
                continue
            with path.open("rb") as file:
                total.update(path.name.encode() + b"\0")
                total.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}; check the path") from error
    return total.hexdigest()


def generate_answers(
    assistant: LlavaBundle,
    items: Sequence[Item],
    images: ImageSource,
    *,
    folder: Path,
    max_new_tokens: int,
    runtime: Runtime,
    name: str,
) -> dict[str, str]:
    """Answer every item once, greedily, and return the answers by item id.

    Args:
        assistant: Stays on its device.
        items: Items to answer.
        images: Pixels or features of the images.
        folder: Folder that image paths are relative to.
        max_new_tokens: Maximum length of an answer.
        runtime: Precision of the matrix products, and progress reporting.
        name: Name of the task for the progress.

    Raises:
        CalderaError: An image cannot be used, or an item exceeds the model's context.
    """
    builder, sampling = PromptBuilder(assistant), SamplingParams(max_new_tokens=max_new_tokens)
    prompts = {item.id: builder.from_files(item.conversation, folder) for item in items}
    order = sorted(prompts, key=lambda item_id: len(prompts[item_id].ids))
    answers: dict[str, str] = {}
    with (
        runtime.progress.task(name, len(items)) as advance,
        Engine(assistant, offline_config(_BATCH_SIZE), compute=runtime.compute) as engine,
    ):
        for start in range(0, len(order), _BATCH_SIZE):
            batch = order[start : start + _BATCH_SIZE]
            requests = [Request(prompts[item_id].load(images), sampling) for item_id in batch]
            streams = engine.submit_batch(requests)
            answers |= {
                item_id: stream.read_all() for item_id, stream in zip(batch, streams, strict=True)
            }
            advance(len(batch))
    return answers
