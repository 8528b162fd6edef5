"""VQA v2's two files become one conversation per image: answers, prompts, files and errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from caldera.conversation import to_record
from caldera.datasets.importer import AnswerPromptPlacement, ImportOptions
from caldera.datasets.vqa import import_vqa
from caldera.errors import InputError
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.request_phrases import SHORT_ANSWER

QUESTIONS = [
    (9, 90, "Is it red?"),
    (25, 250, "How many?"),
    (9, 91, " What is\nit? "),
    (9, 92, "Where?"),
    (25, 251, "Who?"),
]
"""Five questions about two images: (image, question, text)."""

ANSWERS = {
    90: ["yes"] * 6 + ["no"] * 4,
    250: ["2", "3", "3", "2", " 3 "],
    91: ["dog", "cat", "cat", "dog"],
    92: ["on table", "table", "on table"],
    251: ["", "ann"],
}
OFFICIAL = {91: "cat"}
"""Official answer of a question with two most frequent answers; the others have none, as in OK-VQA."""


def folder_of(root: Path, *, split: str = "train2014") -> Path:
    """Write a folder as VQA v2 has it, with image names of COCO 2014 and of COCO 2017."""
    questions = [
        {"image_id": image, "question": text, "question_id": number}
        for image, number, text in QUESTIONS
    ]
    annotations: list[dict[str, Any]] = [
        {
            "image_id": image,
            "question_id": number,
            "answer_type": "other",
            "answers": [
                {"answer": text, "answer_id": index} for index, text in enumerate(ANSWERS[number])
            ],
        }
        | ({"multiple_choice_answer": OFFICIAL[number]} if number in OFFICIAL else {})
        for image, number, _ in reversed(QUESTIONS)
    ]
    head = {"data_type": "mscoco", "data_subtype": split}
    questions_file = root / f"v2_OpenEnded_mscoco_{split}_questions.json"
    questions_file.write_text(json.dumps({**head, "questions": questions}))
    answers_file = root / f"v2_mscoco_{split}_annotations.json"
    answers_file.write_text(json.dumps({**head, "annotations": annotations}))
    (root / split).mkdir()
    (root / split / f"COCO_{split}_000000000009.jpg").touch()
    (root / split / "000000000025.jpg").touch()
    return root


def change_entry(path: Path, field: str, index: int, change: dict[str, Any]) -> None:
    """Change one entry of a file."""
    content = json.loads(path.read_text())
    content[field][index] |= change
    path.write_text(json.dumps(content))


def values(root: Path, **options: Any) -> list[list[str]]:  # noqa: ANN401 - of ImportOptions
    """Return all texts of each conversation."""
    imported = import_vqa(root, SkippedItems(), ImportOptions(**options))
    assert imported.total == 5
    records = [to_record(record) for record in imported.conversations]
    return [[turn["value"] for turn in record["conversations"]] for record in records]  # type: ignore[attr-defined]


def test_questions_about_one_image_make_one_conversation(tmp_path: Path) -> None:
    """In the file's order, each with the prompt; the answer is the most frequent, in a tie the official one."""
    imported = import_vqa(folder_of(tmp_path), SkippedItems(), ImportOptions())

    assert [record.id for record in imported.conversations] == [
        "COCO_train2014_000000000009",
        "000000000025",
    ]
    assert [record.images for record in imported.conversations] == [
        (str(tmp_path / "train2014" / "COCO_train2014_000000000009.jpg"),),
        (str(tmp_path / "train2014" / "000000000025.jpg"),),
    ]
    assert values(tmp_path) == [
        [f"<image>\nIs it red?\n{SHORT_ANSWER}", "yes", f"What is it?\n{SHORT_ANSWER}", "cat",
         f"Where?\n{SHORT_ANSWER}", "on table"],
        [f"<image>\nHow many?\n{SHORT_ANSWER}", "3", f"Who?\n{SHORT_ANSWER}", "ann"],
    ]  # fmt: skip


@pytest.mark.parametrize(("placement", "expected"), [("each", 5), ("first", 2), ("none", 0)])
def test_the_answer_prompt_follows_the_chosen_questions(
    tmp_path: Path, placement: AnswerPromptPlacement, expected: int
) -> None:
    """Every question has it, or the first of each conversation, or none."""
    conversations = values(folder_of(tmp_path), answer_prompt=placement)
    assert sum(SHORT_ANSWER in text for texts in conversations for text in texts) == expected
    assert all(SHORT_ANSWER in texts[0] for texts in conversations) == (expected > 0)


def test_typed_answers_take_precedence_over_stems(tmp_path: Path) -> None:
    """OK-VQA's `answer` is reduced to stems; `raw_answer` is what a person typed."""
    [path] = folder_of(tmp_path).glob("*annotations.json")
    raw = [{"answer": "race", "raw_answer": "racing"}, {"answer": "sport", "raw_answer": "sports"}]
    change_entry(path, "annotations", 4, {"answers": [*raw, raw[0]]})
    assert values(tmp_path)[0][1] == "racing"


def test_a_split_is_chosen_by_name(tmp_path: Path) -> None:
    """Of two splits in a folder one is named, or its file is given, with the answers next to it or elsewhere."""
    folder_of(tmp_path)
    folder_of(tmp_path, split="val2014")
    with pytest.raises(
        InputError, match=r"has 2 files \*_questions.json .* name a split with --sp"
    ):
        import_vqa(tmp_path, SkippedItems(), ImportOptions())
    by_name = values(tmp_path, split="val2014")
    questions = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    assert values(questions) == by_name
    answers = (tmp_path / "v2_mscoco_val2014_annotations.json").rename(tmp_path / "answers.json")
    with pytest.raises(
        InputError, match=r"has 0 files \*val2014_annotations.json; name the file of the"
    ):
        import_vqa(questions, SkippedItems(), ImportOptions())
    assert values(questions, answers=answers) == by_name
    assert values(questions, answers=answers, check_exists=False, images=Path("nowhere")) == by_name


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("questions", {"question": " "}, "the question is empty"),
        ("questions", {"question": None}, "question: input should be a valid string"),
        ("questions", {"question_id": 7}, "question 7 has no annotation"),
        ("questions", {"image_id": 26}, "image_id is 25, but 26 in question 251; correct one"),
        ("annotations", {"answers": [{"answer": " "}]}, "there is no answer"),
        ("annotations", {"answers": [3]}, "answers.0: "),
    ],
)
def test_an_invalid_question_is_an_error_or_skipped_and_listed(
    tmp_path: Path, field: str, change: dict[str, Any], message: str
) -> None:
    """The error names the location and what to do; the other four are read."""
    [path] = folder_of(tmp_path).glob(f"*{field}.json")
    change_entry(path, field, 4 if field == "questions" else 0, change)

    with pytest.raises(InputError) as caught:
        import_vqa(tmp_path, SkippedItems(), ImportOptions())
    assert message in str(caught.value)
    skips = SkippedItems(0.2)
    imported = import_vqa(tmp_path, skips, ImportOptions())
    assert [len(record.turns) for record in imported.conversations] == [6, 2]
    assert [skip.location.endswith("questions.4") for skip in skips.items] == [True]


def test_questions_about_a_missing_image_are_skipped(tmp_path: Path) -> None:
    """Each question is counted."""
    (folder_of(tmp_path) / "train2014" / "000000000025.jpg").unlink()
    with pytest.raises(InputError, match=r"000000000025.jpg does not exist; check --images"):
        import_vqa(tmp_path, SkippedItems(), ImportOptions())
    skips = SkippedItems(0.4)
    assert len(import_vqa(tmp_path, skips, ImportOptions()).conversations) == 1
    assert len(skips.items) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is broken JSON"),
        ("[]", "has no list 'questions', or an empty one; give VQA v2's file of questions"),
        ('{"questions": []}', "has no list 'questions'"),
    ],
)
def test_another_file_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    """The file is broken JSON, has another format, or is empty."""
    [path] = folder_of(tmp_path).glob("*questions.json")
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        import_vqa(tmp_path, SkippedItems(), ImportOptions())
