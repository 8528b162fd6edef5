"""Small benchmarks for tests of runs: questions about the images of the fixture `photos`, and who answers them."""

from typing import Any

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.evaluation.annotation_questions import ExactMatch
from caldera.evaluation.benchmark import Item
from tests.teacher_server import Answer, completion

COLORS = ("red", "blue", "green")


def questions(count: int, *, tail: str = "", choices: tuple[str, ...] = ()) -> ExactMatch:
    """Return so many questions about seven images, of two kinds and two slices, of growing length."""
    return ExactMatch("own", tuple(question(at, tail=tail, choices=choices) for at in range(count)))


def question(at: int, *, tail: str = "", choices: tuple[str, ...] = ()) -> Item:
    """Return one question; every third is about no image."""
    words = f"\nwhat is there in image {at}{' and where' * (at % 5)}?{tail}"
    parts = (words,) if at % 3 == 2 else (ImageRef(f"{at % 7}.png"), words)
    return Item(
        f"q{at}",
        "colour" if at % 2 else "shape",
        "what",
        Conversation(f"q{at}", (Turn("user", parts),)),
        ("B",) if choices else (COLORS[at % 3],),
        choices,
        ("grade: 1-6" if at < 4 else "grade: 7-12",),
    )


def number_in(request: dict[str, Any]) -> int:
    """Return which question a request asks."""
    content = request["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return int("".join(sign for sign in text if sign.isdigit()))


def right(request: dict[str, Any], count: int) -> Answer:
    """Answer every question rightly, but number 5."""
    at = number_in(request)
    return completion("nothing" if at == 5 else COLORS[at % 3])
