"""MMBench: accuracy over rotations, worked by hand, and prompts in English and Chinese."""

from pathlib import Path

import pytest

from caldera.errors import InputError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.mmbench import MMBENCH, MMBENCH_CN
from tests.evaluation.benchmarks.official import score_texts


@pytest.fixture
def mmbench(tmp_path: Path) -> Path:
    """Two questions: one of three choices in three rows, one of two choices in two rows."""
    rows = [
        "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\tl2-category",
        "7\tWhich?\tLook.\tred\tgreen\tblue\t\tB\tcolor\tperception",
        "1000007\tWhich?\tLook.\tblue\tred\tgreen\tnan\tC\tcolor\tperception",
        "2000007\tWhich?\tLook.\tgreen\tblue\tred\tnan\tA\tcolor\tperception",
        "9\tIs it?\tnan\tyes\tno\t\t\tA\tlogic\treasoning",
        "1000009\tIs it?\tnan\tno\tyes\t\t\tB\tlogic\treasoning",
    ]
    (tmp_path / "dev.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path / "dev.tsv"


def test_a_question_counts_if_all_its_rotations_are_correct(mmbench: Path, tmp_path: Path) -> None:
    """A model that always answers A is correct in one first row of two, and in no question."""
    answers = {
        "7": "B",
        "1000007": "C. green",
        "2000007": "A",
        "9": "A",
        "1000009": "The answer is B.",
    }
    metrics = score_texts(MMBENCH, tmp_path, mmbench, answers).metrics
    assert metrics == {
        "accuracy": 100.0, "vanilla": 100.0, "color": 100.0, "perception": 100.0, "logic": 100.0, "reasoning": 100.0,
        "questions": 2, "rows": 5, "parse_failures": 0,
    }  # fmt: skip
    always = score_texts(MMBENCH, tmp_path, mmbench, dict.fromkeys(answers, "A"))
    assert (always.metrics["accuracy"], always.metrics["vanilla"]) == (0.0, 50.0)
    assert always.item_scores == {"7": 0.0, "9": 0.0}
    unparsed = score_texts(MMBENCH_CN, tmp_path, mmbench, answers | {"7": "B and C", "9": "D"})
    assert (unparsed.metrics["accuracy"], unparsed.metrics["parse_failures"]) == (0.0, 2)


def test_answers_may_be_the_table_for_submission(mmbench: Path, tmp_path: Path) -> None:
    """The table has index and prediction."""
    table = "index\tprediction\n7\tB\n1000007\tC\n2000007\tA\n9\tA\n1000009\tA\n"
    (tmp_path / "submission.tsv").write_text(table)
    metrics = MMBENCH.score_answer_files(
        Sources(questions=mmbench), tmp_path / "submission.tsv"
    ).metrics
    assert (metrics["accuracy"], metrics["vanilla"]) == (50.0, 100.0)
    (tmp_path / "submission.tsv").write_text(table.replace("9\tA\n1000009\tA\n", "9\tA\n"))
    with pytest.raises(InputError, match="1 of 5 items have no answer: 1000009"):
        MMBENCH.score_answer_files(Sources(questions=mmbench), tmp_path / "submission.tsv")


def test_missing_rotations_are_unknown_without_questions(mmbench: Path, tmp_path: Path) -> None:
    """Answers that repeat the questions are scored, and the report says what cannot be checked."""
    heading, *rows = mmbench.read_text().splitlines()
    lines = [f"{heading}\tprediction", *(f"{row}\tA" for row in rows[:-1])]
    (tmp_path / "answers.tsv").write_text("\n".join(lines))
    metrics = MMBENCH.score_answer_files(Sources(), tmp_path / "answers.tsv").metrics
    assert metrics["rows"] == 4
    assert metrics["missing_rotations"] == (
        "unknown without --questions; 1 questions have fewer rows than choices"
    )


def test_prompts_are_in_the_language_of_the_benchmark(mmbench: Path) -> None:
    """The hint precedes the question, an empty choice is omitted, and the last line asks for a letter."""
    conversations = [
        spec.load(Sources(questions=mmbench)).items[1].conversation
        for spec in (MMBENCH, MMBENCH_CN)
    ]
    lines = [conversation.turns[0].text.strip().split("\n") for conversation in conversations]
    assert lines[0][:-1] == ["Look.", "Which?", "A. blue", "B. red", "C. green"]
    assert lines[0][-1].startswith("Answer with the option's letter")
    assert lines[1][-1] == "请直接回答选项字母。"
    assert conversations[0].images == ("7.jpg",)


def test_the_first_missing_choice_ends_the_choices(tmp_path: Path) -> None:
    """As in LLaVA's script, so that a letter is always that of its column."""
    heading = "index\tquestion\thint\tA\tB\tC\tD\tanswer\n"
    (tmp_path / "dev.tsv").write_text(f"{heading}7\tWhich?\tnan\tred\tgreen\t\tblue\tA\n")
    [item] = MMBENCH.load(Sources(questions=tmp_path / "dev.tsv")).items
    assert item.choices == ("red", "green")
    (tmp_path / "dev.tsv").write_text(f"{heading}7\tWhich?\tnan\tred\tgreen\t\tblue\tD\n")
    with pytest.raises(InputError, match="the answer should be one of AB, got 'D'"):
        MMBENCH.load(Sources(questions=tmp_path / "dev.tsv"))


def test_tables_that_cannot_be_scored_are_rejected(mmbench: Path, tmp_path: Path) -> None:
    """A rotation without its question, a split without answers, a repeated row."""
    text = mmbench.read_text()
    cases = {
        text.replace("\n9\t", "\n8\t"): "is a rotation of question 9, which is missing",
        text.replace("\tA\tlogic", "\t\tlogic"): "the answer should be one of AB, got ''; only splits with answers",
        text.replace("1000009", "9"): "has questions more than once: 9",
    }  # fmt: skip
    for changed, message in cases.items():
        mmbench.write_text(changed)
        with pytest.raises(InputError, match=message):
            score_texts(MMBENCH, tmp_path, mmbench, {"7": "A"})
