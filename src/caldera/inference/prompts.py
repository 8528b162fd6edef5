"""Conversations and pictures in, prompts out: the ids a model reads, and what it is shown at which of them.

A picture from outside is known by its content alone: the sha256 over everything its pixels are made of and over how
they are prepared. Two prompts share what was computed for them only as far as all of that is equal.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from PIL import Image
from torch import Tensor

from caldera.batches.anyres import Layout, Size, layout_in
from caldera.batches.inspection import stretches
from caldera.batches.labels import IGNORED, Encoded, encode
from caldera.batches.pictures import PictureProcessor
from caldera.batches.templates import find_template
from caldera.conversation import IMAGE_MARK, Conversation, Turn
from caldera.errors import UsageError
from caldera.inference.sampling import Sampling
from caldera.model.folder import Assistant


@dataclass(frozen=True, slots=True)
class PathPrompt:
    """A conversation as the model takes it, opened for the assistant's answer; its pictures are files."""

    ids: tuple[int, ...]
    pictures: tuple[Path, ...]
    layouts: tuple[Layout, ...]
    """How each picture is shown."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPicture:
    """A picture as the vision tower takes it."""

    digest: str
    """sha256 in hex over mode, size, pixels and preparation."""

    pixels: Tensor
    """Of all views, (views, channels, height, width)."""

    layout: Layout
    """How the views lie."""

    size: Size
    """Of the picture itself, in pixels."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the engine takes it, opened for the assistant's answer."""

    ids: tuple[int, ...]
    pictures: tuple[PreparedPicture, ...] = ()
    starts: tuple[int, ...] = ()
    """Place of each picture's first token among the ids."""


def prepare(picture: Image.Image, processor: PictureProcessor) -> PreparedPicture:
    """Prepare an RGB picture, upright and without transparency, for the tower.

    Raises:
        ValueError: It has another mode, in which equal bytes need not be equal pictures.
    """
    if picture.mode != "RGB":
        raise ValueError(f"a picture of mode {picture.mode}; convert it to RGB first")
    width, height = picture.size
    head = f"{picture.mode} {width}x{height} {processor!r}\n"
    digest = hashlib.sha256(head.encode())
    digest.update(picture.tobytes())
    layout = Layout()
    if processor.aspect == "anyres":
        layout = layout_in(picture.size, processor.pinpoints, processor.side)
    return PreparedPicture(digest.hexdigest(), processor(picture), layout, picture.size)


class Prompter:
    """Renders conversations for one assistant."""

    def __init__(self, assistant: Assistant) -> None:
        """Render with the template of `assistant`'s card."""
        self._assistant = assistant
        self._template = find_template(assistant.card.template)

    @property
    def stops(self) -> tuple[str, ...]:
        """The text that ends an answer, where the end is no special token."""
        return () if self._template.stop is None else (self._template.stop,)

    def of_answer(
        self, conversation: Conversation, answer: str, folder: Path
    ) -> tuple[PathPrompt, int]:
        """Render a conversation that ends with the user, and an answer behind it.

        Returns:
            Ids that end with the answer's, and how many those are, without the mark that would end it.

        Raises:
            PictureError: The size of a picture counts, but cannot be read.
            RecordError: The answer is empty.
        """
        encoded, tokens = self._answered(conversation, answer)
        return self._shown(encoded, folder), tokens

    def of_files(self, conversation: Conversation, folder: Path = Path()) -> PathPrompt:
        """Render a conversation that ends with the user; its picture paths start from `folder`.

        Raises:
            PictureError: The size of a picture counts, but cannot be read.
        """
        return self._shown(self._encoded(conversation), folder)

    def of_pictures(
        self, conversation: Conversation, pictures: Sequence[PreparedPicture]
    ) -> Prompt:
        """Render a conversation that ends with the user, with one prepared picture for each of its places.

        Raises:
            ValueError: There is not one for each.
        """
        return self._prompt(self._encoded(conversation), pictures)

    def of_answered_pictures(
        self, conversation: Conversation, answer: str, pictures: Sequence[PreparedPicture]
    ) -> tuple[Prompt, int]:
        """Render a conversation that ends with the user, an answer behind it, and one prepared picture for each place.

        Returns:
            A prompt whose ids end with the answer's, and how many those are, without the mark that would end it.

        Raises:
            RecordError: The answer is empty.
            ValueError: There is not one picture for each place.
        """
        encoded, tokens = self._answered(conversation, answer)
        return self._prompt(encoded, pictures), tokens

    def _prompt(self, encoded: Encoded, pictures: Sequence[PreparedPicture]) -> Prompt:
        """Put pictures at their places.

        Raises:
            ValueError: There is not one for each.
        """
        layouts = [picture.layout for picture in pictures]
        counts = self._assistant.image_tokens(layouts)
        wider = self._widened(encoded, layouts)  # refuses where the numbers differ
        ends = encoded.picture_ends(counts)
        starts = tuple(end - count for end, count in zip(ends, counts, strict=True))
        return Prompt(wider.ids, tuple(pictures), starts)

    def written(self, conversation: Conversation) -> str:
        """Spell a prompt as the model gets it, with `<image>` where a picture stands."""
        encoded = self._encoded(conversation)
        counts = [1] * len(encoded.picture_paths)
        pieces = stretches(encoded, self._assistant.tokenizer, counts)
        return "".join(IMAGE_MARK if piece.look == "picture" else piece.text for piece in pieces)

    def _answered(self, conversation: Conversation, answer: str) -> tuple[Encoded, int]:
        """Encode a conversation and an answer, and count the answer's tokens."""
        turns = (*conversation.turns, Turn("assistant", (answer,)))
        asked = len(list(self._template.render(conversation)))
        spans = list(self._template.render(replace(conversation, turns=turns)))[: asked + 1]
        encoded = encode(spans, self._assistant.tokenizer)
        learned = takewhile(lambda label: label != IGNORED, reversed(encoded.labels))
        return encoded, sum(1 for _ in learned)

    def _encoded(self, conversation: Conversation) -> Encoded:
        return encode(self._template.render(conversation), self._assistant.tokenizer)

    def _shown(self, encoded: Encoded, folder: Path) -> PathPrompt:
        """Look at how the pictures are shown whose paths start from `folder`."""
        paths = tuple(folder / path for path in encoded.picture_paths)
        layouts = self._assistant.layouts(paths)
        return PathPrompt(self._widened(encoded, layouts).ids, paths, layouts)

    def _widened(self, encoded: Encoded, layouts: Sequence[Layout]) -> Encoded:
        """Return it with as many image tokens as its pictures have."""
        counts = self._assistant.image_tokens(layouts)
        return encoded.with_image_tokens(counts, self._assistant.model.image_token_id)


def check_fit(ids: Sequence[int], sampling: Sampling, room: int | None) -> None:
    """Refuse what a model has no room for.

    Raises:
        UsageError: A prompt and its answer are longer than the context, `room`; None is no limit.
    """
    if room is not None and len(ids) + sampling.max_new_tokens > room:
        raise UsageError(
            f"the conversation is {len(ids)} tokens long and asks for up to {sampling.max_new_tokens} "
            f"more, but the model has room for {room}; start anew or ask for fewer"
        )
