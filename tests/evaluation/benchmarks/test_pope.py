"""POPE: the published figures, and questions that are joined by what they ask."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError, UsageError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.pope import score_answer_files

SHORT = "\nAnswer the question using a single word or phrase."


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def labels(first: int = 1, things: str = "abcd") -> list[dict[str, Any]]:
    """Questions as POPE has them, yes and no in turn."""
    return [
        {"question_id": first + at, "image": f"{at // 2}.jpg", "text": f"Is there a {thing}?", "label": label}
        for at, (thing, label) in enumerate(zip(things, ["yes", "no"] * 9, strict=False))
    ]  # fmt: skip


def asked(split: str, first: int, things: str = "abcd") -> list[dict[str, Any]]:
    """The same questions as LLaVA has them, backwards."""
    ours = [
        {"question_id": first + at, "image": one["image"], "text": one["text"] + SHORT, "category": split}
        for at, one in enumerate(labels(things=things))
    ]  # fmt: skip
    return ours[::-1]


def said(first: int, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Answers of LLaVA's."""
    return [{"question_id": first + at, "text": text} for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("questions", "truth"),
    [
        ("llava_pope_random_questions.jsonl", "coco_pope_random.json"),
        (None, "coco_pope_random.json"),
        ("coco_pope_random.json", None),
    ],
)
def test_the_published_figures_come_out(
    third_party: Path, questions: str | None, truth: str | None
) -> None:
    """LLaVA-1.5-13B on the random split, whichever files are given (spec 7)."""
    folder = third_party / "pope"
    sources = Sources(
        questions=folder / questions if questions else None,
        annotations=folder / truth if truth else None,
    )
    score = score_answer_files(sources, folder / "llava-v1.5-13b_random_answers.jsonl")
    assert round(score.metrics["f1"], 2) == 87.14
    assert round(score.metrics["accuracy"], 2) == 88.01
    assert round(score.metrics["yes_ratio"], 4) == 0.4168
    assert (score.metrics["questions"], score.metrics["parse_failures"]) == (2910, 0)
    assert len(score.item_scores) == 2910


def test_a_split_by_hand_in_any_order(tmp_path: Path) -> None:
    """One yes is right, one wrong, one missed, one no is right; the order of files decides nothing."""
    truth = write(tmp_path / "coco_pope_random.json", labels())
    questions = write(tmp_path / "q.jsonl", asked("random", 100))
    answers = write(tmp_path / "a.jsonl", said(100, ["Yes", "Yes, it is", "No", "no."]))
    score = score_answer_files(Sources(questions=questions, annotations=truth), answers)
    assert score.metrics == {
        "f1": 50.0, "accuracy": 50.0, "precision": 50.0, "recall": 50.0, "yes_ratio": 0.5, "questions": 4,
        "parse_failures": 0,
    }  # fmt: skip
    assert score.item_scores == {"100": 1.0, "101": 0.0, "102": 0.0, "103": 1.0}


def test_what_says_neither_is_counted_as_pope_does_and_told(tmp_path: Path) -> None:
    """An answer about eyes is a yes to POPE; the figures without it stand beside."""
    truth = write(tmp_path / "coco_pope_random.json", labels())
    answers = write(tmp_path / "a.jsonl", said(1, ["Yes", "The eyes are blue", "Yes", "No"]))
    figures = score_answer_files(Sources(annotations=truth), answers).metrics
    assert (figures["accuracy"], figures["parse_failures"]) == (75.0, 1)
    assert figures["without_parse_failures"]["accuracy"] == 100.0


def test_three_splits_have_their_mean(tmp_path: Path) -> None:
    """A folder of labels with one answer file for all, or a folder of answers: each split, and the mean."""
    for split in ("random", "popular", "adversarial"):
        write(tmp_path / "labels" / f"coco_pope_{split}.json", labels())
        right = ["Yes", "No", "Yes", "No"] if split == "random" else ["Yes", "No", "No", "No"]
        write(tmp_path / "answers" / f"model_{split}.jsonl", said(1, right))
    questions = write(
        tmp_path / "q.jsonl",
        [*asked("popular", 10), *asked("random", 20), *asked("adversarial", 30)],
    )
    together = write(
        tmp_path / "a.jsonl",
        [*said(30, "YNNN"), *said(20, ["Yes", "No", "Yes", "No"]), *said(10, "YNNN")],
    )
    for record in (lines := [json.loads(line) for line in together.read_text().splitlines()]):
        record["text"] = {"Y": "Yes", "N": "No"}.get(record["text"], record["text"])
    write(together, lines)
    apart = score_answer_files(
        Sources(annotations=tmp_path / "labels"), tmp_path / "answers"
    ).metrics
    joint = score_answer_files(
        Sources(annotations=tmp_path / "labels", questions=questions), together
    ).metrics
    assert {split: one["f1"] for split, one in apart["splits"].items()} == {
        "random": 100.0, "popular": 66.666667, "adversarial": 66.666667,
    }  # fmt: skip
    assert apart["f1"] == 77.777778
    assert joint["splits"] == apart["splits"]


def test_files_of_different_questions_are_refused(tmp_path: Path) -> None:
    """Other questions, other ids, or too few answers are errors that name them."""
    truth = write(tmp_path / "coco_pope_random.json", labels())
    other = write(tmp_path / "q.jsonl", asked("random", 100, things="abcx"))
    answers = write(tmp_path / "a.jsonl", said(100, ["Yes"] * 4))
    with pytest.raises(InputError, match=r"differ in 2 questions: random: 1\.jpg 'Is there a d\?'"):
        score_answer_files(Sources(questions=other, annotations=truth), answers)
    with pytest.raises(InputError, match="4 of 4 items have no answer: 1, 2, 3, 4"):
        score_answer_files(Sources(annotations=truth), answers)
    swapped = [{"question": one["text"], "answer": "no"} for one in labels(things="abdc")]
    with pytest.raises(
        InputError, match=r"answers 'Is there a d\?', but question 3 is 'Is there a c"
    ):
        score_answer_files(Sources(annotations=truth), write(tmp_path / "b.jsonl", swapped))
    with pytest.raises(InputError, match="has 3 answers to 4 questions, under other ids"):
        score_answer_files(Sources(annotations=truth), write(tmp_path / "b.jsonl", swapped[:3]))
    with pytest.raises(UsageError, match=r"needs --truth, POPE's coco_pope_SPLIT\.json"):
        score_answer_files(Sources(questions=other), answers)
