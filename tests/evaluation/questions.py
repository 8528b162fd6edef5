"""Small benchmarks for tests of runs: questions about the images of the fixture `photos`, and a server that answers."""

from typing import Any

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.evaluation.annotation_questions import ExactMatch
from caldera.evaluation.benchmark import Item
from tests.teacher_server import Answer, completion

COLORS = ("red", "blue", "green")


def questions(count: int, *, tail: str = "", choices: tuple[str, ...] = ()) -> ExactMatch:
    """Return `count` questions about seven images, of two categories and two slices, of varying length."""
    return ExactMatch(
        "own", tuple(question(number, tail=tail, choices=choices) for number in range(count))
    )


def question(number: int, *, tail: str = "", choices: tuple[str, ...] = ()) -> Item:
    """Return one question; every third has no image."""
    words = f"\nwhat is there in image {number}{' and where' * (number % 5)}?{tail}"
    parts = (words,) if number % 3 == 2 else (ImageRef(f"{number % 7}.png"), words)
    return Item(
        f"q{number}",
        "colour" if number % 2 else "shape",
        "what",
        Conversation(f"q{number}", (Turn("user", parts),)),
        ("B",) if choices else (COLORS[number % 3],),
        choices,
        ("grade: 1-6" if number < 4 else "grade: 7-12",),
    )


def number_in(request: dict[str, Any]) -> int:
    """Return the number of a request's question."""
    content = request["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return int("".join(character for character in text if character.isdigit()))


def right(request: dict[str, Any], count: int) -> Answer:
    """Answer every question correctly, except number 5."""
    number = number_in(request)
    return completion("nothing" if number == 5 else COLORS[number % 3])
