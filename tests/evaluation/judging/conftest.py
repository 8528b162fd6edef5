"""Judges on this machine, and a small benchmark in LLaVA-Bench's layout for them to read."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _loopback(loopback: None) -> None:
    """Let these tests reach this machine, and no other."""


@dataclass(frozen=True)
class Bench:
    """Files of a benchmark of so many questions, one image each."""

    folder: Path
    count: int

    @property
    def answers(self) -> Path:
        """The answers to be judged."""
        return self.folder / "answers.jsonl"

    def answer(self, texts: Sequence[str]) -> None:
        """Write the answers."""
        self._write("answers", [{"question_id": at, "text": text} for at, text in enumerate(texts)])

    def _write(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (self.folder / f"{name}.jsonl").write_text(text)


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[int], Bench]:
    """Write a benchmark; question 7 is about image 7, its reference says 'reference 7', its answer 'answer 7'."""

    def made(count: int) -> Bench:
        folder = tmp_path / f"bench{count}"
        folder.mkdir()
        made = Bench(folder, count)
        kinds = ("conv", "detail", "complex")
        questions = [
            {
                "question_id": at,
                "image": f"{at}.jpg",
                "text": f"What is in image {at}?",
                "category": kinds[at % 3],
            }
            for at in range(count)
        ]
        made._write("questions", questions)
        made._write(
            "truth", [{"question_id": at, "text": f"reference {at}"} for at in range(count)]
        )
        contexts = [
            {"image": f"{at}.jpg", "caption": f"Thing {at} on a table."} for at in range(count)
        ]
        made._write("context", contexts)
        made.answer([f"answer {at}" for at in range(count)])
        return made

    return made
