"""Fixtures for judging: loopback connections, judges, and a small benchmark in LLaVA-Bench's layout."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.llava_bench import LLAVA_BENCH
from caldera.evaluation.judging.judge import Judge
from caldera.evaluation.runs.judge_run import JudgeRunConfig, judge_answers
from caldera.llm_client.client import RequestConfig
from caldera.progress import NoProgress
from tests.teacher_server import Answer, Script, TeacherServer, completion

KEY = "sk-judge-0123456789abcdef"
FAST = RequestConfig(
    temperature=0.0,
    max_repairs=0,
    concurrency=3,
    initial_backoff=0.001,
    retries=1,
    max_consecutive_failures=5,
)


@pytest.fixture(autouse=True)
def _loopback(loopback: None) -> None:
    """Allow connections to this machine only."""


@dataclass(frozen=True)
class Bench:
    """Files of a benchmark of `count` questions, one image each."""

    folder: Path
    count: int

    @property
    def answers(self) -> Path:
        """The answers to judge."""
        return self.folder / "answers.jsonl"

    def write_answers(self, texts: Sequence[str]) -> None:
        """Write the answers."""
        self.write(
            "answers",
            [{"question_id": number, "text": text} for number, text in enumerate(texts)],
        )

    def write(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        """Write JSON lines."""
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (self.folder / f"{name}.jsonl").write_text(text)


MakeBench = Callable[[int], Bench]
Serve = Callable[[Script], TeacherServer]


@pytest.fixture
def make_bench(tmp_path: Path) -> MakeBench:
    """Write a benchmark; question 7 is about image 7, its reference is 'reference 7', its answer 'answer 7'."""

    def make(count: int) -> Bench:
        folder = tmp_path / f"bench{count}"
        folder.mkdir()
        bench = Bench(folder, count)
        numbers = range(count)
        categories = ("conv", "detail", "complex")
        bench.write(
            "questions",
            [
                {
                    "question_id": number,
                    "image": f"{number}.jpg",
                    "text": f"What is in image {number}?",
                    "category": categories[number % 3],
                }
                for number in numbers
            ],
        )
        bench.write(
            "references",
            [{"question_id": number, "text": f"reference {number}"} for number in numbers],
        )
        bench.write(
            "context",
            [
                {"image": f"{number}.jpg", "caption": f"Thing {number} on a table."}
                for number in numbers
            ],
        )
        bench.write_answers([f"answer {number}" for number in numbers])
        return bench

    return make


def prompt_of(request: dict[str, Any]) -> str:
    """Return the judge's prompt."""
    text: str = request["messages"][-1]["content"]
    return text


def answer_number(request: dict[str, Any]) -> int:
    """Return the number of the judged answer."""
    match = re.search(r"answer (\d+)", prompt_of(request))
    assert match is not None
    return int(match[1])


def fair(request: dict[str, Any], _count: int = 0) -> Answer:
    """Give a reference 8 and an answer 4, in any order."""
    text = prompt_of(request)
    reference_first = text.index("reference ") < text.index("answer ")
    reply = "8 4\nThe first is better." if reference_first else "4 8\nThe second is better."
    return completion(reply)


def judge_at(url: str, request_config: RequestConfig = FAST, **fields: Any) -> Judge:  # noqa: ANN401 - of Judge
    """Return the judge at a server."""
    defaults: dict[str, Any] = {"model": "little-judge", "base_url": url, "key": SecretStr(KEY)}
    return Judge(request_config=request_config, **{**defaults, **fields})


def run_judge(
    bench: Bench, judge: Judge, protocol: str = "paper", out: str = "out", runs: int = 1
) -> dict[str, Any]:
    """Judge a benchmark's answers."""
    config = JudgeRunConfig(
        spec=LLAVA_BENCH,
        sources=Sources(
            questions=bench.folder / "questions.jsonl",
            annotations=bench.folder / "references.jsonl",
            captions=bench.folder / "context.jsonl",
        ),
        answers=bench.answers,
        protocol=protocol,
        runs=runs,
        out=bench.folder / out,
    )
    return judge_answers(config, judge, NoProgress())
