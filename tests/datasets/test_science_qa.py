"""ScienceQA's problems in every layout; splits, images and errors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from caldera.conversation import to_record
from caldera.datasets.importer import ImportOptions
from caldera.datasets.science_qa import ANSWERS, QUESTIONS, Problem, import_science_qa, parse_layout
from caldera.errors import InputError, UnknownNameError
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.request_phrases import LETTER_PROMPT

PROBLEMS: dict[str, dict[str, Any]] = {
    "1": {
        "question": "Which is  a star?", "choices": ["the Sun", "the Moon", "Mars"], "answer": 0, "hint": "Look up.",
        "image": "image.png", "lecture": "A star shines.\nIt is hot.", "solution": "The Sun shines.", "split": "train",
        "task": "closed choice", "grade": "grade2",
    },
    "4": {"question": "Is ice cold?", "choices": ["no", "yes"], "answer": 1, "hint": "", "image": None,
          "lecture": "", "solution": "It is frozen.", "split": "test"},
    "5": {"question": "Question: what?", "choices": ["a", "b"], "answer": 1, "hint": " ", "image": None,
          "lecture": "L", "solution": "", "split": "train"},
    "7": {"question": "Where?", "choices": ["here", "there"], "answer": 0, "hint": "H", "image": "image.png",
          "lecture": "L", "solution": "S", "split": "val"},
    "9": {"question": "Who?", "choices": ["I", "you"], "answer": 1, "hint": "H", "image": None,
          "lecture": "L", "solution": "S", "split": "train"},
}  # fmt: skip
SPLITS = {"train": ["1", "9", "5"], "test": ["4"], "val": ["7"]}

QUESTION = "Which is a star?\nContext: Look up.\nOptions: (A) the Sun (B) the Moon (C) Mars"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the five problems as ScienceQA has them, with both images."""
    (tmp_path / "problems.json").write_text(json.dumps(PROBLEMS))
    (tmp_path / "pid_splits.json").write_text(json.dumps(SPLITS))
    for name in ("images/train/1", "images/val/7"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "image.png").touch()
    return tmp_path


def texts(folder: Path, layout: str, split: str | None = None) -> list[tuple[str, str]]:
    """Return question and answer of each problem of a split."""
    options = ImportOptions(layout=layout, split=split)
    records = [
        to_record(conversation)
        for conversation in import_science_qa(folder, SkippedItems(), options).conversations
    ]
    return [
        (record["conversations"][0]["value"], record["conversations"][1]["value"])  # type: ignore[index]
        for record in records
    ]


@pytest.mark.parametrize(
    ("layout", "question", "answer"),
    [
        ("QCM-A", f"{QUESTION}\n<image>", "The answer is A."),
        ("QCM-LEA", f"{QUESTION}\n<image>", "A star shines.\nIt is hot. The Sun shines. The answer is A."),
        ("QCM-ALE", f"{QUESTION}\n<image>", "The answer is A. BECAUSE: A star shines.\nIt is hot. The Sun shines."),
        ("QCM-AL", f"{QUESTION}\n<image>", "The answer is A. BECAUSE: The Sun shines."),
        ("QCM-AE", f"{QUESTION}\n<image>", "The answer is A. BECAUSE: A star shines.\nIt is hot."),
        ("QCM-LEPA", f"{QUESTION}\n<image>",
         "LECTURE: A star shines.\nIt is hot.\nSOLUTION: The Sun shines.\n###\nANSWER: A."),
        ("CQM-A", "Context: Look up.\nQuestion: Which is a star?\nOptions: (A) the Sun (B) the Moon (C) Mars\n<image>",
         "The answer is A."),
        ("letter", f"<image>\nContext: Look up.\nWhich is a star?\nA. the Sun\nB. the Moon\nC. Mars\n{LETTER_PROMPT}",
         "A"),
    ],
)  # fmt: skip
def test_each_layout_gives_the_exact_text(
    folder: Path, layout: str, question: str, answer: str
) -> None:
    """Two spaces become one; the image follows the question, in LLaVA-1.5's layout it precedes it."""
    assert texts(folder, layout)[0] == (question, answer)


def test_empty_fields_add_no_text(folder: Path) -> None:
    """An empty hint is N/A or no line; LEPA has no line for a missing lecture."""
    assert texts(folder, "QCM-LEPA", "test") == [
        (
            "Is ice cold?\nContext: N/A\nOptions: (A) no (B) yes",
            "SOLUTION: It is frozen.\n###\nANSWER: B.",
        )
    ]
    assert texts(folder, "QCM-LEA", "test")[0][1] == "It is frozen. The answer is B."
    assert texts(folder, "QCM-LEA")[2] == (
        "what?\nContext: N/A\nOptions: (A) a (B) b",
        "L The answer is B.",
    )
    assert texts(folder, "letter", "test")[0][0] == f"Is ice cold?\nA. no\nB. yes\n{LETTER_PROMPT}"


def write(layout: str, **fields: str) -> tuple[str, str]:
    """Return question and answer of a problem with other texts in some fields."""
    problem, functions = Problem.model_validate(PROBLEMS["9"] | fields), parse_layout(layout)
    return functions.question(problem), functions.answer(problem)


def test_an_announced_reason_that_is_missing_takes_every_announcement_with_it() -> None:
    """As in LLaVA's converter: "BECAUSE:" at the end of a text is removed, there and wherever else it occurs."""
    assert write("QCM-ALE", lecture="", solution="")[1] == "The answer is B."
    assert write("QCM-AE", lecture=" ")[1] == "The answer is B."
    assert (
        write("QCM-ALE", lecture="BECAUSE: of", solution="BECAUSE:")[1] == "The answer is B.   of"
    )
    assert write("QCM-ALE", lecture="", solution="S")[1] == "The answer is B. BECAUSE: S"
    assert write("QCML-A", lecture="")[0] == "Who?\nContext: H\nOptions: (A) I (B) you"


def test_reasons_in_the_question_measure_an_upper_bound() -> None:
    """They follow the choices or precede them, after "BECAUSE:"."""
    question, context, options = "Who?", "Context: H", "Options: (A) I (B) you"
    for layout, lines in {
        "QCML": (question, context, options, "BECAUSE: L"),
        "QCME": (question, context, options, "BECAUSE: S"),
        "QCMLE": (question, context, options, "BECAUSE: L S"),
        "QCLM": (question, context, "BECAUSE: L", options),
        "QCEM": (question, context, "BECAUSE: S", options),
        "QCLEM": (question, context, "BECAUSE: L S", options),
    }.items():
        assert write(f"{layout}-A")[0] == "\n".join(lines)


def test_texts_are_cleaned_in_the_order_of_llavas_converter() -> None:
    """Two spaces become one before a label is removed: an answer without reasons begins with one of three spaces."""
    assert write("QCM-LEA", lecture="", solution="")[1] == " The answer is B."
    assert write("QCM-A", question="Question:   who?")[0].startswith(" who?\nContext: H")
    assert write("QCM-EA", solution="Answer:  one  two")[1] == "one two The answer is B."


def test_every_layout_of_the_table_works(folder: Path) -> None:
    """Each of the eighty layouts has the letter in its answer; any other name is an error."""
    layouts = [f"{question}-{answer}" for question in QUESTIONS for answer in ANSWERS]
    assert len(layouts) == 80
    for layout in layouts:
        answers = [answer for _, answer in texts(folder, layout)]
        assert all(
            re.search(rf"(answer is|ANSWER:) {letter}\.", text)
            for letter, text in zip("ABB", answers, strict=True)
        )
    with pytest.raises(
        UnknownNameError, match="no layout is called 'QCM-LE'; did you mean 'QCM-LEA'"
    ):
        parse_layout("QCM-LE")


def test_a_split_is_the_lists_order(folder: Path) -> None:
    """Ids as in pid_splits.json, train by default; images as in ScienceQA or in LLaVA's copy."""
    imported = import_science_qa(folder, SkippedItems(), ImportOptions())
    assert [record.id for record in imported.conversations] == ["1", "9", "5"]
    assert imported.conversations[0].images == (str(folder / "images/train/1/image.png"),)
    flat = folder / "flat"
    (flat / "7").mkdir(parents=True)
    (flat / "7" / "image.png").touch()
    options = ImportOptions(split="val", images=flat)
    [record] = import_science_qa(folder, SkippedItems(), options).conversations
    assert record.images == (str(flat / "7/image.png"),)
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        import_science_qa(folder, SkippedItems(), ImportOptions(split="trian"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "the answer is 2, but there are 2 choices; correct it"),
        ({"answer": -1}, "answer: input should be greater than or equal to 0"),
        ({"choices": ["a"]}, "choices: list should have at least 2 items"),
        ({"question": ""}, "question: string should have at least 1 character"),
        (
            {"question": "What is <image>?"},
            "its text contains <image>, the placeholder of an image",
        ),
        ({"image": "image.png"}, "does not exist; check --images"),
        (None, "pid_splits.json lists it, but problems.json does not have it"),
    ],
)
def test_an_invalid_problem_is_an_error_or_skipped_and_listed(
    folder: Path, change: dict[str, Any] | None, message: str
) -> None:
    """The error names file and problem; the others are read."""
    broken = {key: value for key, value in PROBLEMS.items() if key != "9"}
    if change is not None:
        broken["9"] = PROBLEMS["9"] | change
    (folder / "problems.json").write_text(json.dumps(broken))
    with pytest.raises(InputError) as caught:
        import_science_qa(folder, SkippedItems(), ImportOptions())
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{folder / 'problems.json'}: problem 9: ")
    skips = SkippedItems(0.4)
    imported = import_science_qa(folder, skips, ImportOptions())
    assert [record.id for record in imported.conversations] == ["1", "5"]
    assert len(skips.items) == 1


@pytest.mark.parametrize("content", [None, "[]", "{"])
@pytest.mark.parametrize("name", ["problems.json", "pid_splits.json"])
def test_another_file_is_an_error(folder: Path, name: str, content: str | None) -> None:
    """The file is missing, has another format, or is broken."""
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(
        InputError, match=rf"{name}( is broken JSON| should hold a JSON object|: No su)"
    ):
        import_science_qa(folder, SkippedItems(), ImportOptions())


def test_llavas_own_question_file_has_the_same_text(third_party: Path) -> None:
    """Each of the 4,241 questions of LLaVA-1.5, split into a problem and rendered again, is the same text.

    That file does not mark the end of a context; any split gives the same text.
    """
    folder = third_party / "scienceqa"
    rows = json.loads((folder / "llava_test_CQM-A.json").read_text())
    assert len(rows) == 4241
    layout = parse_layout("letter")
    for row in rows:
        text, letter = (turn["value"] for turn in row["conversations"])
        body = text.removeprefix("<image>\n")
        head, *choices = re.split(r"\n[A-E]\. ", body)
        context, _, question = head.removeprefix("Context: ").rpartition("\n")
        hint = context if head.startswith("Context: ") else ""
        problem = Problem(
            question=question if hint else head, choices=choices, answer="ABCDE".index(letter), hint=hint
        )  # fmt: skip
        assert layout.question(problem) == f"{body}\n{LETTER_PROMPT}"
        assert layout.answer(problem) == letter


def test_the_real_splits_are_the_real_files(third_party: Path) -> None:
    """LLaVA's question file has the test split's problems in its order."""
    folder = third_party / "scienceqa"
    splits = json.loads((folder / "pid_splits.json").read_text())
    rows = json.loads((folder / "llava_test_CQM-A.json").read_text())
    assert [row["id"] for row in rows] == splits["test"]
    assert len(splits["train"]) == 12_726
