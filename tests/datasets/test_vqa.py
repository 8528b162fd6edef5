"""VQA v2's two files become a conversation an image: answers, sentences, files, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from caldera.conversation import to_record
from caldera.datasets.importer import AnswerPromptPlacement, ImportOptions
from caldera.datasets.vqa import import_vqa
from caldera.errors import InputError
from caldera.files.skipped import SkippedItems
from caldera.instructions.request_phrases import SHORT_ANSWER

ASKED = [
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
"""Of a question with two most common answers; the others' official answer is absent, as in OK-VQA."""


def folder_of(root: Path, *, split: str = "train2014") -> Path:
    """A folder laid out as VQA v2's, its images by COCO's names of 2014 and of 2017."""
    questions = [
        {"image_id": image, "question": text, "question_id": number}
        for image, number, text in ASKED
    ]
    annotations: list[dict[str, Any]] = [
        {
            "image_id": image,
            "question_id": number,
            "answer_type": "other",
            "answers": [
                {"answer": text, "answer_id": at} for at, text in enumerate(ANSWERS[number])
            ],
        }
        | ({"multiple_choice_answer": OFFICIAL[number]} if number in OFFICIAL else {})
        for image, number, _ in reversed(ASKED)
    ]
    head = {"data_type": "mscoco", "data_subtype": split}
    asked = root / f"v2_OpenEnded_mscoco_{split}_questions.json"
    asked.write_text(json.dumps({**head, "questions": questions}))
    answered = root / f"v2_mscoco_{split}_annotations.json"
    answered.write_text(json.dumps({**head, "annotations": annotations}))
    (root / split).mkdir()
    (root / split / f"COCO_{split}_000000000009.jpg").touch()
    (root / split / "000000000025.jpg").touch()
    return root


def changed(path: Path, field: str, index: int, change: dict[str, Any]) -> None:
    """Change one entry of a file."""
    content = json.loads(path.read_text())
    content[field][index] |= change
    path.write_text(json.dumps(content))


def values(root: Path, **options: Any) -> list[list[str]]:  # noqa: ANN401 - of ImportOptions
    """All texts of each conversation."""
    imported = import_vqa(root, SkippedItems(), ImportOptions(**options))
    assert imported.total == 5
    records = [to_record(one) for one in imported.conversations]
    return [[turn["value"] for turn in record["conversations"]] for record in records]  # type: ignore[attr-defined]


def test_questions_about_one_image_make_one_conversation(tmp_path: Path) -> None:
    """In the file's order, each with the sentence; the answer is what most said, of a tie the official one."""
    imported = import_vqa(folder_of(tmp_path), SkippedItems(), ImportOptions())

    assert [one.id for one in imported.conversations] == ["COCO_train2014_000000000009", "000000000025"]  # fmt: skip
    assert [one.images for one in imported.conversations] == [
        (str(tmp_path / "train2014" / "COCO_train2014_000000000009.jpg"),),
        (str(tmp_path / "train2014" / "000000000025.jpg"),),
    ]
    assert values(tmp_path) == [
        [f"<image>\nIs it red?\n{SHORT_ANSWER}", "yes", f"What is it?\n{SHORT_ANSWER}", "cat",
         f"Where?\n{SHORT_ANSWER}", "on table"],
        [f"<image>\nHow many?\n{SHORT_ANSWER}", "3", f"Who?\n{SHORT_ANSWER}", "ann"],
    ]  # fmt: skip


@pytest.mark.parametrize(("sentences", "expected"), [("each", 5), ("first", 2), ("none", 0)])
def test_the_sentence_stands_where_it_is_wanted(
    tmp_path: Path, sentences: AnswerPromptPlacement, expected: int
) -> None:
    """At every question, at the first of each conversation, or nowhere."""
    said = values(folder_of(tmp_path), sentences=sentences)
    assert sum(SHORT_ANSWER in text for texts in said for text in texts) == expected
    assert all(SHORT_ANSWER in texts[0] for texts in said) == (expected > 0)


def test_typed_answers_are_taken_before_stems(tmp_path: Path) -> None:
    """OK-VQA's `answer` is cut to stems; `raw_answer` is what a person wrote."""
    [path] = folder_of(tmp_path).glob("*annotations.json")
    raw = [{"answer": "race", "raw_answer": "racing"}, {"answer": "sport", "raw_answer": "sports"}]
    changed(path, "annotations", 4, {"answers": [*raw, raw[0]]})
    assert values(tmp_path)[0][1] == "racing"


def test_a_split_is_chosen_by_name(tmp_path: Path) -> None:
    """Of two in a folder one is named, or the file is given, with the answers' beside it or elsewhere."""
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
        InputError, match=r"has 0 files \*val2014_annotations.json; name that of the"
    ):
        import_vqa(questions, SkippedItems(), ImportOptions())
    assert values(questions, answers=answers) == by_name
    assert values(questions, answers=answers, find=False, images=Path("nowhere")) == by_name


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
def test_a_bad_question_is_refused_or_left_out_and_listed(
    tmp_path: Path, field: str, change: dict[str, Any], message: str
) -> None:
    """The fault names file, place and what to do; the other four are read."""
    [path] = folder_of(tmp_path).glob(f"*{field}.json")
    changed(path, field, 4 if field == "questions" else 0, change)

    with pytest.raises(InputError) as caught:
        import_vqa(tmp_path, SkippedItems(), ImportOptions())
    assert message in str(caught.value)
    skips = SkippedItems(0.2)
    imported = import_vqa(tmp_path, skips, ImportOptions())
    assert [len(one.turns) for one in imported.conversations] == [6, 2]
    assert [skip.location.endswith("questions.4") for skip in skips.items] == [True]


def test_a_missing_image_takes_its_questions_with_it(tmp_path: Path) -> None:
    """Each of them is counted."""
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
        ("[]", "has no list 'questions' with something in it; give VQA v2's file of questions"),
        ('{"questions": []}', "has no list 'questions'"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """Broken JSON, another form, nothing in it."""
    [path] = folder_of(tmp_path).glob("*questions.json")
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        import_vqa(tmp_path, SkippedItems(), ImportOptions())
