"""Custom questions: rules of comparison worked by hand, invalid lines, and answers that a judge grades."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError, UsageError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.custom import CUSTOM
from caldera.evaluation.judging.judge import Judge
from caldera.evaluation.judging.verdicts import check_valid
from caldera.evaluation.runs.judge_run import JudgeRunConfig, judge_answers
from caldera.llm_client.client import RequestConfig
from caldera.progress import NoProgress
from tests.evaluation.benchmarks.official import score_texts
from tests.teacher_server import Answer, Script, TeacherServer, completion

LINES = [
    {"id": "a", "question": "Which colour?", "answer": ["red", "scarlet"], "image": "a.jpg"},
    {"question": "What does it say?", "answer": "Exit", "match": "contains", "kind": "reading"},
    {"id": 5, "question": "Which?", "answer": "dog", "choices": ["cat", "dog"], "image": ["a.jpg", "b.jpg"]},
    {"id": 6, "question": "Which?", "answer": "A", "choices": ["cat", "dog"], "kind": "reading"},
]  # fmt: skip


def test_answers_are_compared_by_the_rule_of_each_question(tmp_path: Path) -> None:
    """Exact words, contained whole words, and choices by letter or text."""
    questions = tmp_path / "custom.jsonl"
    questions.write_text("\n".join(map(json.dumps, LINES)))
    correct = {"a": "Scarlet.", "1": "It says EXIT here", "5": "B", "6": "cat"}
    assert score_texts(CUSTOM, tmp_path, questions, correct).metrics["accuracy"] == 100.0
    wrong = {"a": "red and blue", "1": "exited", "5": "A", "6": "A or B"}
    wrong_score = score_texts(CUSTOM, tmp_path, questions, wrong)
    assert wrong_score.metrics == {
        "accuracy": 0.0, "question": 0.0, "reading": 0.0, "questions": 4, "parse_failures": 1,
    }  # fmt: skip
    items = CUSTOM.load(Sources(questions=questions)).items
    assert items[2].conversation.images == ("a.jpg", "b.jpg")
    assert items[1].conversation.turns[0].text == "What does it say?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "?"}, "answer: field required"),
        ({"question": "?", "answer": "x", "chocies": []}, "chocies: extra inputs"),
        ({"question": "?", "answer": "x", "match": "fuzzy"}, "match: input should be 'exact'"),
        ({"question": "?", "answer": "x", "match": "choice"}, "match 'choice' and 0 choices do not go together"),
        ({"question": "?", "answer": "x", "choices": ["a", "b"]}, "the answer 'x' is none of the 2 choices"),
        ({"question": "?", "answer": "!", "match": "contains"}, "an answer without words"),
    ],
)  # fmt: skip
def test_invalid_lines_are_named(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    """The message has the location and the fault."""
    (tmp_path / "custom.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=rf"custom\.jsonl\[0\]: {message}"):
        CUSTOM.load(Sources(questions=tmp_path / "custom.jsonl"))


def test_questions_for_a_judge_are_not_scored_without_one(tmp_path: Path) -> None:
    """The error names the first of them and the command that judges it."""
    (tmp_path / "custom.jsonl").write_text(json.dumps({"question": "?", "answer": "x", "match": "judge"}))  # fmt: skip
    with pytest.raises(UsageError, match="1 questions are compared by a judge, the first '0'"):
        score_texts(CUSTOM, tmp_path, tmp_path / "custom.jsonl", {"0": "x"})


JUDGED_LINES: list[dict[str, Any]] = [
    {"id": "why", "question": "Why is it wet?", "answer": ["rain", "a shower"], "match": "judge", "image": "a.jpg"},
    {"id": "who", "question": "Who is it?", "answer": "a clown", "match": "judge", "kind": "people"},
    {"id": "hue", "question": "Which colour?", "answer": "red"},
    {"id": "sign", "question": "What is written?", "answer": "exit", "match": "contains"},
]  # fmt: skip
JUDGED_ANSWERS = {"why": "It rained.", "who": "A man.", "hue": "Red.", "sign": "stop"}


def judge_run(folder: Path, lines: list[dict[str, Any]]) -> JudgeRunConfig:
    """Write questions and answers, and return the run's config."""
    (folder / "custom.jsonl").write_text("\n".join(map(json.dumps, lines)))
    texts = {line["id"]: JUDGED_ANSWERS[line["id"]] for line in lines}
    (folder / "answers.json").write_text(json.dumps(texts))
    sources = Sources(questions=folder / "custom.jsonl")
    return JudgeRunConfig(
        spec=CUSTOM, sources=sources, answers=folder / "answers.json", out=folder / "judged"
    )


def judge_at(url: str) -> Judge:
    """Return the judge at a server."""
    config = RequestConfig(temperature=0.0, max_repairs=0, initial_backoff=0.001, retries=1)
    return Judge(model="j", base_url=url, request_config=config)


def test_only_questions_for_a_judge_are_sent_to_it(
    serve: Callable[[Script], TeacherServer], tmp_path: Path
) -> None:
    """Grades 0.9 and 0.2 by a judge, 1 and 0 by words: accuracy is their mean; the judge gets all references."""

    def script(request: dict[str, Any], count: int) -> Answer:
        row = request["messages"][-1]["content"].strip().split("\n")[-3]
        return completion("0.9" if row == "Why is it wet? | rain<OR>a shower | It rained. |" else "0.2")  # fmt: skip

    server = serve(script)
    scores = judge_answers(judge_run(tmp_path, JUDGED_LINES), judge_at(server.url), NoProgress())
    assert server.count == 2
    metrics = scores["figures"]
    assert metrics["accuracy"] == pytest.approx(52.5)
    assert (metrics["question"], metrics["people"]) == pytest.approx((190 / 3, 20), abs=0.05)
    assert (metrics["questions"], metrics["judged"]) == (4, 2)
    assert (metrics["num_valid"], metrics["valid"]) == (2, True)
    lines = (tmp_path / "judged" / "verdicts.jsonl").read_text().splitlines()
    without_judge = {line["id"]: line["without_judge"] for line in map(json.loads, lines)}
    assert without_judge == {"why": False, "who": False, "hue": True, "sign": True}
    again = judge_answers(judge_run(tmp_path, JUDGED_LINES), judge_at(server.url), NoProgress())
    assert (again, server.count) == (scores, 2)


def test_unparsed_grades_make_the_run_invalid(
    serve: Callable[[Script], TeacherServer], tmp_path: Path
) -> None:
    """Answers without a judge do not count for validity: one of two judged answers has no grade."""
    replies = iter(("0.5", "fine"))
    server = serve(lambda request, count: completion(next(replies)))
    metrics = judge_answers(judge_run(tmp_path, JUDGED_LINES), judge_at(server.url), NoProgress())[
        "figures"
    ]
    assert (metrics["num_valid"], metrics["num_invalid"], metrics["valid"]) == (1, 1, False)
    assert metrics["accuracy"] == pytest.approx(50, abs=0.05), "the mean of 0.5, 1 and 0"
    with pytest.raises(Exception, match="1 of 2 items have no usable verdict"):
        check_valid(metrics)


def test_a_file_without_questions_for_a_judge_is_rejected(tmp_path: Path) -> None:
    """The message names the command that scores them."""
    with pytest.raises(UsageError, match=r"no question has match judge.*evaluate score custom"):
        judge_answers(
            judge_run(tmp_path, JUDGED_LINES[2:]), judge_at("http://127.0.0.1:9"), NoProgress()
        )
