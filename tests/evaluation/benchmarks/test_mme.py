"""MME: LaVIN's published metrics, pairs by image, and LLaVA's layout with MME's labels."""

import json
import shutil
from pathlib import Path

import pytest

from caldera.errors import InputError, UsageError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.mme import COGNITION, SIZES, load_questions, score_answer_files
from caldera.instructions.request_phrases import SHORT_ANSWER

INSTRUCTION = "Please answer yes or no."


@pytest.fixture
def cognition(tmp_path: Path) -> Path:
    """The four sub-tasks of cognition, two images each in mixed order; one answer per sub-task is wrong."""
    folder = tmp_path / "cognition"
    folder.mkdir()
    for subtask in COGNITION:
        lines = [
            f"2.png\tIs it two? {INSTRUCTION}\tYes\tYes, it is two.",
            f"1.png\tIs it one? {INSTRUCTION}\tYes\tyes",
            f"1.png\tIs it six? {INSTRUCTION}\tNo\tno",
            f"2.png\tIs it six? {INSTRUCTION}\tNo\tHm",
        ]
        (folder / f"{subtask}.txt").write_text("\n".join(lines) + "\n")
    return folder


def as_llava(folder: Path, file: Path) -> Path:
    """Write a folder's answers as LLaVA's JSON lines, in reverse."""
    lines = [
        {"question_id": f"{path.stem}/{cells[0]}", "prompt": f"{cells[1]}\n{SHORT_ANSWER}", "text": cells[3]}
        for path in sorted(folder.glob("*.txt"))
        for cells in (line.split("\t") for line in path.read_text().splitlines())
    ]  # fmt: skip
    file.write_text("".join(f"{json.dumps(line)}\n" for line in reversed(lines)))
    return file


def test_the_published_figures_are_reproduced(third_party: Path, tmp_path: Path) -> None:
    """LaVIN's folder gives its paper's sums, and the same answers in LLaVA's layout give the same."""
    folder = third_party / "mme" / "LaVIN"
    metrics = score_answer_files(Sources(), folder).metrics
    assert (round(metrics["perception"], 2), round(metrics["cognition"], 2)) == (963.61, 249.64)
    assert (metrics["existence"], metrics["OCR"], metrics["code_reasoning"]) == (185.0, 107.5, 50.0)
    assert (metrics["questions"], metrics["parse_failures"]) == (2374, 12)
    assert "other_sizes" not in metrics
    llava = as_llava(folder, tmp_path / "a.jsonl")
    assert score_answer_files(Sources(annotations=folder), llava).metrics == metrics
    assert score_answer_files(Sources(annotations=folder), folder).metrics == metrics


def test_cognition_worked_by_hand(cognition: Path) -> None:
    """Three of four answers give 75, one of two images 50; an answer without yes or no is wrong and counted."""
    score = score_answer_files(Sources(), cognition)
    assert score.metrics == {
        "cognition": 500.0, **dict.fromkeys(COGNITION, 125.0), "questions": 16, "parse_failures": 4,
        "other_sizes": {name: f"4 of {size}" for name, size in COGNITION.items()},
    }  # fmt: skip
    assert len(score.unparsed) == 4
    assert sum(score.item_scores.values()) == 12
    assert score.overall == 500 / 800


def test_answers_are_matched_by_their_questions(cognition: Path, tmp_path: Path) -> None:
    """JSON lines in another order give the same metrics, also with the question folders of the release."""
    answers = as_llava(cognition, tmp_path / "a.jsonl")
    metrics = score_answer_files(Sources(), cognition).metrics
    assert score_answer_files(Sources(annotations=cognition), answers).metrics == metrics
    release = tmp_path / "release"
    for path in cognition.glob("*.txt"):
        (release / path.stem / "images").mkdir(parents=True)
        (release / path.stem / "questions_answers_YN").mkdir()
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        for number in "12":
            (release / path.stem / "images" / f"{number}.png").touch()
            lines = [f"{row[1]}\t{row[2]}" for row in rows if row[0] == f"{number}.png"]
            (release / path.stem / "questions_answers_YN" / f"{number}.txt").write_text(
                "\n".join(lines)
            )
    assert score_answer_files(Sources(annotations=release), answers).metrics == metrics
    [first, *_] = load_questions(Sources(annotations=release)).items
    assert first.conversation.images == ("code_reasoning/images/1.png",)


def test_incomplete_folders_are_rejected(cognition: Path, tmp_path: Path) -> None:
    """The error names the missing sub-task, question, answer or label."""
    code = cognition / "code_reasoning.txt"
    text = code.read_text()
    cases = {
        text.replace("2.png\tIs it six", "3.png\tIs it six"): "should have two questions each: code_reasoning/2.png, ",
        text.replace("six? Please answer yes or no.\tNo\tHm", "two?\tNo\tno"): "more than once: code_reasoning/2.png",
        text.replace("\tHm", ""): "has 1 lines without an answer: code_reasoning/2.png: Is it six",
        text.replace("\tNo\tHm", ""): "code_reasoning.txt:4 should be image, question, correct answer and answer",
        text.replace("\tNo\tHm", "\tNo!\tHm"): "the correct answer should be Yes or No, got 'No!'",
    }  # fmt: skip
    for changed, message in cases.items():
        assert changed != text
        code.write_text(changed)
        with pytest.raises(InputError, match=message.replace("?", r"\?")):
            score_answer_files(Sources(), cognition)
    code.write_text(text)
    code.rename(cognition / "code_reasonin.txt")
    with pytest.raises(InputError, match="no sub-task is called 'code_reasonin'; did you mean"):
        score_answer_files(Sources(), cognition)
    (cognition / "code_reasonin.txt").unlink()
    with pytest.raises(InputError, match="sum over 4 sub-tasks; missing: code_reasoning"):
        score_answer_files(Sources(), cognition)


def test_json_lines_need_labels_and_prompts(cognition: Path, tmp_path: Path) -> None:
    """Missing labels, missing prompts, and repeated or missing answers are errors."""
    answers = as_llava(cognition, tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="answers without the correct ones need --annotations"):
        score_answer_files(Sources(), answers)
    lines = answers.read_text().splitlines()
    answers.write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match=r"1 of 16 items have no answer: text_translation/2\.png"):
        score_answer_files(Sources(annotations=cognition), answers)
    answers.write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(InputError, match=r"answers text_translation/2\.png a second time"):
        score_answer_files(Sources(annotations=cognition), answers)
    answers.write_text('{"question_id": "count/1.png", "text": "yes"}')
    with pytest.raises(
        InputError, match="the question as prompt, since two questions share each id"
    ):
        score_answer_files(Sources(annotations=cognition), answers)
    other = shutil.copytree(cognition, tmp_path / "other")
    changed = (other / "code_reasoning.txt").read_text().replace("Yes\tyes", "No\tyes")
    (other / "code_reasoning.txt").write_text(changed)
    with pytest.raises(InputError, match=r"have another correct answer for code_reasoning/1\.png"):
        score_answer_files(Sources(annotations=cognition), other)


def test_prompts_have_llavas_instruction_in_place_of_mmes(cognition: Path) -> None:
    """With the spaces before it, of which MME has none, one or two; the id keeps its form."""
    code = cognition / "code_reasoning.txt"
    text = code.read_text().replace(f"two? {INSTRUCTION}", f"two?  {INSTRUCTION}")
    code.write_text(text.replace(f"one? {INSTRUCTION}", f"one\uff1f{INSTRUCTION}"))
    items = load_questions(Sources(annotations=cognition)).items
    assert [item.conversation.turns[0].text for item in items[:3]] == [
        f"\nIs it two?\n{SHORT_ANSWER}",
        f"\nIs it one\uff1f\n{SHORT_ANSWER}",
        f"\nIs it six?\n{SHORT_ANSWER}",
    ]
    assert items[0].id == "code_reasoning/2.png: Is it two?"


def test_there_are_fourteen_sub_tasks() -> None:
    """They have 2,374 questions in total."""
    assert (len(SIZES), sum(SIZES.values())) == (14, 2374)


def test_a_missing_answer_file_is_named(tmp_path: Path) -> None:
    """This precedes the check for annotations."""
    with pytest.raises(InputError, match=r"cannot read .*nowhere: No such file"):
        score_answer_files(Sources(), tmp_path / "nowhere")
