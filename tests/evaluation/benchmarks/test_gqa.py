"""GQA: metrics from its official file, worked by hand."""

import json
from pathlib import Path

import pytest

from caldera.errors import InputError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.gqa import GQA

QUESTIONS = {
    "1": ("query", "attr", "red", True),
    "2": ("query", "obj", "dog", True),
    "3": ("verify", "attr", "yes", True),
    "4": ("logical", "obj", "no", False),
}


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Four questions, one of them not balanced."""
    questions = {
        name: {
            "imageId": f"n{name}",
            "question": f"What about {name}?",
            "answer": answer,
            "isBalanced": balanced,
            "types": {"structural": structural, "semantic": semantic, "detailed": "x"},
        }
        for name, (structural, semantic, answer, balanced) in QUESTIONS.items()
    }
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(questions))
    return Sources(questions=tmp_path / "testdev_balanced_questions.json")


def test_llavas_answers_worked_by_hand(sources: Sources, tmp_path: Path) -> None:
    """Case and trailing periods are ignored; "a dog" is not "dog"; the unbalanced question is omitted."""
    path = tmp_path / "answers.jsonl"
    texts = {"1": "Red", "2": "a dog", "3": "Yes.."}
    path.write_text("".join(f'{{"question_id": "{n}", "text": "{t}"}}\n' for n, t in texts.items()))
    score = GQA.score_answer_files(sources, path)
    assert score.metrics == {
        "accuracy": 66.67,
        "binary": 100.0,
        "open": 50.0,
        "accuracyPerStructuralType": {"query": 50.0, "verify": 100.0},
        "accuracyPerSemanticType": {"attr": 100.0, "obj": 0.0},
        "blind": 33.33,
        "blind_answer": "red",
        "questions": 3,
        "parse_failures": 0,
    }
    assert score.item_scores == {"1": 1, "2": 0, "3": 1}


def test_a_submitted_file_is_compared_verbatim(sources: Sources, tmp_path: Path) -> None:
    """The official script does not normalize."""
    path = tmp_path / "predictions.json"
    texts = {"1": "Red", "2": "dog", "3": "yes"}
    path.write_text(json.dumps([{"questionId": n, "prediction": t} for n, t in texts.items()]))
    assert GQA.score_answer_files(sources, path).item_scores == {"1": 0, "2": 1, "3": 1}


def test_prompts_are_those_of_llava(sources: Sources) -> None:
    """The image has its id as name; the instruction to answer briefly comes last."""
    (turn,) = GQA.load(sources).items[1].conversation.turns
    assert turn.images[0].path == "n2.jpg"
    assert turn.text.endswith("What about 2?\nAnswer the question using a single word or phrase.")


def test_another_layout_is_rejected(tmp_path: Path) -> None:
    """A list is not GQA's object of questions."""
    path = tmp_path / "questions.json"
    path.write_text('[{"question_id": 1}]')
    with pytest.raises(InputError, match="should hold an object of questions by id"):
        GQA.load(Sources(questions=path))
