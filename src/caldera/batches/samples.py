"""Conversations encoded as training samples, with every error found before training starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from caldera.conversation import Conversation
from caldera.errors import ConversationError, ImageError, InputError
from caldera.files.atomic import file_exists
from caldera.files.skipped_items import SkippedItems
from caldera.images.anyres import TileLayout
from caldera.templates.encoding import encode
from caldera.templates.template import Template


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded conversation."""

    id: str
    ids: tuple[int, ...]
    """Token ids; an image is a run of image tokens."""

    labels: tuple[int, ...]
    """The token id where the token is supervised, else IGNORE_INDEX."""

    images: tuple[Path, ...]
    """Image files, in the order of their tokens."""

    layouts: tuple[TileLayout, ...]
    """Tile layout of each image."""

    image_ends: tuple[int, ...]
    """Position after the last token of each image."""

    @property
    def length(self) -> int:
        """Tokens, those of images included."""
        return len(self.ids)

    def num_images_before(self, tokens: int) -> int:
        """Return how many images are completely in the first `tokens` tokens."""
        return sum(end <= tokens for end in self.image_ends)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleBuilder:
    """Encoder of conversations for one model and template."""

    tokenizer: PreTrainedTokenizerFast
    template: Template
    image_token_id: int
    layouts: Callable[[Sequence[Path]], tuple[TileLayout, ...]]
    """Returns the tile layouts of all images of a conversation."""

    count_tokens: Callable[[TileLayout], int]
    """Returns the number of image tokens of a tile layout."""

    max_length: int
    """Tokens of a sample, at most, those of images included; a longer one is an error, never truncated."""

    context_length: int | None = None
    """Positions of the language model, where it has a limit; the smaller limit counts."""

    def build(self, conversation: Conversation, images: Path) -> Sample:
        """Encode one conversation whose image paths are relative to the folder `images`.

        Raises:
            InputError: It is too long, has no supervised token, or an image file is missing.
        """
        encoded = encode(self.template.for_training.render(conversation), self.tokenizer)
        paths = tuple(images / path for path in encoded.image_paths)
        layouts = self._layouts(paths, conversation.id)
        counts = [self.count_tokens(layout) for layout in layouts]
        ends = encoded.image_end_positions(counts)
        encoded = encoded.with_image_tokens(counts, self.image_token_id)
        limit, advice = self._max_length()
        if len(encoded.ids) > limit:
            raise ConversationError(
                f"record {conversation.id!r} is {len(encoded.ids)} tokens long ({sum(counts)} of images), over the "
                f"limit of {limit}{advice}"
            )
        if encoded.num_supervised == 0:
            raise ConversationError(
                f"record {conversation.id!r} has no supervised token; give it an answer"
            )
        return Sample(conversation.id, encoded.ids, encoded.labels, paths, layouts, ends)

    def _layouts(self, paths: Sequence[Path], record: str) -> tuple[TileLayout, ...]:
        """Return the tile layout of each image of a record."""
        for path in paths:
            if not file_exists(path):
                raise ImageError(f"record {record!r}: {path} does not exist; check --images")
        try:
            return self.layouts(paths)
        except ImageError as error:
            raise ImageError(f"record {record!r}: {error}") from error

    def _max_length(self) -> tuple[int, str]:
        """Return the limit in tokens, and advice about longer samples."""
        if self.context_length is not None and self.context_length < self.max_length:
            advice = " that the language model has positions for; shorten it or use another model"
            return self.context_length, advice
        return self.max_length, "; shorten it or raise max_length"

    def build_all(
        self,
        conversations: Sequence[Conversation],
        images: Path,
        skipped: SkippedItems,
        advance: Callable[[], None] = lambda: None,
    ) -> list[Sample]:
        """Encode all conversations, except those that `skipped` accepts.

        Raises:
            InputError: A record is invalid and may not be skipped, or none is valid.
        """
        samples = []
        total = len(conversations) + len(skipped.items)
        for conversation in conversations:
            try:
                samples.append(self.build(conversation, images))
            except InputError as error:
                location = conversation.location or f"record {conversation.id!r}"
                if conversation.location:
                    error = type(error)(f"{location}: {error}")
                skipped.add_or_raise(location, error)
            advance()
        skipped.raise_if_over_limit(total)
        if not samples:
            raise ConversationError("no record is left to train on")
        return samples
