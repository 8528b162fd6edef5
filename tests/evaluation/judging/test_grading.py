"""MM-Vet's grading protocol: rows of the prompt, and files of grades."""

import json
from pathlib import Path

from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.mm_vet import MM_VET
from caldera.evaluation.judging.grading import GRADES
from caldera.evaluation.runs.judge_run import JudgeRunConfig, judge_answers
from caldera.progress import NoProgress
from tests.evaluation.judging.conftest import Serve, judge_at, prompt_of
from tests.teacher_server import completion


def test_the_digest_is_that_of_earlier_versions() -> None:
    """Journals of earlier versions are keyed by it, so no word of the prompt may change."""
    assert GRADES.digest == "3630cae813e9"


def test_a_judge_grades_mm_vet(serve: Serve, tmp_path: Path) -> None:
    """Question, correct answer and answer are one row; the grades in the official layout give the same scores."""
    questions, answers = tmp_path / "mm-vet.json", tmp_path / "answers.json"
    needed = {"a": ["ocr"], "b": ["ocr", "math"]}
    questions.write_text(json.dumps({
        name: {"imagename": "1.png", "question": f"What is {name}?", "answer": "1<OR>one", "capability": capability}
        for name, capability in needed.items()
    }))  # fmt: skip
    answers.write_text(json.dumps({"a": "one |\n of them", "b": "two"}))
    server = serve(
        lambda request, _: completion("1.0" if "What is a?" in prompt_of(request) else "0.2")
    )
    config = JudgeRunConfig(
        spec=MM_VET,
        sources=Sources(questions=questions),
        answers=answers,
        runs=2,
        out=tmp_path / "out",
    )
    metrics = judge_answers(config, judge_at(server.url), NoProgress())["figures"]
    assert (metrics["total"], metrics["capabilities"]) == (60.0, {"ocr": 60.0, "math": 20.0})
    assert server.count == 4
    assert any(
        "What is a? | 1<OR>one | one / of them |\n" in prompt_of(body) for body in server.bodies()
    )
    again = MM_VET.score_answer_files(
        Sources(questions=questions), tmp_path / "out/grades.json"
    ).metrics
    assert {name: again[name] for name in metrics} == metrics
