"""Two models on ScienceQA together: the complement, a judge where they differ, and the most a choice can reach."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from caldera.cli import app
from caldera.errors import InputError, UsageError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.judging.judge import Judge
from caldera.evaluation.runs.ensemble import EnsembleConfig, evaluate_ensemble
from caldera.llm_client.client import RequestConfig
from caldera.progress import NoProgress
from tests.teacher_server import Answer, Script, TeacherServer, completion

Serve = Callable[[Script], TeacherServer]
TRUTH = "ABBAB"
FIRST = "ABABA"
"""Right on 0, 1, and wrong on 2, 3, 4."""

SECOND = ("The answer is A.", "The answer is A.", "I see no image.", "The answer is A.", "B")
"""Right on 0, 3 and 4, wrong on 1, and no answer to 2."""


def write(path: Path, content: object) -> Path:
    """Write JSON."""
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def order(tmp_path: Path) -> EnsembleConfig:
    """Five questions with two options each, and two models' answers."""
    questions = [
        {
            "id": str(number),
            "conversations": [
                {"from": "human", "value": f"Question number {number}?\nA. yes\nB. no"},
                {"from": "gpt", "value": letter},
            ],
        }
        for number, letter in enumerate(TRUTH)
    ]
    first = {
        str(number): f"Because. The answer is {letter}." for number, letter in enumerate(FIRST)
    }
    second = [{"question_id": str(number), "text": text} for number, text in enumerate(SECOND)]
    return EnsembleConfig(
        sources=Sources(questions=write(tmp_path / "questions.json", questions)),
        first=write(tmp_path / "first.json", {"acc": 40.0, "outputs": first}),
        second=write(tmp_path / "second.json", second),
        out=tmp_path / "out",
    )


def judge(url: str) -> Judge:
    """Name a judge."""
    sending = RequestConfig(temperature=0.0, max_repairs=0, retries=0, initial_backoff=0.001)
    return Judge(model="arbiter", base_url=url, key=SecretStr("sk-none"), request_config=sending)


def test_the_complement_takes_the_second_where_it_answers(order: EnsembleConfig) -> None:
    """Worked by hand: A A A(first's) A B against A B B A B; either is right on all but question 2."""
    figures = evaluate_ensemble(order, None, NoProgress())
    assert figures["first"]["accuracy"] == 40.0
    assert figures["second"]["accuracy"] == 60.0
    assert figures["second"]["parse_failures"] == 1
    assert figures["complement"]["accuracy"] == 60.0
    assert figures["complement"]["parse_failures"] == 0
    assert figures["either_right"] == 80.0
    assert figures["differ"] == 4


def test_the_judge_is_asked_where_the_two_differ_alone(serve: Serve, order: EnsembleConfig) -> None:
    """It sees question and both answers, the first model's as Assistant 1; its own answer counts."""
    server = serve(lambda _, __: completion("Both err or not. The answer is B."))
    figures = evaluate_ensemble(order, judge(server.url), NoProgress())
    assert server.count == figures["asked"] == 4
    assert figures["judge"]["accuracy"] == 80.0  # A B B B(wrong) B
    assert (figures["num_valid"], figures["num_invalid"], figures["valid"]) == (4, 0, True)
    prompts = "\n".join(body["messages"][-1]["content"] for body in server.bodies())
    assert "number 0" not in prompts
    assert "[Question]\nQuestion number 1?\nA. yes\nB. no" in prompts
    both = "[Assistant 1]\nBecause. The answer is B.\n\n[Assistant 2]\nThe answer is A.\n\n"
    assert both in prompts
    evaluate_ensemble(order, judge(server.url), NoProgress())
    assert server.count == 4


def test_without_a_letter_the_first_stands_and_is_counted(
    serve: Serve, order: EnsembleConfig
) -> None:
    """Not a guess: the judge's failure leaves the first model's answer, and makes the run invalid over one percent."""

    def script(request: dict[str, Any], _count: int) -> Answer:
        prompt = request["messages"][-1]["content"]
        return completion("I cannot tell." if "number 3" in prompt else "The answer is B.")

    figures = evaluate_ensemble(order, judge(serve(script).url), NoProgress())
    assert figures["judge"]["accuracy"] == 80.0
    assert (figures["num_invalid"], figures["errors"], figures["valid"]) == (
        1,
        {"no letter": 1},
        False,
    )
    assert order.out is not None
    assert json.loads((order.out / "letters.json").read_text())["3"] == "B"
    assert json.loads((order.out / "scores.json").read_text())["figures"] == figures


def test_a_letter_that_is_no_option_is_no_answer(serve: Serve, order: EnsembleConfig) -> None:
    """A judge that names option E of two has not answered."""
    figures = evaluate_ensemble(
        order, judge(serve(lambda _, __: completion("The answer is E.")).url), NoProgress()
    )
    assert figures["errors"] == {"no letter": 4}
    assert figures["judge"]["accuracy"] == 40.0


def test_files_that_do_not_fit_are_refused(order: EnsembleConfig, tmp_path: Path) -> None:
    """Missing answers are listed; a judge needs a folder."""
    short = write(tmp_path / "short.json", [{"question_id": "0", "text": "A"}])
    with pytest.raises(InputError, match="1, 2, 3, 4"):
        evaluate_ensemble(
            EnsembleConfig(sources=order.sources, first=order.first, second=short),
            None,
            NoProgress(),
        )
    with pytest.raises(UsageError, match="add --out FOLDER"):
        evaluate_ensemble(
            EnsembleConfig(sources=order.sources, first=order.first, second=order.second),
            judge("http://127.0.0.1:9/v1"),
            NoProgress(),
        )


def test_the_command_prints_what_is_measured(order: EnsembleConfig) -> None:
    """As a table for people and as JSON for programs."""
    words = [
        "evaluate",
        "ensemble",
        "scienceqa",
        "--answers",
        str(order.first),
        "--second",
        str(order.second),
    ]
    words += ["--questions", str(order.sources.questions)]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(result.stdout)["complement"]["accuracy"] == 60.0
    table = CliRunner().invoke(app, words)
    assert "either right 80.00, the two differ on 4" in table.stdout
    assert CliRunner().invoke(app, [*words[:2], "pope", *words[3:]]).exit_code == 2


def test_llavas_own_answers_are_the_first(third_party: Path, tmp_path: Path) -> None:
    """LLaVA-13B's official answers with a second model that always says B: the first alone has 90.898 by its texts."""
    folder = third_party / "scienceqa"
    first = folder / "test_sqa_llava_13b_v0.json"
    ids = json.loads(first.read_text())["outputs"]
    second = write(tmp_path / "second.json", dict.fromkeys(ids, "The answer is B."))
    sources = Sources(
        questions=folder / "llava_test_CQM-A.json", annotations=folder / "test_answers.csv"
    )
    figures = evaluate_ensemble(
        EnsembleConfig(sources=sources, first=first, second=second), None, NoProgress()
    )
    assert figures["first"]["accuracy"] == pytest.approx(90.898, abs=0.006)
    assert figures["complement"] == figures["second"]
    assert figures["first"]["accuracy"] < figures["either_right"] < 100
