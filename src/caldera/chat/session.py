"""Chat session: a conversation that grows by questions and streamed answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from caldera.conversation import Conversation, ImageRef, Turn, label_images
from caldera.errors import UsageError
from caldera.images.decoding import open_image
from caldera.inference.engine import Engine, Request
from caldera.inference.prompts import ProcessedImage
from caldera.inference.sampling import SamplingParams


class Session:
    """One conversation with a model; earlier turns come from the engine's prefix cache."""

    def __init__(self, engine: Engine, sampling: SamplingParams) -> None:
        """Start an empty conversation."""
        self._engine = engine
        self._sampling = sampling
        self._turns: tuple[Turn, ...] = ()
        self._past_images: list[ProcessedImage] = []
        """Images of the turns."""
        self._next_images: list[tuple[ImageRef, ProcessedImage]] = []
        """Images of the next question."""

    @property
    def conversation(self) -> Conversation:
        """The turns so far."""
        return Conversation("chat", self._turns)

    def add_image(self, image: Path | Image.Image) -> None:
        """Add an image to the next question.

        Args:
            image: A file, or a decoded image.

        Raises:
            ImageError: It cannot be used.
            UsageError: The question has too many images.
        """
        decoded = open_image(image) if isinstance(image, Path) else image.convert("RGB")
        reference = ImageRef(str(image) if isinstance(image, Path) else "an image")
        # Called for its error.
        label_images([*(earlier for earlier, _ in self._next_images), reference])
        self._next_images.append((reference, self._engine.prepare_image(decoded)))

    def reset(self) -> None:
        """Remove all turns and images."""
        self._turns = ()
        self._past_images = []
        self._next_images = []

    def build_request(self, question: str) -> Request:
        """Return the request to the engine for a question; raise UsageError if it is empty."""
        if not question.strip():
            raise UsageError("the question is empty; enter a question")
        conversation = Conversation("chat", (*self._turns, self._turn(question)))
        return Request(self._engine.build_prompt(conversation, self._images()), self._sampling)

    def ask(self, question: str) -> Iterator[str]:
        """Yield the answer; it and the question join the conversation when the answer ends or is stopped.

        Raises:
            UsageError: The question is empty, or the conversation is too long for the model.
            EngineError: The model failed.
        """
        request = self.build_request(question)
        turn = self._turn(question)
        images = self._images()
        stream = self._engine.submit(request)
        answer = ""
        try:
            for delta in stream:
                answer += delta.text
                if delta.text:
                    yield delta.text
        finally:
            stream.cancel()
            if answer.strip():
                self._turns = (*self._turns, turn, Turn("assistant", (answer.strip(),)))
                self._past_images, self._next_images = images, []

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()

    def _images(self) -> list[ProcessedImage]:
        return [*self._past_images, *(image for _, image in self._next_images)]

    def _turn(self, question: str) -> Turn:
        return user_turn(question, [reference for reference, _ in self._next_images])


def user_turn(question: str, images: Sequence[ImageRef]) -> Turn:
    """Return a turn with images before a question; several are labeled with letters, as in the training data."""
    match images:
        case []:
            return Turn("user", (question,))
        case [image]:
            return Turn("user", (image, f"\n{question}"))
        case _:
            return Turn("user", (*label_images(images), question))
