"""MME: LaVIN's published figures, pairs found by image, and LLaVA's layout joined with the truth."""

import json
import shutil
from pathlib import Path

import pytest

from caldera.errors import InputError, UsageError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.mme import COGNITION, SIZES, load_questions, score_answer_files
from caldera.instructions.request_phrases import SHORT_ANSWER

ASK = "Please answer yes or no."


@pytest.fixture
def cognition(tmp_path: Path) -> Path:
    """The four sub-tasks of cognition, two images each in mixed order; all right but one."""
    folder = tmp_path / "cognition"
    folder.mkdir()
    for subtask in COGNITION:
        lines = [
            f"2.png\tIs it two? {ASK}\tYes\tYes, it is two.",
            f"1.png\tIs it one? {ASK}\tYes\tyes",
            f"1.png\tIs it six? {ASK}\tNo\tno",
            f"2.png\tIs it six? {ASK}\tNo\tHm",
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


def test_the_published_figures_come_out(third_party: Path, tmp_path: Path) -> None:
    """LaVIN's folder gives its paper's sums, and so do the same answers in LLaVA's layout."""
    folder = third_party / "mme" / "LaVIN"
    figures = score_answer_files(Sources(), folder).metrics
    assert (round(figures["perception"], 2), round(figures["cognition"], 2)) == (963.61, 249.64)
    assert (figures["existence"], figures["OCR"], figures["code_reasoning"]) == (185.0, 107.5, 50.0)
    assert (figures["questions"], figures["parse_failures"]) == (2374, 12)
    assert "other_sizes" not in figures
    llava = as_llava(folder, tmp_path / "a.jsonl")
    assert score_answer_files(Sources(annotations=folder), llava).metrics == figures
    assert score_answer_files(Sources(annotations=folder), folder).metrics == figures


def test_a_part_by_hand(cognition: Path) -> None:
    """Three of four right is 75, one of two images is 50; an answer that says neither is wrong and counted."""
    score = score_answer_files(Sources(), cognition)
    assert score.metrics == {
        "cognition": 500.0, **dict.fromkeys(COGNITION, 125.0), "questions": 16, "parse_failures": 4,
        "other_sizes": {name: f"4 of {size}" for name, size in COGNITION.items()},
    }  # fmt: skip
    assert len(score.unparsed) == 4
    assert sum(score.item_scores.values()) == 12
    assert score.overall == 500 / 800


def test_answers_meet_the_truth_by_what_they_ask(cognition: Path, tmp_path: Path) -> None:
    """JSON lines in another order give the same; the release's folders of questions are read as well."""
    answers = as_llava(cognition, tmp_path / "a.jsonl")
    figures = score_answer_files(Sources(), cognition).metrics
    assert score_answer_files(Sources(annotations=cognition), answers).metrics == figures
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
    assert score_answer_files(Sources(annotations=release), answers).metrics == figures
    [first, *_] = load_questions(Sources(annotations=release)).items
    assert first.conversation.images == ("code_reasoning/images/1.png",)


def test_what_is_not_whole_is_refused(cognition: Path, tmp_path: Path) -> None:
    """A sub-task, a line of a pair, an answer, or the truth is missing: an error names it."""
    code = cognition / "code_reasoning.txt"
    text = code.read_text()
    cases = {
        text.replace("2.png\tIs it six", "3.png\tIs it six"): "should have two questions each: code_reasoning/2.png, ",
        text.replace("six? Please answer yes or no.\tNo\tHm", "two?\tNo\tno"): "more than once: code_reasoning/2.png",
        text.replace("\tHm", ""): "has 1 lines without an answer: code_reasoning/2.png: Is it six",
        text.replace("\tNo\tHm", ""): "code_reasoning.txt:4 should be image, question, truth and answer",
        text.replace("\tNo\tHm", "\tNo!\tHm"): "the truth should be Yes or No, got 'No!'",
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


def test_json_lines_need_truth_and_prompts(cognition: Path, tmp_path: Path) -> None:
    """Without truth, without the question, answered twice, or not at all."""
    answers = as_llava(cognition, tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="answers in JSON need --truth"):
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
    with pytest.raises(InputError, match=r"came with another truth for code_reasoning/1\.png"):
        score_answer_files(Sources(annotations=cognition), other)


def test_there_are_fourteen_sub_tasks() -> None:
    """2,374 questions in all."""
    assert (len(SIZES), sum(SIZES.values())) == (14, 2374)


def test_answers_that_are_not_there_are_said_to_be_missing(tmp_path: Path) -> None:
    """Before it is asked what they would need."""
    with pytest.raises(InputError, match=r"cannot read .*nowhere: No such file"):
        score_answer_files(Sources(), tmp_path / "nowhere")
