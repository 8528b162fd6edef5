"""Prompt builder: conversations and images to token ids with the positions of the images.

A processed image is identified by its content: the sha256 of its pixels, mode, size and preprocessing. Prompts share
cached keys and values only where all of that is equal.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from PIL import Image
from torch import Tensor

from caldera.batches.image_sources import ImageSource
from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, Turn
from caldera.errors import UsageError
from caldera.images.anyres import Size, TileLayout
from caldera.images.processor import ImageProcessor
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle
from caldera.templates.encoding import IGNORE_INDEX, EncodedConversation, encode
from caldera.templates.inspection import segments
from caldera.templates.registry import find_template


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedImage:
    """An image as the vision tower takes it, or as the tower gave it."""

    digest: str
    """Identifies the content and its preprocessing; sha256 in hex for images from outside."""

    views: Tensor
    """Pixels of all views, (views, channels, height, width), or their features, (views, patches, vision width)."""

    layout: TileLayout
    """Columns and rows of the views."""

    size: Size
    """Width and height of the original image in pixels."""

    one_of_several: "ProcessedImage | None" = None
    """The image as it is processed for a conversation with several; None if that is the same."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the engine takes it, ending where the assistant's answer starts."""

    ids: tuple[int, ...]
    images: tuple[ProcessedImage, ...] = ()
    starts: tuple[int, ...] = ()
    """Position of each image's first token among the ids."""


@dataclass(frozen=True, slots=True)
class FilePrompt:
    """A prompt whose images are files that were not decoded yet."""

    ids: tuple[int, ...]
    images: tuple[Path, ...]
    layouts: tuple[TileLayout, ...]
    """Tiles of each image."""

    starts: tuple[int, ...]
    """Position of each image's first token among the ids."""

    text: str
    """The prompt as the model reads it, with `<image>` for each image."""

    def load(self, source: ImageSource) -> Prompt:
        """Return the prompt with the pixels or features that `source` has for its images.

        The images are identified by their paths, which must not change while an engine caches them.

        Raises:
            ImageError: An image cannot be used.
        """
        images = [
            ProcessedImage(f"{path} {layout.newline}", source([path], [layout]), layout, (0, 0))
            for path, layout in zip(self.images, self.layouts, strict=True)
        ]
        return Prompt(self.ids, tuple(images), self.starts)


def process_image(
    image: Image.Image, processor: ImageProcessor, *, several: bool | None = None
) -> ProcessedImage:
    """Preprocess an RGB image, upright and without transparency.

    Args:
        image: The image.
        processor: Preprocesses it.
        several: Whether its conversation has several images; None if it may get more, so that both forms are needed.

    Raises:
        ValueError: The image has another mode, in which equal bytes need not be equal images.
    """
    if image.mode != "RGB":
        raise ValueError(f"the image has mode {image.mode}; convert it to RGB first")
    layout = processor.layout(image.size, several=several is True)
    other = processor.layout(image.size, several=several is not False)
    processed = _process(image, processor, layout)
    if other == layout:
        return processed
    return replace(processed, one_of_several=_process(image, processor, other))


def _process(image: Image.Image, processor: ImageProcessor, layout: TileLayout) -> ProcessedImage:
    """Preprocess an image in one layout."""
    width, height = image.size
    header = f"{image.mode} {width}x{height} {processor!r} {layout!r}\n"
    digest = hashlib.sha256(header.encode())
    digest.update(image.tobytes())
    return ProcessedImage(digest.hexdigest(), processor(image, layout), layout, image.size)


class PromptBuilder:
    """Renders and tokenizes conversations for one assistant."""

    def __init__(self, assistant: LlavaBundle) -> None:
        """Use the template of `assistant`'s metadata."""
        self._assistant = assistant
        self._template = find_template(assistant.card.template)

    @property
    def stops(self) -> tuple[str, ...]:
        """Text that ends an answer, where the template has no end token."""
        return () if self._template.stop is None else (self._template.stop,)

    @property
    def labels_images(self) -> bool:
        """If several images before a question have letters."""
        return self._template.labels_images

    def from_files(self, conversation: Conversation, folder: Path = Path()) -> FilePrompt:
        """Build a prompt from a conversation that ends with the user; image paths are relative to `folder`.

        Raises:
            ImageError: The size of an image decides its tiles, but cannot be read.
        """
        encoded = encode(self._template.render(conversation), self._assistant.tokenizer)
        return self._file_prompt(encoded, folder)

    def from_images(self, conversation: Conversation, images: Sequence[ProcessedImage]) -> Prompt:
        """Build a prompt from a conversation that ends with the user, with one processed image for each slot.

        Raises:
            ValueError: The numbers of images and slots differ.
        """
        encoded = encode(self._template.render(conversation), self._assistant.tokenizer)
        return self._prompt(encoded, images)

    def with_answer(
        self, conversation: Conversation, answer: str, folder: Path
    ) -> tuple[FilePrompt, int]:
        """Build a prompt from a conversation that ends with the user, followed by an answer.

        Returns:
            The prompt, whose ids end with the answer's, and the number of those, without the end token.

        Raises:
            ImageError: The size of an image decides its tiles, but cannot be read.
            ConversationError: The answer is empty.
        """
        encoded, num_tokens = self._with_answer(conversation, answer)
        return self._file_prompt(encoded, folder), num_tokens

    def with_answer_and_images(
        self, conversation: Conversation, answer: str, images: Sequence[ProcessedImage]
    ) -> tuple[Prompt, int]:
        """Build a prompt as `with_answer` does, with one processed image for each slot.

        Raises:
            ConversationError: The answer is empty.
            ValueError: The numbers of images and slots differ.
        """
        encoded, num_tokens = self._with_answer(conversation, answer)
        return self._prompt(encoded, images), num_tokens

    def _file_prompt(self, encoded: EncodedConversation, folder: Path) -> FilePrompt:
        """Expand the slots of images whose paths are relative to `folder`."""
        paths = tuple(folder / path for path in encoded.image_paths)
        layouts = self._assistant.layouts(paths)
        ids, starts = self._expand_slots(encoded, layouts)
        return FilePrompt(ids, paths, layouts, starts, self._text(encoded))

    def _prompt(self, encoded: EncodedConversation, images: Sequence[ProcessedImage]) -> Prompt:
        """Expand the slots of processed images."""
        if len(images) > 1:
            images = [image.one_of_several or image for image in images]
        ids, starts = self._expand_slots(encoded, [image.layout for image in images])
        return Prompt(ids, tuple(images), starts)

    def _expand_slots(
        self, encoded: EncodedConversation, layouts: Sequence[TileLayout]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return ids with all tokens of the images, and the position of each image's first token."""
        counts = [self._assistant.model.count_tokens(layout) for layout in layouts]
        expanded = encoded.with_image_tokens(counts, self._assistant.model.image_token_id)
        ends = encoded.image_end_positions(counts)
        return expanded.ids, tuple(end - count for end, count in zip(ends, counts, strict=True))

    def _text(self, encoded: EncodedConversation) -> str:
        """Return the text that the model reads, with `<image>` for each image."""
        counts = [1] * len(encoded.image_paths)
        return "".join(
            IMAGE_PLACEHOLDER if segment.kind == "image" else segment.text
            for segment in segments(encoded, self._assistant.tokenizer, counts)
        )

    def _with_answer(
        self, conversation: Conversation, answer: str
    ) -> tuple[EncodedConversation, int]:
        """Encode a conversation and an answer, and count the answer's tokens."""
        turns = (*conversation.turns, Turn("assistant", (answer,)))
        num_prompt_spans = len(list(self._template.render(conversation)))
        spans = list(self._template.render(replace(conversation, turns=turns)))
        # the span after the prompt's is the answer; the end token that follows it is not scored
        encoded = encode(spans[: num_prompt_spans + 1], self._assistant.tokenizer)
        supervised = takewhile(lambda label: label != IGNORE_INDEX, reversed(encoded.labels))
        return encoded, sum(1 for _ in supervised)


def check_context_length(
    ids: Sequence[int], sampling: SamplingParams, context_length: int | None
) -> None:
    """Raise UsageError if a prompt and its longest answer exceed the context; None is no limit."""
    if context_length is not None and len(ids) + sampling.max_new_tokens > context_length:
        raise UsageError(
            f"the conversation is {len(ids)} tokens long and asks for up to {sampling.max_new_tokens} more, but the "
            f"model has room for {context_length}; shorten it or lower max_new_tokens"
        )
