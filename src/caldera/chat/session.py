"""Chat session: a conversation that grows by questions and streamed answers."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from caldera.chat.image_inputs import FetchImage, ImageInput, decode_input
from caldera.conversation import LETTERS, Conversation, ImageRef, Turn, label_images
from caldera.errors import UsageError, shorten_value
from caldera.inference.engine import Engine, Request
from caldera.inference.prompts import ProcessedImage
from caldera.inference.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A question with the images before it, and its answer."""

    question: str
    images: tuple[tuple[ImageRef, ProcessedImage], ...]
    answer: str = ""

    def user_turn(self, *, labeled: bool) -> Turn:
        """Return the question as a turn."""
        return user_turn(
            self.question, [reference for reference, _ in self.images], labeled=labeled
        )


class Session:
    """One conversation with a model; earlier turns come from the engine's prefix cache."""

    def __init__(
        self, engine: Engine, sampling: SamplingParams, fetch_image: FetchImage | None = None
    ) -> None:
        """Start an empty conversation; `fetch_image` returns the content of an image's URL."""
        self._engine = engine
        self._sampling = sampling
        self._fetch_image = fetch_image
        self._exchanges: tuple[_Exchange, ...] = ()
        self._next_images: tuple[tuple[ImageRef, ProcessedImage], ...] = ()
        """Images of the next question."""

    @property
    def conversation(self) -> Conversation:
        """The turns so far."""
        return _conversation(self._exchanges, labeled=self._engine.labels_images)

    def add_image(self, image: ImageInput) -> None:
        """Add an image to the next question.

        Args:
            image: As `ChatModel` takes it, such as a path.

        Raises:
            ImageError: It cannot be used.
            UsageError: The question has too many images.
        """
        decoded = decode_input(image, self._fetch_image)
        reference = ImageRef(str(image) if isinstance(image, Path) else "an image")
        # Called for its error.
        label_images([*(earlier for earlier, _ in self._next_images), reference])
        self._next_images += ((reference, self._engine.prepare_image(decoded)),)

    def reset(self) -> None:
        """Remove all turns and images."""
        self._exchanges = ()
        self._next_images = ()

    def make_room(self, question: str) -> int:
        """Remove the oldest turns until a question and its answer fit into the model's context.

        Their images are kept: they are put before the oldest question that remains.

        Returns:
            The number of questions that were removed, each with its answer.

        Raises:
            UsageError: The question is empty, or does not fit even alone; nothing is removed.
        """
        exchanges = (*self._exchanges, self._next(question))
        while (num_missing := self._num_missing_tokens(exchanges)) > 0:
            oldest, *rest = exchanges
            images = (*oldest.images, *(rest[0].images if rest else ()))
            if not rest or len(images) > len(LETTERS):
                raise UsageError(
                    f"the question and {len(images)} images are {num_missing} tokens too long for the model's context "
                    f"of {self._engine.context_length} with an answer of up to {self._sampling.max_new_tokens}; "
                    "shorten the question, lower max_new_tokens, or remove the images (/reset)"
                )
            exchanges = (replace(rest[0], images=images), *rest[1:])
        num_removed = len(self._exchanges) + 1 - len(exchanges)
        *remaining, new = exchanges
        self._exchanges, self._next_images = tuple(remaining), new.images
        return num_removed

    def build_request(self, question: str) -> Request:
        """Return the request to the engine for a question; raise UsageError if it is empty."""
        return self._request((*self._exchanges, self._next(question)))

    def ask(self, question: str) -> Generator[str, None, None]:
        """Yield the answer; it and the question join the conversation when the answer ends or is stopped.

        Raises:
            UsageError: The question is empty, or the conversation is too long for the model.
            EngineError: The model failed.
        """
        exchange = self._next(question)
        stream = self._engine.submit(self._request((*self._exchanges, exchange)))
        answer = ""
        try:
            for delta in stream:
                answer += delta.text
                if delta.text:
                    yield delta.text
        finally:
            stream.cancel()
            if answer.strip():
                self._exchanges += (replace(exchange, answer=answer.strip()),)
                self._next_images = ()

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()

    def _next(self, question: str) -> _Exchange:
        """Return a question with its images, not answered yet; raise UsageError if it is empty."""
        if not isinstance(question, str):
            raise UsageError(f"a question must be a text, got {shorten_value(question)}")
        if not question.strip():
            raise UsageError("the question is empty; enter a question")
        return _Exchange(question, self._next_images)

    def _request(self, exchanges: Sequence[_Exchange]) -> Request:
        """Return the request for the answer to the last question."""
        images = [image for exchange in exchanges for _, image in exchange.images]
        conversation = _conversation(exchanges, labeled=self._engine.labels_images)
        return Request(self._engine.build_prompt(conversation, images), self._sampling)

    def _num_missing_tokens(self, exchanges: Sequence[_Exchange]) -> int:
        """Return by how many tokens the conversation and its longest answer exceed the model's context."""
        limit = self._engine.context_length
        if limit is None:
            return 0
        return len(self._request(exchanges).prompt.ids) + self._sampling.max_new_tokens - limit


def _conversation(exchanges: Sequence[_Exchange], *, labeled: bool) -> Conversation:
    """Return exchanges as turns; the last question may be without an answer."""
    turns: list[Turn] = []
    for exchange in exchanges:
        turns.append(exchange.user_turn(labeled=labeled))
        if exchange.answer:
            turns.append(Turn("assistant", (exchange.answer,)))
    return Conversation("chat", tuple(turns))


def user_turn(question: str, images: Sequence[ImageRef], *, labeled: bool = True) -> Turn:
    """Return a turn with images before a question; several are labeled with letters where the model's data had them."""
    if labeled and len(images) > 1:
        return Turn("user", (*label_images(images), question))
    return Turn("user", (*images, f"\n{question}") if images else (question,))
