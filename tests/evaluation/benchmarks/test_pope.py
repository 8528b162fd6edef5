"""POPE: the published figures, and matching of questions by their content."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError, UsageError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.pope import load_questions, score_answer_files

SHORT = "\nAnswer the question using a single word or phrase."


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def labels(first: int = 1, objects: str = "abcd") -> list[dict[str, Any]]:
    """Return questions in POPE's layout, yes and no in turn."""
    return [
        {"question_id": first + index, "image": f"{index // 2}.jpg", "text": f"Is there a {name}?", "label": label}
        for index, (name, label) in enumerate(zip(objects, ["yes", "no"] * 9, strict=False))
    ]  # fmt: skip


def llava_questions(split: str, first: int, objects: str = "abcd") -> list[dict[str, Any]]:
    """Return the same questions in LLaVA's layout, in reverse."""
    questions = [
        {"question_id": first + index, "image": line["image"], "text": line["text"] + SHORT, "category": split}
        for index, line in enumerate(labels(objects=objects))
    ]  # fmt: skip
    return questions[::-1]


def llava_answers(first: int, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return answers in LLaVA's layout."""
    return [{"question_id": first + index, "text": text} for index, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("questions", "annotations"),
    [
        ("llava_pope_random_questions.jsonl", "coco_pope_random.json"),
        (None, "coco_pope_random.json"),
        ("coco_pope_random.json", None),
    ],
)
def test_the_published_figures_are_reproduced(
    third_party: Path, questions: str | None, annotations: str | None
) -> None:
    """LLaVA-1.5-13B on the random split, with any combination of files."""
    folder = third_party / "pope"
    sources = Sources(
        questions=folder / questions if questions else None,
        annotations=folder / annotations if annotations else None,
    )
    score = score_answer_files(sources, folder / "llava-v1.5-13b_random_answers.jsonl")
    assert round(score.metrics["f1"], 2) == 87.14
    assert round(score.metrics["accuracy"], 2) == 88.01
    assert round(score.metrics["yes_ratio"], 4) == 0.4168
    assert (score.metrics["questions"], score.metrics["parse_failures"]) == (2910, 0)
    assert len(score.item_scores) == 2910


def test_a_split_worked_by_hand_in_any_order(tmp_path: Path) -> None:
    """One yes is correct, one wrong, one missed, one no is correct; the order of files has no effect."""
    annotations = write(tmp_path / "coco_pope_random.json", labels())
    questions = write(tmp_path / "q.jsonl", llava_questions("random", 100))
    answers = write(tmp_path / "a.jsonl", llava_answers(100, ["Yes", "Yes, it is", "No", "no."]))
    score = score_answer_files(Sources(questions=questions, annotations=annotations), answers)
    assert score.metrics == {
        "f1": 50.0, "accuracy": 50.0, "precision": 50.0, "recall": 50.0, "yes_ratio": 0.5, "questions": 4,
        "parse_failures": 0,
    }  # fmt: skip
    assert score.item_scores == {"100": 1.0, "101": 0.0, "102": 0.0, "103": 1.0}


@pytest.mark.parametrize("of_labels", ["imange", "image"])
def test_both_spellings_of_popes_files_are_one_question(tmp_path: Path, of_labels: str) -> None:
    """Labels, LLaVA's questions and answers match in any spelling; LLaVA's text is asked, or that of the labels."""
    [of_llava] = {"imange", "image"} - {of_labels}
    lines = [
        {**line, "text": f"Is there an {n} in the {of_labels}?"} for n, line in enumerate(labels())
    ]
    annotations = write(tmp_path / "coco_pope_random.json", lines)
    llava = [
        {"question_id": 100 + n, "image": line["image"], "category": "random",
         "text": line["text"].replace(of_labels, of_llava) + SHORT}
        for n, line in enumerate(lines)
    ]  # fmt: skip
    questions = write(tmp_path / "q.jsonl", llava)
    alone, both = Sources(annotations=annotations), Sources(annotations=annotations, questions=questions)  # fmt: skip
    for sources, texts in (
        (alone, [line["text"] + SHORT for line in lines]),
        (both, [line["text"] for line in llava]),
    ):
        items = load_questions(sources).items
        assert [item.conversation.turns[0].text for item in items] == [
            f"\n{text}" for text in texts
        ]
        for prompts in (lines, llava):
            answers = [
                {"question_id": 100 + n, "prompt": line["text"], "text": label}
                for n, (line, label) in enumerate(zip(prompts, ("yes", "no") * 2, strict=True))
            ]
            path = write(tmp_path / "a.jsonl", answers)
            assert score_answer_files(sources, path).metrics["accuracy"] == 100.0
    rows = toolkit_rows(("no", "yes") * 2, "random")
    for row, line in zip(rows, llava[::-1], strict=True):
        row["question"] = line["text"]
    path = write(tmp_path / "t.jsonl", rows)
    assert score_answer_files(alone, path).metrics["accuracy"] == 100.0


def test_answers_without_yes_or_no_are_counted_as_by_pope_and_listed(tmp_path: Path) -> None:
    """An answer about eyes is a yes for POPE; metrics without it are given, too."""
    annotations = write(tmp_path / "coco_pope_random.json", labels())
    answers = write(
        tmp_path / "a.jsonl", llava_answers(1, ["Yes", "The eyes are blue", "Yes", "No"])
    )
    metrics = score_answer_files(Sources(annotations=annotations), answers).metrics
    assert (metrics["accuracy"], metrics["parse_failures"]) == (75.0, 1)
    assert metrics["without_parse_failures"]["accuracy"] == 100.0


def test_three_splits_have_their_mean(tmp_path: Path) -> None:
    """A folder of labels with one answer file, or with a folder of answers: each split, and the mean."""
    for split in ("random", "popular", "adversarial"):
        write(tmp_path / "labels" / f"coco_pope_{split}.json", labels())
        texts = ["Yes", "No", "Yes", "No"] if split == "random" else ["Yes", "No", "No", "No"]
        write(tmp_path / "answers" / f"model_{split}.jsonl", llava_answers(1, texts))
    questions = write(
        tmp_path / "q.jsonl",
        [
            *llava_questions("popular", 10),
            *llava_questions("random", 20),
            *llava_questions("adversarial", 30),
        ],
    )
    combined = write(
        tmp_path / "a.jsonl",
        [
            *llava_answers(30, "YNNN"),
            *llava_answers(20, ["Yes", "No", "Yes", "No"]),
            *llava_answers(10, "YNNN"),
        ],
    )
    for record in (lines := [json.loads(line) for line in combined.read_text().splitlines()]):
        record["text"] = {"Y": "Yes", "N": "No"}.get(record["text"], record["text"])
    write(combined, lines)
    separate = score_answer_files(
        Sources(annotations=tmp_path / "labels"), tmp_path / "answers"
    ).metrics
    joint = score_answer_files(
        Sources(annotations=tmp_path / "labels", questions=questions), combined
    ).metrics
    assert {split: metrics["f1"] for split, metrics in separate["splits"].items()} == {
        "random": 100.0, "popular": 66.666667, "adversarial": 66.666667,
    }  # fmt: skip
    assert separate["f1"] == 77.777778
    assert joint["splits"] == separate["splits"]


def test_files_of_different_questions_are_rejected(tmp_path: Path) -> None:
    """Other questions, other ids, or too few answers are listed in the error."""
    annotations = write(tmp_path / "coco_pope_random.json", labels())
    other = write(tmp_path / "q.jsonl", llava_questions("random", 100, objects="abcx"))
    answers = write(tmp_path / "a.jsonl", llava_answers(100, ["Yes"] * 4))
    with pytest.raises(InputError, match=r"differ in 2 questions: random: 1\.jpg 'Is there a d\?'"):
        score_answer_files(Sources(questions=other, annotations=annotations), answers)
    with pytest.raises(InputError, match="4 of 4 items have no answer: 1, 2, 3, 4"):
        score_answer_files(Sources(annotations=annotations), answers)
    swapped = [{"question": line["text"], "answer": "no"} for line in labels(objects="abdc")]
    with pytest.raises(
        InputError, match=r"answers 'Is there a d\?', but question 3 is 'Is there a c"
    ):
        score_answer_files(Sources(annotations=annotations), write(tmp_path / "b.jsonl", swapped))
    with pytest.raises(InputError, match="has 3 answers to 4 questions, under other ids"):
        score_answer_files(
            Sources(annotations=annotations), write(tmp_path / "b.jsonl", swapped[:3])
        )
    with pytest.raises(UsageError, match=r"needs --annotations, POPE's coco_pope_SPLIT\.json"):
        score_answer_files(Sources(questions=other), answers)


def toolkit_rows(texts: Sequence[str], split: str, **changes: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Return rows of VLMEvalKit, in that toolkit's own numbering and order."""
    return [
        {
            "index": 900 + index,
            "question": line["text"] + " Please answer yes or no.",
            "image_path": f"images/{line['image']}",
            "answer": line["label"].capitalize(),
            "category": split,
            "prediction": text,
            **changes,
        }
        for index, (line, text) in enumerate(zip(labels()[::-1], texts, strict=True))
    ]


def test_a_question_of_several_splits_counts_in_each(tmp_path: Path) -> None:
    """VLMEvalKit joins their names; answers to splits without labels are counted, with and without POPE's files."""
    texts = ("No", "Yes", "Yes", "Yes")
    answers = write(tmp_path / "a.jsonl", toolkit_rows(texts, "random,popular"))
    for split in ("random", "popular"):
        write(tmp_path / "labels" / f"coco_pope_{split}.json", labels())
    both = score_answer_files(Sources(annotations=tmp_path / "labels"), answers).metrics
    assert score_answer_files(Sources(), answers).metrics == both
    assert (both["questions"], both["accuracy"], set(both["splits"])) == (8, 75.0, {"random", "popular"})  # fmt: skip
    random_split = Sources(annotations=tmp_path / "labels" / "coco_pope_random.json")
    metrics = score_answer_files(random_split, answers).metrics
    assert (metrics["questions"], metrics["answers_to_splits_without_labels"]) == (4, 4)
    write(answers, toolkit_rows(texts, "popular"))
    with pytest.raises(InputError, match="4 of 4 items have no answer: 1, 2, 3, 4"):
        score_answer_files(random_split, answers)
    write(answers, toolkit_rows(texts, "random", answer="maybe"))
    with pytest.raises(UsageError, match="repeats no label, yes or no; give --annotations"):
        score_answer_files(Sources(), answers)
    write(answers, toolkit_rows(texts, "random", index=7))
    with pytest.raises(InputError, match="has 1 ids more than once: 7"):
        score_answer_files(Sources(), answers)
