"""ScienceQA: LLaVA's published table from its own output file, and a small split worked by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError, UsageError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.science_qa import (
    SCIENCE_QA,
    load_questions,
    score_answer_files,
)
from caldera.instructions.request_phrases import LETTER_PROMPT
from tests.evaluation.answer_formats import sample, write_json, write_lines

PAPER = {
    "accuracy": 90.92, "NAT": 90.36, "SOC": 95.95, "LAN": 88.00, "TXT": 89.49, "IMG": 88.00, "NO": 90.66, "G1-6": 90.93,
    "G7-12": 90.90,
}  # fmt: skip
"""P1 Table 7, LLaVA 13B."""


def problem(answer: int, subject: str, grade: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a problem with three choices."""
    return {
        "question": "Which?", "choices": ["red", "green", "blue"], "answer": answer, "hint": "", "image": None,
        "subject": subject, "grade": f"grade{grade}", "split": "test", **more,
    }  # fmt: skip


PROBLEMS = {
    "1": problem(0, "natural science", 2, image="image.png"),
    "2": problem(1, "natural science", 7, hint="Look."),
    "3": problem(2, "social science", 6, hint="Look.", image="image.png"),
    "5": problem(1, "language science", 12),
    "8": problem(0, "language science", 12, split="train"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The problems in the layout of ScienceQA's folder."""
    (tmp_path / "problems.json").write_text(json.dumps(PROBLEMS))
    (tmp_path / "pid_splits.json").write_text(
        json.dumps({"train": ["8"], "test": ["1", "2", "3", "5"]})
    )
    rows = (
        "1,A,natural science,2,1,0\n2,B,natural science,7,0,1\n3,C,social science,6,1,1\n"
        "5,B,language science,12,0,0\n"
    )
    (tmp_path / "truth.csv").write_text(f"pid,answer,subject,grade,has_image,has_context\n{rows}")
    return tmp_path


def answers(folder: Path, texts: dict[str, str]) -> Path:
    """Write LLaVA's JSON lines."""
    lines = (json.dumps({"question_id": name, "text": text}) for name, text in texts.items())
    (folder / "answers.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder / "answers.jsonl"


def files(folder: Path, names: dict[str, str]) -> Sources:
    """Return files of a folder as questions or annotations."""
    paths = {role: folder / name for role, name in names.items()}
    return Sources(questions=paths.get("questions"), annotations=paths.get("annotations"))


TEXTS = {"1": "The answer is A.", "2": "C", "3": "both", "5": "LECTURE: a.\n###\nANSWER: B."}


@pytest.mark.parametrize(
    "names",
    [
        {"annotations": "test_answers.csv"},
        {"annotations": "test_answers.csv", "questions": "pid_splits.json"},
        {"annotations": "test_answers.csv", "questions": "llava_test_CQM-A.json"},
    ],
)
def test_the_papers_table_is_reproduced_from_the_official_file(
    third_party: Path, names: dict[str, str]
) -> None:
    """Every column equals the paper's; the texts give 3,855 of 4,241, and the two differ in one question."""
    folder = third_party / "scienceqa"
    sources = files(folder, names)
    metrics = score_answer_files(sources, folder / "test_sqa_llava_13b_v0.json").metrics
    assert {name: round(metrics[name], 2) for name in PAPER} == PAPER
    assert metrics["accuracy_from_texts"] == pytest.approx(100 * 3855 / 4241, abs=1e-5)
    assert metrics["official_rule"] == {
        "accuracy": metrics["accuracy_from_texts"],
        "parse_failures": 0,
    }
    assert metrics["parse_failures"] == 0
    assert metrics["results_differ_from_texts"] == ["3247"]


def test_the_question_file_alone_has_the_letters(third_party: Path) -> None:
    """LLaVA-1.5's question file gives the columns without grades; a letter beyond the choices is unparsed."""
    folder = third_party / "scienceqa"
    questions = Sources(questions=folder / "llava_test_CQM-A.json")
    score = score_answer_files(questions, folder / "test_sqa_llava_13b_v0.json")
    fractions = {
        name: round(value, 2) for name, value in score.metrics.items() if isinstance(value, float)
    }
    assert fractions == {
        "accuracy": 90.92,
        "TXT": 89.49,
        "IMG": 88.0,
        "NO": 90.66,
        "accuracy_from_texts": 90.9,
    }
    assert score.unparsed == {"3247": "D is none of the choices, AB"}


@pytest.mark.parametrize(
    "names",
    [
        {"questions": "problems.json"}, {"annotations": "problems.json"}, {"questions": "."},
        {"annotations": "truth.csv"},
        {"questions": "problems.json", "annotations": "pid_splits.json"},
        {"questions": "problems.json", "annotations": "truth.csv"},
        {"questions": "truth.csv", "annotations": "problems.json"},
    ],
)  # fmt: skip
def test_a_small_split_worked_by_hand(folder: Path, names: dict[str, str]) -> None:
    """Two of four are correct, one has no letter; every column is a mean over its own questions."""
    sources = files(folder, names)
    score = score_answer_files(sources, answers(folder, TEXTS))
    assert score.metrics == {
        "accuracy": 50.0, "NAT": 50.0, "SOC": 0.0, "LAN": 100.0, "TXT": 0.0, "IMG": 50.0, "NO": 100.0, "G1-6": 50.0,
        "G7-12": 50.0, "questions": 4, "parse_failures": 1, "accuracy_from_texts": 50.0,
        "official_rule": {"accuracy": 25.0, "parse_failures": 2},
    }  # fmt: skip
    assert score.item_scores == {"1": 1.0, "2": 0.0, "3": 0.0, "5": 1.0}
    assert list(score.unparsed) == ["3"]


def test_samples_of_lmms_eval_have_no_id_but_their_number(tmp_path: Path) -> None:
    """Alone they are scored as with the official file; a sample that is logged twice is an error."""
    docs = [
        {key: entry[key] for key in ("question", "choices", "answer")}
        for entry in PROBLEMS.values()
    ]
    samples = [sample(number, doc, "A") for number, doc in enumerate(docs)]
    score = SCIENCE_QA.score_answer_files(Sources(), write_lines(tmp_path / "a.jsonl", samples))
    assert (score.metrics["accuracy"], score.metrics["questions"]) == (40.0, 5)
    repeated = write_lines(tmp_path / "b.jsonl", [*samples, samples[2]])
    with pytest.raises(InputError, match="more than once"):
        SCIENCE_QA.score_answer_files(Sources(), repeated)


def test_results_count_before_texts(folder: Path) -> None:
    """In LLaVA's output file a failure is -1, which is wrong and counted."""
    content = {"results": {"1": 0, "2": 1, "3": -1, "5": 1}, "outputs": TEXTS}
    (folder / "out.json").write_text(json.dumps(content))
    metrics = score_answer_files(
        Sources(annotations=folder / "truth.csv"), folder / "out.json"
    ).metrics
    assert (metrics["accuracy"], metrics["accuracy_from_texts"]) == (75.0, 50.0)
    assert metrics["results_differ_from_texts"] == ["2"]


def test_other_ids_are_rejected(folder: Path) -> None:
    """Missing and unknown ids are listed, and nothing is scored."""
    sources = Sources(annotations=folder / "truth.csv")
    with pytest.raises(
        InputError,
        match=r"2 of 4 items have no answer: 3, 5; 1 answers belong to no item: 8; is this",
    ):
        score_answer_files(sources, answers(folder, {"1": "A", "2": "B", "8": "A"}))
    (folder / "out.json").write_text(json.dumps({"results": {"1": 0}, "outputs": {"1": "A"}}))
    with pytest.raises(InputError, match="3 of 4 items have no answer: 2, 3, 5"):
        score_answer_files(sources, folder / "out.json")
    (folder / "out.json").write_text(json.dumps({"results": {}}))
    with pytest.raises(InputError, match="4 of 4 items have no answer"):
        score_answer_files(sources, folder / "out.json")


def test_contradictory_files_are_rejected(folder: Path) -> None:
    """Two files with different correct answers or questions are an error."""
    text = (folder / "truth.csv").read_text()
    (folder / "other.csv").write_text(text.replace("2,B", "2,C"))
    both = Sources(questions=folder / "problems.json", annotations=folder / "other.csv")
    with pytest.raises(InputError, match=r"question 2 has two right answers, [BC] and [BC]"):
        score_answer_files(both, answers(folder, TEXTS))
    (folder / "other.csv").write_text("\n".join(text.splitlines()[:3]))
    with pytest.raises(InputError, match="has other questions than the file before it: 3, 5"):
        score_answer_files(
            Sources(questions=folder / "truth.csv", annotations=folder / "other.csv"),
            answers(folder, TEXTS),
        )
    with pytest.raises(UsageError, match="needs --questions or --annotations: problems"):
        score_answer_files(Sources(), answers(folder, TEXTS))


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("", f"\nLook.\nWhich?\nA. red\nB. green\nC. blue\n{LETTER_PROMPT}"),
        ("LEPA", "Which?\nContext: Look.\nOptions: (A) red (B) green (C) blue\n"),
        ("QCM-ALE", "Which?\nContext: Look.\nOptions: (A) red (B) green (C) blue\n"),
    ],
)  # fmt: skip
def test_prompts_have_the_requested_layout(folder: Path, layout: str, text: str) -> None:
    """The image precedes the text in LLaVA-1.5's layout, and follows it in those of LLaVA."""
    items = load_questions(Sources(questions=folder / "problems.json", prompt_layout=layout)).items
    turn = items[2].conversation.turns[0]
    assert turn.text.replace("Context: Look.\nWhich", "Look.\nWhich") == text
    assert [image.path for image in turn.images] == ["test/3/image.png"]
    assert isinstance(turn.parts[0], str) == bool(layout)


def test_llavas_question_files_are_asked_as_by_its_script(folder: Path) -> None:
    """In every layout of its converter: the image first, the ends stripped, a letter requested if it is the answer."""
    text = "Which?\nContext: Look.\nOptions: (A) red (B) green (C) blue"
    records = [
        {"id": "2", "conversations": [{"from": "human", "value": text},
                                      {"from": "gpt", "value": "L S The answer is B."}]},
        {"id": "3", "image": "3/image.png",
         "conversations": [{"from": "human", "value": f"{text.replace('Look.', 'N/A')}\nBECAUSE: L\n<image>"},
                           {"from": "gpt", "value": "LECTURE: L\n###\nANSWER: C."}]},
        {"id": "4", "image": "4/image.png",
         "conversations": [{"from": "human", "value": "<image>\nWhich?\nA. red\nB. green "},
                           {"from": "gpt", "value": "A"}]},
    ]  # fmt: skip
    path = folder / "llava_test_QCM-LEA.json"
    path.write_text(json.dumps(records))
    items = load_questions(Sources(questions=path)).items
    assert [item.conversation.turns[0].text for item in items] == [
        text,
        f"\n{text.replace('Look.', 'N/A')}\nBECAUSE: L",
        f"\nWhich?\nA. red\nB. green\n{LETTER_PROMPT}",
    ]
    assert [item.references for item in items] == [("B",), ("C",), ("A",)]
    assert [len(item.choices) for item in items] == [3, 3, 2]
    assert [item.slices for item in items] == [("TXT",), ("IMG",), ("IMG",)]
    first = items[1].conversation.turns[0].parts[0]
    assert not isinstance(first, str)
    with pytest.raises(UsageError, match="has its own prompts, so --prompt-layout LEPA has no"):
        load_questions(Sources(questions=path, prompt_layout="LEPA"))


def test_the_question_files_text_is_asked_next_to_problems(folder: Path) -> None:
    """Its text precedes that of problems.json, which adds subject and grade."""
    records = []
    for name, entry in PROBLEMS.items():
        text = f"<image>\nReworded {name}?\nA. red\nB. green\nC. blue"
        turns = {"human": text, "gpt": "ABC"[entry["answer"]]}
        conversations = [{"from": role, "value": value} for role, value in turns.items()]
        if entry["split"] == "test":
            records.append({"id": name, "image": f"{name}.png", "conversations": conversations})
    path = folder / "llava_test_CQM-A.json"
    path.write_text(json.dumps(records))
    items = load_questions(Sources(questions=path, annotations=folder / "problems.json")).items
    assert [item.conversation.turns[0].text.split("\n")[1] for item in items] == [
        f"Reworded {name}?" for name in ("1", "2", "3", "5")
    ]
    assert items[0].category == "NAT"


def test_letters_without_questions_cannot_be_loaded(folder: Path) -> None:
    """A table of correct answers has no questions."""
    with pytest.raises(UsageError, match="asking needs --questions"):
        load_questions(Sources(annotations=folder / "truth.csv"))


@pytest.mark.slow
def test_a_toolkits_table_gives_the_published_figure_of_images(
    third_party: Path, tmp_path: Path
) -> None:
    """VLMEvalKit has other ids and no questions without an image: they are matched by question, hint and choices."""
    data = third_party / "scienceqa"
    sources = Sources(
        questions=data / "llava_test_CQM-A.json", annotations=data / "test_answers.csv"
    )
    texts = json.loads((data / "test_sqa_llava_13b_v0.json").read_text())["outputs"]
    rows: list[dict[str, object]] = []
    for item in load_questions(sources).items:
        if "IMG" in item.slices:
            *hint, question = item.conversation.turns[0].text.strip().split("\nA. ")[0].split("\n")
            rows.append(
                {
                    "index": 90_000 + len(rows),
                    "question": question,
                    "hint": "\n".join(hint).removeprefix("Context: "),
                    **dict(zip("ABCDE", item.choices, strict=False)),
                    "answer": item.references[0],
                    "prediction": texts[item.id],
                }
            )
    path = write_json(tmp_path / "table.json", rows[::-1])
    metrics = score_answer_files(sources, path).metrics
    assert metrics == {"IMG": pytest.approx(88.0, abs=0.01), "questions": 2017, "parse_failures": 0}
