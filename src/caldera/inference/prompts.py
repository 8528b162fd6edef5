"""Conversations and images in, prompts out: the ids a model reads, and what it is shown at which of them.

An image from outside is known by its content alone: the sha256 over everything its pixels are made of and over how
they are prepared. Two prompts share what was computed for them only as far as all of that is equal.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from PIL import Image
from torch import Tensor

from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, Turn
from caldera.errors import UsageError
from caldera.images.anyres import Size, TileLayout, choose_layout
from caldera.images.processor import ImageProcessor
from caldera.inference.sampling import SamplingParams
from caldera.model.assistant import LlavaBundle
from caldera.templates.encoding import IGNORE_INDEX, EncodedConversation, encode
from caldera.templates.inspection import segments
from caldera.templates.template import find_template


@dataclass(frozen=True, slots=True)
class FilePrompt:
    """A conversation as the model takes it, opened for the assistant's answer; its images are files."""

    ids: tuple[int, ...]
    images: tuple[Path, ...]
    layouts: tuple[TileLayout, ...]
    """How each image is shown."""


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedImage:
    """An image as the vision tower takes it."""

    digest: str
    """sha256 in hex over mode, size, pixels and preparation."""

    pixels: Tensor
    """Of all views, (views, channels, height, width)."""

    layout: TileLayout
    """How the views lie."""

    size: Size
    """Of the image itself, in pixels."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the engine takes it, opened for the assistant's answer."""

    ids: tuple[int, ...]
    images: tuple[ProcessedImage, ...] = ()
    starts: tuple[int, ...] = ()
    """Place of each image's first token among the ids."""


def process_image(image: Image.Image, processor: ImageProcessor) -> ProcessedImage:
    """Prepare an RGB image, upright and without transparency, for the tower.

    Raises:
        ValueError: It has another mode, in which equal bytes need not be equal images.
    """
    if image.mode != "RGB":
        raise ValueError(f"an image of mode {image.mode}; convert it to RGB first")
    width, height = image.size
    head = f"{image.mode} {width}x{height} {processor!r}\n"
    digest = hashlib.sha256(head.encode())
    digest.update(image.tobytes())
    layout = TileLayout()
    if processor.aspect == "anyres":
        layout = choose_layout(image.size, processor.pinpoints, processor.side)
    return ProcessedImage(digest.hexdigest(), processor(image), layout, image.size)


class PromptBuilder:
    """Renders conversations for one assistant."""

    def __init__(self, assistant: LlavaBundle) -> None:
        """Render with the template of `assistant`'s card."""
        self._assistant = assistant
        self._template = find_template(assistant.card.template)

    @property
    def stops(self) -> tuple[str, ...]:
        """The text that ends an answer, where the end is no special token."""
        return () if self._template.stop is None else (self._template.stop,)

    def with_answer(
        self, conversation: Conversation, answer: str, folder: Path
    ) -> tuple[FilePrompt, int]:
        """Render a conversation that ends with the user, and an answer behind it.

        Returns:
            Ids that end with the answer's, and how many those are, without the mark that would end it.

        Raises:
            ImageError: The size of an image counts, but cannot be read.
            RecordError: The answer is empty.
        """
        encoded, tokens = self._answered(conversation, answer)
        return self._resolve_layouts(encoded, folder), tokens

    def from_files(self, conversation: Conversation, folder: Path = Path()) -> FilePrompt:
        """Render a conversation that ends with the user; its image paths start from `folder`.

        Raises:
            ImageError: The size of an image counts, but cannot be read.
        """
        return self._resolve_layouts(self._encoded(conversation), folder)

    def from_images(self, conversation: Conversation, images: Sequence[ProcessedImage]) -> Prompt:
        """Render a conversation that ends with the user, with one prepared image for each of its places.

        Raises:
            ValueError: There is not one for each.
        """
        return self._prompt(self._encoded(conversation), images)

    def with_answer_and_images(
        self, conversation: Conversation, answer: str, images: Sequence[ProcessedImage]
    ) -> tuple[Prompt, int]:
        """Render a conversation that ends with the user, an answer behind it, and one prepared image for each place.

        Returns:
            A prompt whose ids end with the answer's, and how many those are, without the mark that would end it.

        Raises:
            RecordError: The answer is empty.
            ValueError: There is not one image for each place.
        """
        encoded, tokens = self._answered(conversation, answer)
        return self._prompt(encoded, images), tokens

    def _prompt(self, encoded: EncodedConversation, images: Sequence[ProcessedImage]) -> Prompt:
        """Put images at their places.

        Raises:
            ValueError: There is not one for each.
        """
        layouts = [image.layout for image in images]
        counts = self._assistant.image_tokens(layouts)
        wider = self._expand_slots(encoded, layouts)  # refuses where the numbers differ
        ends = encoded.image_end_positions(counts)
        starts = tuple(end - count for end, count in zip(ends, counts, strict=True))
        return Prompt(wider.ids, tuple(images), starts)

    def as_text(self, conversation: Conversation) -> str:
        """Spell a prompt as the model gets it, with `<image>` where an image stands."""
        encoded = self._encoded(conversation)
        counts = [1] * len(encoded.image_paths)
        pieces = segments(encoded, self._assistant.tokenizer, counts)
        return "".join(
            IMAGE_PLACEHOLDER if piece.kind == "image" else piece.text for piece in pieces
        )

    def _answered(self, conversation: Conversation, answer: str) -> tuple[EncodedConversation, int]:
        """Encode a conversation and an answer, and count the answer's tokens."""
        turns = (*conversation.turns, Turn("assistant", (answer,)))
        asked = len(list(self._template.render(conversation)))
        spans = list(self._template.render(replace(conversation, turns=turns)))[: asked + 1]
        encoded = encode(spans, self._assistant.tokenizer)
        learned = takewhile(lambda label: label != IGNORE_INDEX, reversed(encoded.labels))
        return encoded, sum(1 for _ in learned)

    def _encoded(self, conversation: Conversation) -> EncodedConversation:
        return encode(self._template.render(conversation), self._assistant.tokenizer)

    def _resolve_layouts(self, encoded: EncodedConversation, folder: Path) -> FilePrompt:
        """Look at how the images are shown whose paths start from `folder`."""
        paths = tuple(folder / path for path in encoded.image_paths)
        layouts = self._assistant.layouts(paths)
        return FilePrompt(self._expand_slots(encoded, layouts).ids, paths, layouts)

    def _expand_slots(
        self, encoded: EncodedConversation, layouts: Sequence[TileLayout]
    ) -> EncodedConversation:
        """Return it with as many image tokens as its images have."""
        counts = self._assistant.image_tokens(layouts)
        return encoded.with_image_tokens(counts, self._assistant.model.image_token_id)


def check_context_length(
    ids: Sequence[int], sampling: SamplingParams, context_length: int | None
) -> None:
    """Refuse what a model has no room for.

    Raises:
        UsageError: A prompt and its answer are longer than the context, `room`; None is no limit.
    """
    if context_length is not None and len(ids) + sampling.max_new_tokens > context_length:
        raise UsageError(
            f"the conversation is {len(ids)} tokens long and asks for up to {sampling.max_new_tokens} "
            f"more, but the model has room for {context_length}; start anew or ask for fewer"
        )
