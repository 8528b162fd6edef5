"""MMBench, SEED-Bench, MMMU, NLVR and a user's own questions, worked by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError, UsageError
from caldera.evaluation.benchmark import BenchmarkSpec, Sources
from caldera.evaluation.benchmarks.custom import CUSTOM
from caldera.evaluation.benchmarks.mmbench import MMBENCH, MMBENCH_CN
from caldera.evaluation.benchmarks.mmmu import DISCIPLINES, MMMU
from caldera.evaluation.benchmarks.nlvr import NLVR
from caldera.evaluation.benchmarks.seed_bench import SEED_BENCH


def score(task: BenchmarkSpec, folder: Path, questions: Path, answers: dict[str, str]) -> Any:  # noqa: ANN401
    """Score texts by id."""
    (folder / "answers.json").write_text(json.dumps(answers))
    return task.score_answer_files(Sources(questions=questions), folder / "answers.json")


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


def test_mmbench_counts_what_is_right_in_every_rotation(mmbench: Path, tmp_path: Path) -> None:
    """A model that always says A is right in one first row of two, and in no question."""
    right = {
        "7": "B",
        "1000007": "C. green",
        "2000007": "A",
        "9": "A",
        "1000009": "The answer is B.",
    }
    figures = score(MMBENCH, tmp_path, mmbench, right).figures
    assert figures == {
        "accuracy": 100.0, "vanilla": 100.0, "color": 100.0, "perception": 100.0, "logic": 100.0, "reasoning": 100.0,
        "questions": 2, "rows": 5, "parse_failures": 0,
    }  # fmt: skip
    always = score(MMBENCH, tmp_path, mmbench, dict.fromkeys(right, "A"))
    assert (always.figures["accuracy"], always.figures["vanilla"]) == (0.0, 50.0)
    assert always.marks == {"7": 0.0, "9": 0.0}
    unread = score(MMBENCH_CN, tmp_path, mmbench, right | {"7": "B and C", "9": "D"})
    assert (unread.figures["accuracy"], unread.figures["parse_failures"]) == (0.0, 2)


def test_mmbench_takes_the_table_that_is_handed_in(mmbench: Path, tmp_path: Path) -> None:
    """Answers may be a table with index and prediction."""
    table = "index\tprediction\n7\tB\n1000007\tC\n2000007\tA\n9\tA\n1000009\tA\n"
    (tmp_path / "up.tsv").write_text(table)
    figures = MMBENCH.score_answer_files(Sources(questions=mmbench), tmp_path / "up.tsv").metrics
    assert (figures["accuracy"], figures["vanilla"]) == (50.0, 100.0)
    (tmp_path / "up.tsv").write_text(table.replace("9\tA\n1000009\tA\n", "9\tA\n"))
    with pytest.raises(InputError, match="1 of 5 items have no answer: 1000009"):
        MMBENCH.score_answer_files(Sources(questions=mmbench), tmp_path / "up.tsv")


def test_mmbench_asks_in_its_language(mmbench: Path) -> None:
    """The hint stands before the question, an empty choice is left out, and the last line asks for a letter."""
    asked = [
        task.load(Sources(questions=mmbench)).items[1].conversation
        for task in (MMBENCH, MMBENCH_CN)
    ]
    lines = [one.turns[0].text.strip().split("\n") for one in asked]
    assert lines[0][:-1] == ["Look.", "Which?", "A. blue", "B. red", "C. green"]
    assert lines[0][-1].startswith("Answer with the option's letter")
    assert lines[1][-1] == "请直接回答选项字母。"
    assert asked[0].images == ("7.jpg",)


def test_mmbench_refuses_what_cannot_be_scored(mmbench: Path, tmp_path: Path) -> None:
    """A rotation without its question, a split without answers, a row that is there twice."""
    text = mmbench.read_text()
    cases = {
        text.replace("\n9\t", "\n8\t"): "is a rotation of question 9, which is not there",
        text.replace("\tA\tlogic", "\t\tlogic"): "the answer should be one of AB, got ''; only splits with answers",
        text.replace("1000009", "9"): "has questions more than once: 9",
    }  # fmt: skip
    for changed, message in cases.items():
        mmbench.write_text(changed)
        with pytest.raises(InputError, match=message):
            score(MMBENCH, tmp_path, mmbench, {"7": "A"})


def test_seed_is_scored_by_dimension_and_by_what_is_shown(tmp_path: Path) -> None:
    """LLaVA's rule counts nothing but the bare letter; the strict reading takes a letter with its mark, too."""
    choices = {"choice_a": "a", "choice_b": "b", "choice_c": "c", "choice_d": "d"}
    asked = [(1, "A", 1, "image"), (2, "B", 1, "image"), ("v0", "D", 10, "video")]
    questions = [
        {"question_id": name, "question": "?", **choices, "answer": letter, "question_type_id": kind,
         "data_type": shown}
        for name, letter, kind, shown in asked
    ]  # fmt: skip
    content = {"questions": questions, "question_type": {"Scene": 1, "Action": 10}}
    (tmp_path / "seed.json").write_text(json.dumps(content))
    figures = score(
        SEED_BENCH, tmp_path, tmp_path / "seed.json", {"1": "A", "2": "B.", "v0": "?"}
    ).figures
    assert figures == {
        "accuracy": 66.666667, "Scene": 100.0, "image": 100.0, "Action": 0.0, "video": 0.0, "questions": 3,
        "parse_failures": 1, "accuracy_when_read": 100.0, "official_rule": {"accuracy": 33.333333},
    }  # fmt: skip
    (tmp_path / "seed.json").write_text("[]")
    with pytest.raises(InputError, match=r"should be SEED-Bench\.json, an object"):
        score(SEED_BENCH, tmp_path, tmp_path / "seed.json", {"1": "A"})


def test_mmmu_is_scored_by_subject_and_discipline(tmp_path: Path) -> None:
    """Open questions stand apart, and are right by their words or their last number."""
    truth = {
        "validation_Math_1": {"question_type": "multiple-choice", "ground_truth": "A"},
        "validation_Physics_2": {"question_type": "multiple-choice", "ground_truth": "B"},
        "validation_Art_Theory_3": {"question_type": "multiple-choice", "ground_truth": "C"},
        "validation_Finance_4": {"question_type": "open", "ground_truth": ["1,250", "1250.00"]},
        "validation_Finance_5": {"question_type": "open", "ground_truth": "Bonds"},
    }
    (tmp_path / "dict.json").write_text(json.dumps(truth))
    texts = ["A", "A or B", "(C)", "It comes to $1,250.", "stocks"]
    figures = score(MMMU, tmp_path, tmp_path / "dict.json", dict(zip(truth, texts, strict=True))).figures  # fmt: skip
    assert figures == {
        "accuracy": 66.666667, "Math": 100.0, "Science": 50.0, "Physics": 0.0, "Art_Theory": 100.0,
        "Art and Design": 100.0,
        "questions": 3, "parse_failures": 1, "accuracy_when_read": 100.0, "open": 50.0, "open_questions": 2,
        "accuracy_with_open": 60.0,
    }  # fmt: skip
    assert sum(map(len, DISCIPLINES.values())) == 30
    (tmp_path / "dict.json").write_text(json.dumps({"validation_Maths_1": truth["validation_Math_1"]}))  # fmt: skip
    with pytest.raises(InputError, match="'validation_Maths_1' should be an id such as"):
        score(MMMU, tmp_path, tmp_path / "dict.json", {})


def test_mmmu_asks_with_options_and_images(tmp_path: Path) -> None:
    """Options may be written as Python writes lists; each mark of an image shows one."""
    question = {
        "id": "validation_Music_1", "question": "What is <image 1> beside <image 2>?", "options": "['a', 'b']",
        "answer": "B", "question_type": "multiple-choice", "image_1": "one.png",
    }  # fmt: skip
    (tmp_path / "q.json").write_text(json.dumps([question]))
    [item] = MMMU.load(Sources(questions=tmp_path / "q.json")).items
    assert item.conversation.images == ("one.png", "validation_Music_1_2.png")
    assert (
        item.conversation.turns[0]
        .text.strip()
        .startswith("What is (picture 1) beside (picture 2)?\nA. a\nB. b\n")
    )


def test_nlvr_counts_sentences_that_are_right_throughout(tmp_path: Path) -> None:
    """Three of four pairs are right, and one sentence of two; true counts as yes."""
    lines = [
        {"image": f"dev-{name}-0.png", "sentence": f"There is {name[0]}", "label": label}
        for name, label in {"1-0": "true", "1-1": "false", "2-0": "true", "2-1": "true"}.items()
    ]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, lines)))
    texts = {
        "dev-1-0-0": "Yes",
        "dev-1-1-0": "False.",
        "dev-2-0-0": "true",
        "dev-2-1-0": "the eyes",
    }
    figures = score(NLVR, tmp_path, tmp_path / "dev.jsonl", texts).figures
    assert figures == {
        "accuracy": 75.0, "consistency": 50.0, "accuracy_true": 66.666667, "accuracy_false": 100.0, "questions": 4,
        "sentences": 2, "sentences_with_several_drawings": 2, "parse_failures": 1,
    }  # fmt: skip


def test_nlvrs_majority_is_its_chance(third_party: Path, tmp_path: Path) -> None:
    """Always yes is right for 163 of the 300."""
    questions = third_party / "nlvr" / "dev_300.jsonl"
    items = NLVR.load(Sources(questions=questions)).items
    figures = score(NLVR, tmp_path, questions, {item.id: "yes" for item in items}).figures
    assert figures["accuracy"] == pytest.approx(100 * 163 / 300, abs=1e-5)
    assert round(figures["accuracy"] - NLVR.chance["accuracy"]) == -1
    assert (questions.parent / items[0].conversation.images[0]).exists()


OWN_LINES = [
    {"id": "a", "question": "Which colour?", "answer": ["red", "scarlet"], "image": "a.jpg"},
    {"question": "What does it say?", "answer": "Exit", "match": "contains", "kind": "reading"},
    {"id": 5, "question": "Which?", "answer": "dog", "choices": ["cat", "dog"], "image": ["a.jpg", "b.jpg"]},
    {"id": 6, "question": "Which?", "answer": "A", "choices": ["cat", "dog"], "kind": "reading"},
]  # fmt: skip


def test_own_questions_are_compared_as_they_say(tmp_path: Path) -> None:
    """Exact words, words contained but not inside others, and choices by letter or in words."""
    questions = tmp_path / "own.jsonl"
    questions.write_text("\n".join(map(json.dumps, OWN_LINES)))
    right = {"a": "Scarlet.", "1": "It says EXIT here", "5": "B", "6": "cat"}
    assert score(CUSTOM, tmp_path, questions, right).figures["accuracy"] == 100.0
    wrong = {"a": "red and blue", "1": "exited", "5": "A", "6": "A or B"}
    score_of_wrong = score(CUSTOM, tmp_path, questions, wrong)
    assert score_of_wrong.figures == {
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
def test_own_lines_that_break_the_form_are_named(
    tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    """The message says where and what."""
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=rf"own\.jsonl\[0\]: {message}"):
        CUSTOM.load(Sources(questions=tmp_path / "own.jsonl"))


def test_own_questions_for_a_judge_are_not_scored_in_silence(tmp_path: Path) -> None:
    """A question that wants a judge is refused where there is none."""
    (tmp_path / "own.jsonl").write_text(json.dumps({"question": "?", "answer": "x", "match": "judge"}))  # fmt: skip
    with pytest.raises(UsageError, match="1 questions are compared by a judge, the first '0'"):
        score(CUSTOM, tmp_path, tmp_path / "own.jsonl", {"0": "x"})
