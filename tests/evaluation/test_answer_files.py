"""Answer files: all layouts give the same texts, and every fault is an error that lists the ids."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.errors import InputError, UsageError
from caldera.evaluation.answer_files import AnswerOptions, read_answers
from tests.evaluation.answer_formats import (
    Row,
    sample,
    write_json,
    write_lines,
    write_table,
)

RECORDS = [
    {"question_id": 7, "prompt": "?", "text": "Yes"},
    {"question_id": "8", "text": "No\u2028!"},
]


def write(path: Path, content: object) -> Path:
    """Write JSON lines or JSON, by the suffix."""
    lines = content if isinstance(content, list) else [content]
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    path.write_text(text if path.suffix == ".jsonl" else json.dumps(content), "utf-8")
    return path


def test_all_layouts_give_the_same_texts(tmp_path: Path) -> None:
    """JSON lines, a JSON list, lines under a .json name, an object, a table and a folder give the same texts."""
    expected = {"7": "Yes", "8": "No\u2028!"}
    lines = write(tmp_path / "a.jsonl", RECORDS)
    assert read_answers(lines) == expected
    assert read_answers(write(tmp_path / "b.json", RECORDS)) == expected
    misnamed = tmp_path / "c.json"
    misnamed.write_text(lines.read_text("utf-8"), "utf-8")
    assert read_answers(misnamed) == expected
    assert read_answers(write(tmp_path / "d.json", expected)) == expected
    table = tmp_path / "e.tsv"
    table.write_text("index\tquestion\tprediction\n7\t?\tYes\n8\t?\tNo\u2028!\n", "utf-8")
    assert read_answers(table) == expected
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, record in enumerate(RECORDS):
        write(folder / f"2_{number}.jsonl", [record])
    assert read_answers(folder) == expected


TEXTS = {"7": "Yes", "8": "2", "9": "no, none"}
"""Answers, one of them a number, one with a comma."""

SAMPLES = [
    sample(number, {"id": name, "question": "?", "answer": "x"}, text, "x")
    for number, (name, text) in enumerate(TEXTS.items())
]

VLMEVALKIT = [
    {"index": 7, "question": "Is it?", "answer": "No", "category": "x", "prediction": "Yes"},
    {"index": 8, "question": "How many?", "answer": 3, "category": "x", "prediction": 2},
    {"index": 9, "question": "Is it?", "answer": "No", "category": "x", "prediction": "no, none"},
]
"""With the correct answers next to the model's."""

FORMATS: dict[str, Callable[[Path], Path]] = {
    "vlmevalkit.xlsx": lambda path: write_table(path, VLMEVALKIT),
    "vlmevalkit.csv": lambda path: write_table(path, VLMEVALKIT),
    "vlmevalkit.tsv": lambda path: write_table(path, VLMEVALKIT, "\t"),
    "commas.tsv": lambda path: write_table(path, VLMEVALKIT),
    "semicolons.csv": lambda path: write_table(path, VLMEVALKIT, ";"),
    "capitals.csv": lambda path: write_table(
        path, [{"Index": row["index"], " Answer": row["answer"], "Prediction ": row["prediction"]}
               for row in VLMEVALKIT]
    ),
    "vlmevalkit.json": lambda path: write_json(path, VLMEVALKIT),
    "samples.jsonl": lambda path: write_lines(path, SAMPLES),
    "nested.jsonl": lambda path: write_lines(
        path, [{**line, "filtered_resps": [line["filtered_resps"]]} for line in SAMPLES]
    ),
    "unfiltered.jsonl": lambda path: write_lines(
        path, [{"doc": line["doc"], "resps": [[TEXTS[line["doc"]["id"]]]]} for line in SAMPLES]
    ),
    "old_lmms_eval.json": lambda path: write_json(
        path, {"args": {"model": "m"}, "model_configs": {}, "logs": SAMPLES, "time": "0101"}
    ),
    "llava.jsonl": lambda path: write_lines(
        path, [{"question_id": name, "prompt": "?", "text": text, "answer_id": "Cqw", "metadata": {}}
               for name, text in TEXTS.items()]
    ),
    "gqa_converter.json": lambda path: write_json(
        path, [{"questionId": name, "prediction": text} for name, text in TEXTS.items()]
    ),
    "vqav2_converter.json": lambda path: write_json(
        path, [{"question_id": int(name), "answer": text} for name, text in TEXTS.items()]
    ),
    "seed_converter.jsonl": lambda path: write_lines(
        path, [{"question_id": name, "prediction": text} for name, text in TEXTS.items()]
    ),
    "vizwiz_converter.json": lambda path: write_json(
        path, [{"image": name, "answer": text} for name, text in TEXTS.items()]
    ),
    "mmvet_converter.json": lambda path: write_json(path, TEXTS),
    "coco_results.json": lambda path: write_json(
        path, [{"image_id": int(name), "caption": text} for name, text in TEXTS.items()]
    ),
    "science_qa_analysis.json": lambda path: write_json(
        path,
        {
            key: [{"question_id": name, "parsed_ans": "A", "ground_truth": "B", "question": "?",
                   "pred": TEXTS[name], "is_multimodal": False} for name in names]
            for key, names in (("correct", ["8"]), ("incorrect", ["7", "9"]))
        },
    ),
    "science_qa_result.json": lambda path: write_json(
        path, {"acc": 33.3, "correct": 1, "count": 3, "outputs": TEXTS}
    ),
    "opencompass.json": lambda path: write_json(
        path, {name: {"origin_prompt": [{"role": "HUMAN", "prompt": "?"}], "prediction": text, "gold": "B"}
               for name, text in TEXTS.items()}
    ),
    "value_in.jsonl": lambda path: write_json(
        path, [{"question_id": name, "text": text} for name, text in TEXTS.items()]
    ),
    "object_in.jsonl": lambda path: write_json(path, TEXTS),
    "object_in_one_line.jsonl": lambda path: write_lines(path, [TEXTS]),
    "lines_in.json": lambda path: write_lines(
        path, [{"id": name, "response": text} for name, text in TEXTS.items()]
    ),
    "lines_in.txt": lambda path: write_lines(
        path, [{"id": name, "response": text} for name, text in TEXTS.items()]
    ),
    "numbers.json": lambda path: write_json(path, {**TEXTS, "8": 2}),
    "llama_factory.jsonl": lambda path: write_lines(
        path, [{"id": name, "prompt": "?", "predict": text, "label": "x"} for name, text in TEXTS.items()]
    ),
}  # fmt: skip
"""A writer of each format, by file name."""


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_texts(tmp_path: Path, name: str) -> None:
    """Content decides, not the suffix; numbers are texts; correct answers are not taken for the model's."""
    assert read_answers(FORMATS[name](tmp_path / name)) == TEXTS


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"id": 1, "prediction": "a", "response": "b", "answer": "c"}, "prediction or response"),
        ({"id": 1, "prediction": "a", "text": "b"}, "prediction or text"),
        ({"id": 1, "text": "Is it?", "answer": "b"}, "text or answer"),
        ({"index": 1, "output": "a", "caption": "b"}, "output or caption"),
    ],
)
def test_ambiguous_fields_are_named(tmp_path: Path, record: Row, fields: str) -> None:
    """The message names both, and the option that chooses one of them."""
    for path in (
        write_lines(tmp_path / "a.jsonl", [record]),
        write_table(tmp_path / "a.csv", [record]),
    ):
        with pytest.raises(
            UsageError, match=f"under {fields}; choose one with --answer-field NAME"
        ):
            read_answers(path)
        for key in fields.split(" or "):
            assert read_answers(path, AnswerOptions(answer_field=key)) == {"1": record[key]}
        with pytest.raises(UsageError, match="has no field other; it has "):
            read_answers(path, AnswerOptions(answer_field="other"))


def test_fields_with_the_same_texts_are_not_ambiguous(tmp_path: Path) -> None:
    """Whichever is taken."""
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "prediction": "a", "response": "a"}])
    assert read_answers(path) == {"1": "a"}


def test_a_table_of_questions_is_not_one_of_answers(tmp_path: Path) -> None:
    """H3: without a prediction, the correct answers would get a perfect score."""
    rows = [{"index": 7, "question": "Which?", "A": "x", "B": "y", "answer": "A"}]
    path = write_table(tmp_path / "dev.tsv", rows, "\t")
    with pytest.raises(InputError, match="questions with their correct answers, but no prediction"):
        read_answers(path)
    assert read_answers(path, AnswerOptions(answer_field="answer")) == {"7": "A"}


@pytest.mark.parametrize("empty", ["", " ", None, float("nan"), "Failed to obtain answer via API."])
def test_empty_predictions_are_listed(tmp_path: Path, empty: object) -> None:
    """H3: they are no silent zeros, in any format; --allow-empty counts them as wrong."""
    rows = [{**row, "prediction": empty if row["index"] == 8 else "x"} for row in VLMEVALKIT]
    cells = [{**row, "prediction": row["prediction"] or ""} for row in rows]
    if isinstance(empty, float):
        cells[1]["prediction"] = ""  # as pandas writes it
    for path in (
        write_table(tmp_path / "a.csv", cells),
        write_json(tmp_path / "a.json", rows),
        write_json(tmp_path / "b.json", {"7": "x", "8": empty, "9": "x"}),
        write_lines(tmp_path / "a.jsonl", [sample(0, {"id": 8}, empty), sample(1, {"id": 9}, "x")]),  # type: ignore[arg-type] # on purpose
    ):
        with pytest.raises(InputError, match=r"1 of [23] answers are empty: 8; generate"):
            read_answers(path)
        allowed = read_answers(path, AnswerOptions(allow_empty=True))
        assert (allowed["8"].strip(), allowed["9"]) == ("", "x")


def test_science_qas_mark_of_a_missing_answer_is_one(tmp_path: Path) -> None:
    """H3: LLaVA's evaluation writes FAILED and goes on; as a model's own word it is an answer."""
    missing = {"question_id": "7", "pred": "FAILED", "question": "Unknown"}
    path = write_json(tmp_path / "a.json", {"correct": [], "incorrect": [missing]})
    with pytest.raises(InputError, match="1 of 1 answers are empty: 7"):
        read_answers(path)
    write_json(path, {"correct": [], "incorrect": [{**missing, "question": "Who?"}]})
    assert read_answers(path) == {"7": "FAILED"}


def test_a_folder_of_lmms_eval_is_its_samples(tmp_path: Path) -> None:
    """Its results are not answers; of other folders every file is read, also tables."""
    write_json(tmp_path / "0101_results.json", {"results": {"pope": {"f1": 1}}})
    write_lines(tmp_path / "0101_samples_pope.jsonl", SAMPLES)
    assert read_answers(tmp_path) == TEXTS
    (tmp_path / "tables").mkdir()
    for row in VLMEVALKIT:
        write_table(tmp_path / "tables" / f"{row['index']}.csv", [row])
    assert read_answers(tmp_path / "tables") == TEXTS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "a.jsonl is empty; nothing can be scored"),
        ("a.json", "[]", "should hold a list of JSON objects"),
        ("a.json", "{}", "holds no answers"),
        ("a.jsonl", '{"id": 1, "text": "x"}\n{"id":', "a.jsonl:2 is broken JSON at column 7"),
        ("a.json", '{"1": "a", "2": "b", "1": "c"}', "has these keys twice: 1"),
        ("a.jsonl", '{"id": 1, "text": "x"}\n' * 2, "has 1 ids more than once: 1; keep one"),
        ("a.jsonl", '{"text": "x"}', "1 answers have no id, the first .*; expected one of question_id"),
        ("a.jsonl", '{"id": 1, "label": "x"}', "its answer under one of text, .*; it has id, label"),
        ("a.jsonl", '{"id": 1, "text": ["x", "y"]}', "text should be one text, got \\['x', 'y'\\]"),
        ("a.jsonl", '{"id": 1, "text": {"a": "x"}}', "text should be one text, got {'a': 'x'}"),
        ("a.jsonl", '{"id": [1], "text": "x"}', "the id should be a number or a text"),
        ("a.json", '{"1": "x", "2": {"text": "x"}}', "the answer to '2' should be a text"),
        ("a.tsv", "index\tprediction\n1\tx\ty\n", "a.tsv:2 has not as many cells as the heading"),
        ("a.csv", "index,prediction\n", "has a heading but no rows"),
        ("a.csv", "index,prediction,prediction\n1,x,y\n", "has columns twice: prediction"),
        ("a.csv", "PK\x03\x04", "is no .xlsx spreadsheet"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    """The error names the place and what was expected."""
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_answers(file)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """A missing file, a folder without answers, and text that is not UTF-8 are errors."""
    with pytest.raises(InputError, match=r"cannot read .*none\.jsonl: No such file"):
        read_answers(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"holds no file of answers"):
        read_answers(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 1, "text": "\xff"}')
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_answers(tmp_path / "a.jsonl")


def test_long_lists_of_names_are_truncated(tmp_path: Path) -> None:
    """Errors about a file with 300 fields, or with 300 repeated keys, list ten names."""
    other = {f"v1_{number}": "" for number in range(300)}
    (tmp_path / "one.jsonl").write_text(json.dumps({"id": 1, **other}))
    with pytest.raises(InputError, match=r"it has id, v1_0, .* and 291 more") as caught:
        read_answers(tmp_path / "one.jsonl")
    assert len(str(caught.value)) < 600
    twice = ", ".join(f'"{name}": ""' for name in [*other, *other])
    (tmp_path / "two.json").write_text(f"{{{twice}}}")
    with pytest.raises(InputError, match=r"these keys twice: v1_0, .* and 290 more"):
        read_answers(tmp_path / "two.json")
