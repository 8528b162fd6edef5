"""What was said so far and the next question in, the answer out, piece by piece."""

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
    """One conversation with an assistant; what was computed for earlier turns is not computed again."""

    def __init__(self, engine: Engine, sampling: SamplingParams) -> None:
        """Talk through `engine`."""
        self._engine = engine
        self._sampling = sampling
        self._turns: tuple[Turn, ...] = ()
        self._past_images: list[ProcessedImage] = []
        """Images of the turns."""
        self._next_images: list[tuple[ImageRef, ProcessedImage]] = []
        """Images of the next question."""

    @property
    def conversation(self) -> Conversation:
        """What was said so far."""
        return Conversation("chat", self._turns)

    def add_image(self, image: Path | Image.Image) -> None:
        """Put an image before the next question.

        Args:
            image: A file, or a decoded image.

        Raises:
            ImageError: It cannot be used.
            UsageError: There are more before it than one question can name.
        """
        opened = open_image(image) if isinstance(image, Path) else image.convert("RGB")
        name = str(image) if isinstance(image, Path) else "an image"
        label_images(
            [*(shown for shown, _ in self._next_images), ImageRef(name)]
        )  # refuses too many
        self._next_images.append((ImageRef(name), self._engine.prepare_image(opened)))

    def reset(self) -> None:
        """Forget everything."""
        self._turns = ()
        self._past_images = []
        self._next_images = []

    def build_request(self, text: str) -> Request:
        """Return what asks `text` after what was said so far.

        Raises:
            UsageError: The question is empty.
        """
        if not text.strip():
            raise UsageError("the question is empty; ask something")
        conversation = Conversation("chat", (*self._turns, self._turn(text)))
        return Request(self._engine.build_prompt(conversation, self._images()), self._sampling)

    def ask(self, text: str) -> Iterator[str]:
        """Ask `text` and yield the answer; both become part of the conversation when the answer ends or is stopped.

        Raises:
            UsageError: The question is empty, or the conversation has grown too long for the model.
            EngineError: The model could not go on.
        """
        request = self.build_request(text)
        asked = self._turn(text)
        images = self._images()
        answering = self._engine.submit(request)
        answer = ""
        try:
            for piece in answering:
                answer += piece.text
                if piece.text:
                    yield piece.text
        finally:
            answering.cancel()
            if answer.strip():
                self._turns = (*self._turns, asked, Turn("assistant", (answer.strip(),)))
                self._past_images, self._next_images = images, []

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def _images(self) -> list[ProcessedImage]:
        """Return the images of all turns and of the next question."""
        return [*self._past_images, *(prepared for _, prepared in self._next_images)]

    def _turn(self, text: str) -> Turn:
        return user_turn(text, [image for image, _ in self._next_images])


def user_turn(text: str, images: Sequence[ImageRef]) -> Turn:
    """Put images before a question; several are called by letters, as in the training data.

    Raises:
        UsageError: There are more than can be named.
    """
    match images:
        case []:
            return Turn("user", (text,))
        case [image]:
            return Turn("user", (image, f"\n{text}"))
        case _:
            return Turn("user", (*label_images(images), text))
