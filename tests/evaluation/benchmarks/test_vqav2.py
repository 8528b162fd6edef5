"""VQA v2: metrics from its official files, worked by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from caldera.errors import AnnotationError, InputError, UsageError
from caldera.evaluation.answer_files import AnswerOptions
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.vqav2 import VQAV2

ANSWERS = {
    11: ("yes/no", "is there", ["yes"] * 10),
    12: ("number", "how many", ["2"] * 3 + ["two"] + ["3"] * 6),
    13: ("other", "what color", ["red"] * 2 + ["dark red"] * 8),
    14: ("other", "what is", ["a dog"] * 9 + ["dog"]),
}
QUESTIONS = {11: "Is there a dog?", 12: "How many?", 13: "What color is it?", 14: "What is it?"}


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Four questions about two images, in the official layout."""
    questions = {
        "data_subtype": "val2014",
        "questions": [
            {"question_id": number, "image_id": 42 + number % 2, "question": text}
            for number, text in QUESTIONS.items()
        ],
    }
    annotations = {
        "annotations": [
            {
                "question_id": question_id,
                "image_id": 42 + question_id % 2,
                "answer_type": answer_type,
                "question_type": question_type,
                "multiple_choice_answer": answers[0],
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                    for number, answer in enumerate(answers, start=1)
                ],
            }
            for question_id, (answer_type, question_type, answers) in ANSWERS.items()
        ]
    }
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    return Sources(questions=tmp_path / "questions.json", annotations=tmp_path / "annotations.json")


def write_answers(folder: Path, answers: dict[int, str], name: str) -> Path:
    """Write answers in LLaVA's layout, or in that of submissions."""
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps([{"question_id": n, "answer": a} for n, a in answers.items()]))
    else:
        lines = [
            {"question_id": n, "prompt": QUESTIONS.get(n, ""), "text": a, "model_id": "m"}
            for n, a in answers.items()
        ]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_a_submitted_file_worked_by_hand(sources: Sources, tmp_path: Path) -> None:
    """1 for yes, 4 of 10 agree on two (2, 2, 2, two), 2 of 10 on red give 0.6, all ten on dog."""
    answers = write_answers(
        tmp_path, {11: "yes", 12: "two", 13: "Red.", 14: "the dog"}, "answers.json"
    )
    score = VQAV2.score_answer_files(sources, answers)
    assert score.metrics == {
        "overall": 90.0,
        "perAnswerType": {"number": 100.0, "other": 80.0, "yes/no": 100.0},
        "perQuestionType": {"how many": 100.0, "is there": 100.0, "what color": 60.0, "what is": 100.0},
        "blind": 25.0,
        "blind_answer": "yes",
        "questions": 4,
        "parse_failures": 0,
    }  # fmt: skip
    assert score.item_scores == pytest.approx({"11": 1, "12": 1, "13": 0.6, "14": 1})
    assert score.overall == pytest.approx(0.9)
    assert score.counts == {"yes/no": 1, "number": 1, "other": 2}


def test_only_llavas_raw_answers_are_normalized_by_evalais_processor(
    sources: Sources, tmp_path: Path
) -> None:
    """If ten people answered "yes", the official evaluator rejects "Yes."; LLaVA's converter makes it "yes"."""
    answers = {11: "Yes.", 12: "3", 13: "blue", 14: "cat"}
    submitted = VQAV2.score_answer_files(sources, write_answers(tmp_path, answers, "answers.json"))
    raw = VQAV2.score_answer_files(sources, write_answers(tmp_path, answers, "answers.jsonl"))
    assert (submitted.item_scores["11"], raw.item_scores["11"]) == (0, 1)


def test_an_empty_answer_is_wrong_and_listed(sources: Sources, tmp_path: Path) -> None:
    """H3: it is an error that lists the ids; if it is allowed, it scores 0 and counts as unparsed."""
    answers = write_answers(tmp_path, {11: "", 12: "3", 13: " ", 14: "dog"}, "answers.jsonl")
    with pytest.raises(InputError, match=r"2 of 4 answers are empty: 11, 13; .* --allow-empty"):
        VQAV2.score_answer_files(sources, answers)
    sources = replace(sources, answer_options=AnswerOptions(allow_empty=True))
    score = VQAV2.score_answer_files(sources, answers)
    assert sorted(score.unparsed) == ["11", "13"]
    assert score.metrics["parse_failures"] == 2
    assert score.metrics["overall"] == 50.0
    assert score.metrics["without_parse_failures"] == {"overall": 100.0}


def test_prompts_are_those_of_llava(sources: Sources) -> None:
    """The image comes first, under COCO's name; the instruction to answer briefly comes last."""
    item = VQAV2.load(sources).items[0]
    (turn,) = item.conversation.turns
    assert [image.path for image in turn.images] == ["COCO_val2014_000000000043.jpg"]
    assert turn.text == "\nIs there a dog?\nAnswer the question using a single word or phrase."
    assert item.references == ("yes",) * 10


def test_a_test_split_can_be_loaded_but_not_scored(sources: Sources, tmp_path: Path) -> None:
    """Without annotations there are no references."""
    unannotated = Sources(questions=sources.questions)
    benchmark = VQAV2.load(unannotated)
    with pytest.raises(
        InputError, match="4 questions have no right answers in the files given: 11, "
    ):
        benchmark.score({item.id: "yes" for item in benchmark.items})
    with pytest.raises(UsageError, match="needs --annotations, v2_mscoco_SPLIT_annotations"):
        VQAV2.score_answer_files(unannotated, write_answers(tmp_path, {11: "yes"}, "answers.json"))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({11: "yes", 12: "2"}, r"2 of 4 items have no answer: 13, 14"),
        ({11: "a", 12: "a", 13: "a", 14: "a", 99: "a"}, r"1 answers belong to no item: 99"),
    ],
)
def test_answers_of_another_split_are_rejected(
    sources: Sources, tmp_path: Path, answers: dict[int, str], message: str
) -> None:
    """Missing and unknown answers are listed."""
    with pytest.raises(InputError, match=message):
        VQAV2.score_answer_files(sources, write_answers(tmp_path, answers, "answers.jsonl"))


def test_files_of_two_splits_are_rejected(sources: Sources, tmp_path: Path) -> None:
    """Annotations of missing questions are an error."""
    assert sources.questions is not None
    content = json.loads(sources.questions.read_text())
    content["questions"].pop()
    sources.questions.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"1 annotations of questions that are not in .*one split"):
        VQAV2.load(sources)
    sources.questions.write_text(json.dumps({"questions": [{"question_id": "x"}]}))
    with pytest.raises(AnnotationError, match=r"questions\.0: question_id: input should be"):
        VQAV2.load(sources)
