"""A user's own questions for a judge: graded from 0 to 1, in one score with those that need none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import UsageError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.custom import CUSTOM
from caldera.evaluation.judging.judge import Judge
from caldera.evaluation.judging.verdicts import check_valid
from caldera.evaluation.runs.judge_run import JudgeRunConfig, judge_answers
from caldera.llm_client.client import RequestConfig
from caldera.progress import NoProgress
from tests.teacher_server import Answer, Script, TeacherServer, completion

LINES: list[dict[str, Any]] = [
    {"id": "why", "question": "Why is it wet?", "answer": ["rain", "a shower"], "match": "judge", "image": "a.jpg"},
    {"id": "who", "question": "Who is it?", "answer": "a clown", "match": "judge", "kind": "people"},
    {"id": "hue", "question": "Which colour?", "answer": "red"},
    {"id": "sign", "question": "What is written?", "answer": "exit", "match": "contains"},
]  # fmt: skip
ANSWERS = {"why": "It rained.", "who": "A man.", "hue": "Red.", "sign": "stop"}


def order(folder: Path, lines: list[dict[str, Any]]) -> JudgeRunConfig:
    """Write questions and answers."""
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    texts = {line["id"]: ANSWERS[line["id"]] for line in lines}
    (folder / "answers.json").write_text(json.dumps(texts))
    sources = Sources(questions=folder / "own.jsonl")
    return JudgeRunConfig(
        task=CUSTOM, sources=sources, answers=folder / "answers.json", out=folder / "judged"
    )


def judge(url: str) -> Judge:
    """Name a judge."""
    sending = RequestConfig(temperature=0.0, max_repairs=0, initial_backoff=0.001, retries=1)
    return Judge(model="j", base_url=url, request_config=sending)


def test_only_what_wants_a_judge_is_sent_to_one(
    serve: Callable[[Script], TeacherServer], tmp_path: Path
) -> None:
    """Grades 0.9 and 0.2 by a judge, 1 and 0 by words: accuracy is their mean; the judge sees all references."""

    def script(request: dict[str, Any], count: int) -> Answer:
        row = request["messages"][-1]["content"].strip().split("\n")[-3]
        return completion("0.9" if row == "Why is it wet? | rain<OR>a shower | It rained. |" else "0.2")  # fmt: skip

    server = serve(script)
    scores = judge_answers(order(tmp_path, LINES), judge(server.url), NoProgress())
    assert server.count == 2
    figures = scores["figures"]
    assert figures["accuracy"] == pytest.approx(52.5)
    assert (figures["question"], figures["people"]) == pytest.approx((190 / 3, 20), abs=0.05)
    assert (figures["questions"], figures["judged"], figures["num_valid"], figures["valid"]) == (4, 2, 2, True)  # fmt: skip
    lines = (tmp_path / "judged" / "verdicts.jsonl").read_text().splitlines()
    settled = {line["id"]: line["settled_verdicts"] for line in map(json.loads, lines)}
    assert settled == {"why": False, "who": False, "hue": True, "sign": True}
    again = judge_answers(order(tmp_path, LINES), judge(server.url), NoProgress())
    assert (again, server.count) == (scores, 2)


def test_a_judge_that_says_nothing_makes_the_run_invalid(
    serve: Callable[[Script], TeacherServer], tmp_path: Path
) -> None:
    """What needs no judge does not hide it: one of two judged answers has no grade, however many others are right."""
    replies = iter(("0.5", "fine"))
    server = serve(lambda request, count: completion(next(replies)))
    figures = judge_answers(order(tmp_path, LINES), judge(server.url), NoProgress())["figures"]
    assert (figures["num_valid"], figures["num_invalid"], figures["valid"]) == (1, 1, False)
    assert figures["accuracy"] == pytest.approx(50, abs=0.05), "the mean of 0.5, 1 and 0"
    with pytest.raises(Exception, match="1 of 2 items have no usable verdict"):
        check_valid(figures)


def test_questions_without_a_judge_are_not_judged(tmp_path: Path) -> None:
    """The message says which command scores them."""
    with pytest.raises(UsageError, match=r"no question has match judge.*evaluate score custom"):
        judge_answers(order(tmp_path, LINES[2:]), judge("http://127.0.0.1:9"), NoProgress())
