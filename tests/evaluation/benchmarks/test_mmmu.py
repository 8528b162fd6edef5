"""MMMU: scores by subject and discipline, worked by hand, and prompts with several images."""

import json
from pathlib import Path

import pytest

from caldera.errors import InputError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.mmmu import DISCIPLINES, MMMU
from caldera.instructions.request_phrases import LETTER_PROMPT
from tests.evaluation.benchmarks.official import score_texts


def test_scores_are_by_subject_and_discipline(tmp_path: Path) -> None:
    """Open questions are a separate metric; their words or last number must match."""
    correct = {
        "validation_Math_1": {"question_type": "multiple-choice", "ground_truth": "A"},
        "validation_Physics_2": {"question_type": "multiple-choice", "ground_truth": "B"},
        "validation_Art_Theory_3": {"question_type": "multiple-choice", "ground_truth": "C"},
        "validation_Finance_4": {"question_type": "open", "ground_truth": ["1,250", "1250.00"]},
        "validation_Finance_5": {"question_type": "open", "ground_truth": "Bonds"},
    }
    (tmp_path / "dict.json").write_text(json.dumps(correct))
    texts = ["A", "A or B", "(C)", "It comes to $1,250.", "stocks"]
    answers = dict(zip(correct, texts, strict=True))
    metrics = score_texts(MMMU, tmp_path, tmp_path / "dict.json", answers).metrics
    assert metrics == {
        "accuracy": 66.666667, "Math": 100.0, "Science": 50.0, "Physics": 0.0, "Art_Theory": 100.0,
        "Art and Design": 100.0,
        "questions": 3, "parse_failures": 1, "accuracy_when_read": 100.0, "open": 50.0, "open_questions": 2,
        "accuracy_with_open": 60.0,
    }  # fmt: skip
    assert sum(map(len, DISCIPLINES.values())) == 30
    (tmp_path / "dict.json").write_text(json.dumps({"validation_Maths_1": correct["validation_Math_1"]}))  # fmt: skip
    with pytest.raises(InputError, match="'validation_Maths_1' should be an id such as"):
        score_texts(MMMU, tmp_path, tmp_path / "dict.json", {})


def test_prompts_have_options_and_images(tmp_path: Path) -> None:
    """Options may be Python list literals; each image tag adds an image; an empty line precedes the instruction."""
    question = {
        "id": "validation_Music_1", "question": "What is <image 1> beside <image 2>?", "options": "['a', 'b']",
        "answer": "B", "question_type": "multiple-choice", "image_1": "one.png",
    }  # fmt: skip
    (tmp_path / "q.json").write_text(json.dumps([question]))
    [item] = MMMU.load(Sources(questions=tmp_path / "q.json")).items
    assert item.conversation.images == ("one.png", "validation_Music_1_2.png")
    assert item.conversation.turns[0].text == (
        f"\nWhat is <image 1> beside <image 2>?\nA. a\nB. b\n\n{LETTER_PROMPT}"
    )
