"""VizWiz: accuracy from its official file, worked by hand."""

import json
from pathlib import Path

import pytest

from caldera.errors import InputError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.vizwiz import VIZWIZ

ANSWERS = {
    "VizWiz_val_00000000.jpg": ("unanswerable", ["unanswerable"] * 7 + ["a can"] * 3),
    "VizWiz_val_00000001.jpg": ("other", ["soup"] + ["tomato soup"] * 9),
}


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Two questions in the official layout; answers have no ids."""
    records = [
        {
            "image": image,
            "question": "What is this?",
            "answer_type": answer_type,
            "answerable": int(answer_type != "unanswerable"),
            "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in answers],
        }
        for image, (answer_type, answers) in ANSWERS.items()
    ]
    (tmp_path / "val.json").write_text(json.dumps(records))
    return Sources(annotations=tmp_path / "val.json")


def test_a_submitted_file_worked_by_hand(sources: Sources, tmp_path: Path) -> None:
    """Seven of ten give 1, one of ten gives 0.3."""
    path = tmp_path / "answers.json"
    texts = ["Unanswerable", "soup"]
    path.write_text(
        json.dumps([{"image": i, "answer": t} for i, t in zip(ANSWERS, texts, strict=True)])
    )
    score = VIZWIZ.score_answer_files(sources, path)
    assert score.metrics == {
        "overall": 65.0,
        "perAnswerType": {"other": 30.0, "unanswerable": 100.0},
        "blind": 50.0,
        "blind_answer": "tomato soup",
        "questions": 2,
        "parse_failures": 0,
    }


def test_llavas_answers_are_matched_by_the_ids_of_its_questions(
    sources: Sources, tmp_path: Path
) -> None:
    """Its question file has the image of each id; without it ids are unknown."""
    questions, answers = tmp_path / "llava.jsonl", tmp_path / "answers.jsonl"
    questions.write_text(
        "".join(f'{{"question_id": {n}, "image": "{image}", "text": "?"}}\n' for n, image in enumerate(ANSWERS))
    )  # fmt: skip
    answers.write_text(
        '{"question_id": 0, "text": "x"}\n{"question_id": 1, "text": "Tomato soup."}\n'
    )
    score = VIZWIZ.score_answer_files(
        Sources(annotations=sources.annotations, questions=questions), answers
    )
    assert list(score.item_scores.values()) == [0, 1]
    with pytest.raises(InputError, match="2 answers belong to no item: 0, 1"):
        VIZWIZ.score_answer_files(sources, answers)


def test_prompts_are_those_of_llava(sources: Sources) -> None:
    """They have two instructions: on unanswerable questions, and to answer briefly.

    Only the first letter is upper-case, and spaces around the question are kept, in 424 of the file's 8,000.
    """
    item = VIZWIZ.load(sources).items[0]
    assert item.conversation.turns[0].text == (
        "\nWhat is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )
    assert item.conversation.turns[0].images[0].path == "VizWiz_val_00000000.jpg"
    assert sources.annotations is not None
    text = sources.annotations.read_text().replace("What is this?", "what IS this? And that?  ")
    sources.annotations.write_text(text)
    item = VIZWIZ.load(sources).items[0]
    assert item.conversation.turns[0].text.startswith("\nWhat is this? and that?  \nWhen the")
