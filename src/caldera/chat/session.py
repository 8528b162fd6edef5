"""What was said so far and the next question in, the answer out, piece by piece."""

from collections.abc import Iterator
from pathlib import Path

from caldera.conversation import Conversation, Picture, Turn
from caldera.errors import UsageError
from caldera.inference.generate import Generator
from caldera.inference.sampling import Sampling
from caldera.instructions.writing import named


class Session:
    """One conversation with an assistant."""

    def __init__(self, generator: Generator, sampling: Sampling) -> None:
        """Talk through `generator`."""
        self._generator = generator
        self._sampling = sampling
        self._turns: tuple[Turn, ...] = ()
        self._shown: list[Picture] = []

    @property
    def conversation(self) -> Conversation:
        """What was said so far."""
        return Conversation("chat", self._turns)

    def show(self, picture: Path) -> None:
        """Put a picture before the next question.

        Raises:
            UsageError: There are more before it than one question can name.
        """
        shown = [*self._shown, Picture(str(picture))]
        named(shown)
        self._shown = shown

    def reset(self) -> None:
        """Forget everything."""
        self._turns = ()
        self._shown = []

    def say(self, text: str) -> Iterator[str]:
        """Ask `text` and yield the answer; both become part of the conversation when the answer ends or is stopped.

        Raises:
            UsageError: The question is empty, or the conversation has grown too long for the model.
        """
        if not text.strip():
            raise UsageError("the question is empty; ask something")
        asked = Turn("user", self._parts(text))
        prompt = self._generator.prompt(Conversation("chat", (*self._turns, asked)))
        answer = ""
        try:
            for piece in self._generator.stream(prompt, self._sampling):
                answer += piece
                yield piece
        finally:
            if answer.strip():
                self._turns = (*self._turns, asked, Turn("assistant", (answer.strip(),)))
                self._shown = []

    def _parts(self, text: str) -> tuple[str | Picture, ...]:
        """Put the shown pictures before a question; several are called by letters, as in the training data."""
        match self._shown:
            case []:
                return (text,)
            case [picture]:
                return (picture, f"\n{text}")
            case pictures:
                return (*named(pictures), text)
