"""Conversations in, samples ready for a batch out: encoded, measured, and every fault found before training starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from caldera.conversation import Conversation
from caldera.errors import ConversationError, ImageError, InputError
from caldera.files.atomic import file_exists
from caldera.files.skipped import SkippedItems
from caldera.images.anyres import TileLayout
from caldera.templates.encoding import encode
from caldera.templates.template import Template


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation, ready to be laid into a batch."""

    id: str
    ids: tuple[int, ...]
    """Token ids; an image stands as its image tokens."""

    labels: tuple[int, ...]
    """The id where the loss is taken, else IGNORED."""

    images: tuple[Path, ...]
    """Files, in the order of their image tokens."""

    layouts: tuple[TileLayout, ...]
    """How each of them is shown."""

    image_ends: tuple[int, ...]
    """The place behind the last token of each of them."""

    @property
    def length(self) -> int:
        """Tokens, those of images included."""
        return len(self.ids)

    def num_images_before(self, tokens: int) -> int:
        """Return how many images lie wholly within its first tokens."""
        return sum(end <= tokens for end in self.image_ends)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleBuilder:
    """Turns conversations into samples for one model and template."""

    tokenizer: PreTrainedTokenizerFast
    template: Template
    image_token_id: int
    layout: Callable[[Path], TileLayout]
    """How an image is shown."""

    count_tokens: Callable[[TileLayout], int]
    """Tokens that an image becomes, by how it is shown."""

    max_length: int
    """Longest sample in tokens, those of images included; longer ones are faults, never cut."""

    context_length: int | None = None
    """Tokens that the language model has positions for, where it has a limit; the smaller limit counts."""

    def build(self, conversation: Conversation, images: Path) -> Sample:
        """Encode one conversation whose image paths start from the folder `images`.

        Raises:
            InputError: It is too long, has nothing to learn, or an image file is missing.
        """
        encoded = encode(self.template.render(conversation), self.tokenizer)
        paths = tuple(images / path for path in encoded.image_paths)
        layouts = self._layouts(paths, conversation.id)
        counts = [self.count_tokens(layout) for layout in layouts]
        ends = encoded.image_end_positions(counts)
        encoded = encoded.with_image_tokens(counts, self.image_token_id)
        limit, cure = self._max_length()
        if len(encoded.ids) > limit:
            raise ConversationError(
                f"record {conversation.id!r} is {len(encoded.ids)} tokens long ({sum(counts)} of images), over the "
                f"limit of {limit}{cure}"
            )
        if encoded.num_supervised == 0:
            raise ConversationError(
                f"record {conversation.id!r} has nothing to learn; give it an answer"
            )
        return Sample(conversation.id, encoded.ids, encoded.labels, paths, layouts, ends)

    def _layouts(self, paths: Sequence[Path], record: str) -> tuple[TileLayout, ...]:
        """Return how each image of a record is shown.

        Raises:
            ImageError: A file is missing or, where its size counts, cannot be used.
        """
        for path in paths:
            if not file_exists(path):
                raise ImageError(f"record {record!r}: {path} does not exist; check --images")
        try:
            return tuple(self.layout(path) for path in paths)
        except ImageError as fault:
            raise ImageError(f"record {record!r}: {fault}") from fault

    def _max_length(self) -> tuple[int, str]:
        """Return the longest sample in tokens, and what to do about a longer one."""
        if self.context_length is not None and self.context_length < self.max_length:
            cure = " that the language model has positions for; shorten it or take another model"
            return self.context_length, cure
        return self.max_length, "; shorten it or raise max_length"

    def build_all(
        self,
        conversations: Sequence[Conversation],
        images: Path,
        skips: SkippedItems,
        tick: Callable[[], None] = lambda: None,
    ) -> list[Sample]:
        """Encode all conversations, leaving out what `skips` lets go.

        Raises:
            InputError: A record is bad and may not be left out, or none is good.
        """
        samples = []
        for conversation in conversations:
            try:
                samples.append(self.build(conversation, images))
            except InputError as fault:
                skips.add_or_raise(f"record {conversation.id!r}", fault)
            tick()
        skips.raise_if_over_limit(len(conversations))
        if not samples:
            raise ConversationError("no record is left to train on")
        return samples
