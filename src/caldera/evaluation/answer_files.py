"""Readers of answer files: caldera's own, LLaVA's, VLMEvalKit's, lmms-eval's, OpenCompass's and submitted ones.

Content decides, not the suffix:

- records with an id and a text: LLaVA's JSON lines and lists of them, tables, and objects of records by id, which is
  OpenCompass's layout
- samples of lmms-eval: records with `filtered_resps`, and a question with its ids under `doc`
- an object of texts by id, also under `outputs` in what LLaVA's evaluation of ScienceQA writes
- an object that has its records in lists: `logs` of the old lmms-eval, `correct` and `incorrect` of LLaVA's ScienceQA

LLaVA and others write one file per GPU, so a folder of such files is read as one.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from caldera.errors import InputError, UsageError, shorten_value
from caldera.evaluation.files import (
    find_repeated,
    join_names,
    json_start,
    locate_records,
    read_json,
    read_rows,
)

ID_KEYS = ("question_id", "questionId", "id", "index", "pid", "image_id", "image")
"""Fields of the id, the usual one first."""

PREDICTION_KEYS = (
    "prediction", "pred", "predict", "predicted", "predicted_answer", "model_answer", "model_output", "model_response",
    "response", "output", "generated_text", "completion",
)  # fmt: skip
"""Fields that hold a model's answer and nothing else; next to one of them `answer` is the correct answer."""

TEXT_KEYS = ("text", "caption")
"""Fields of the answer in LLaVA's lines and in COCO's results."""

PROMPT_KEYS = ("prompt", "question", "query", "input", "origin_prompt")
"""Fields of the question, if a record repeats it."""

_KNOWN_KEYS = {*ID_KEYS, *PREDICTION_KEYS, *TEXT_KEYS, *PROMPT_KEYS, "answer", "category"}

_LISTS = ("logs", "correct", "incorrect", "predictions", "answers", "samples", "results", "data")
"""Fields of an object that has its records in lists."""

_CHOICE_KEYS = ("A", "choice_a", "choices", "options")
"""Fields of questions; an `answer` next to them is the correct one."""

_FAILED_MESSAGES = ("Failed to obtain answer via API.", "FAILED")
"""Texts that VLMEvalKit and LLaVA's ScienceQA write where there is no answer."""

_WHOLE_FLOAT = re.compile(r"-?\d+\.0")

_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".xlsx")


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One answer in a file."""

    location: str
    """File and index, for messages."""

    id: str
    """Empty if the layout has none."""

    text: str
    prompt: str = ""
    """The question as repeated in the file; empty if it is not."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """All other fields of the record, and of the `doc` of lmms-eval."""

    submitted: bool = False
    """Whether the file was written for a benchmark's own server, with texts that are compared verbatim."""

    @property
    def ids(self) -> dict[str, str]:
        """Every field that may be the id, as text."""
        values = {key: _to_id(self.fields[key]) for key in ID_KEYS if key in self.fields}
        return {key: value for key, value in values.items() if value}


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerOptions:
    """Settings for reading an answer file."""

    answer_field: str = ""
    """Field or column of the answer; recognized if empty."""

    allow_empty: bool = False
    """Whether an empty answer is wrong rather than an error."""


def read_answers(path: Path, options: AnswerOptions | None = None) -> dict[str, str]:
    """Return the texts of an answer file, or of a folder of them, by question id.

    Raises:
        InputError: A file is missing, empty or broken, or ids or answers are missing or repeated, which are listed.
    """
    return texts_by_id(read_answer_list(path, options), path)


def texts_by_id(answers: Sequence[AnswerRecord], path: Path) -> dict[str, str]:
    """Return the texts of the answers in a file by question id."""
    if unnamed := [answer.location for answer in answers if not answer.id]:
        raise InputError(
            f"{len(unnamed)} answers have no id, the first {unnamed[0]}; expected one of {', '.join(ID_KEYS)}"
        )
    if repeated := find_repeated(answer.id for answer in answers):
        raise InputError(
            f"{path} has {len(repeated)} ids more than once: {join_names(repeated)}; keep one answer of each"
        )
    return {answer.id: answer.text for answer in answers}


def read_answer_list(path: Path, options: AnswerOptions | None = None) -> list[AnswerRecord]:
    """Return the answers of a file, or of a folder of them, in order; ids may be missing or repeated."""
    options = options or AnswerOptions()
    if path.is_dir():
        return [
            answer for file in answer_files_in(path) for answer in read_answer_list(file, options)
        ]
    start = json_start(path)
    if not start:
        return _from_records(_without_float_marks(read_rows(path)), path, options)
    content = read_json(path)
    if isinstance(content, list) and len(content) == 1 and path.suffix == ".jsonl":
        # One line may be a record, or an object of texts by id.
        content = content[0]
    if isinstance(content, dict) and not _is_record(content, options):
        return _from_object(content, path, options)
    return [
        replace(answer, submitted=start == "[" and answer.fields.keys() <= {*ID_KEYS})
        for answer in _from_records(locate_records(path, content), path, options)
    ]


def _without_float_marks(
    rows: list[tuple[str, dict[str, str]]],
) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table without the ".0" that pandas adds to all numbers of a column with an empty cell."""
    for column in rows[0][1]:
        cells = [row[column] for _, row in rows if row[column]]
        if cells and all(map(_WHOLE_FLOAT.fullmatch, cells)):
            for _, row in rows:
                row[column] = row[column].removesuffix(".0")
    return rows


def answer_files_in(folder: Path) -> list[Path]:
    """Return the answer files of a folder; of lmms-eval's, those of samples without those of results."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES]
    samples = [file for file in files if "samples_" in file.name]
    if not files:
        raise InputError(f"{folder} holds no file of answers ({', '.join(_SUFFIXES)})")
    return samples or files


def _is_record(content: Mapping[str, Any], options: AnswerOptions) -> bool:
    """Return whether an object is one answer rather than answers by id."""
    keys = {*ID_KEYS, *PREDICTION_KEYS, *TEXT_KEYS, "answer", "resps", "filtered_resps"}
    return not keys.isdisjoint(content) or options.answer_field in content


def _from_object(
    content: Mapping[str, Any], path: Path, options: AnswerOptions
) -> list[AnswerRecord]:
    """Return the answers of an object of lists of records, of records by id, or of texts by id."""
    if isinstance(content.get("outputs"), dict):
        content = content["outputs"]
    if not content:
        raise InputError(f"{path} holds no answers")
    lists = [key for key in _LISTS if isinstance(content.get(key), list)]
    records = [
        (f"{path}: {key}[{index}]", record)
        for key in lists
        for index, record in enumerate(content[key])
    ]
    if records and all(isinstance(record, dict) for _, record in records):
        return _from_records(records, path, options)
    if all(isinstance(record, dict) for record in content.values()):
        records = [(f"{path}: {name!r}", {"id": name} | content[name]) for name in content]
        return _from_records(records, path, options)
    answers = []
    for name, value in content.items():
        location = f"{path}: {name!r}"
        if isinstance(value, list | dict) and not _is_single(value):
            raise InputError(
                f"{path}: the answer to {name!r} should be a text, got {shorten_value(value)}; expected texts by id, "
                "or a list of records with question_id and text"
            )
        text = "" if value in _FAILED_MESSAGES else _to_text(value)
        answers.append(AnswerRecord(location, name, text, fields={"id": name}, submitted=True))
    return _check_texts(answers, path, options)


def _from_records(
    records: Sequence[tuple[str, Mapping[str, Any]]], path: Path, options: AnswerOptions
) -> list[AnswerRecord]:
    """Return the answers in records of one layout."""
    records = [(location, _with_usual_names(record)) for location, record in records]
    if all("filtered_resps" in record or "resps" in record for _, record in records):
        return _from_samples(records, path, options)
    key = find_answer_field(records, path, options)
    answers = []
    for location, record in records:
        if key not in record:
            raise InputError(f"{location} has no {key}, unlike others; it has {join_names(record)}")
        answers.append(_to_answer(location, record, record[key], key))
    return _check_texts(answers, path, options)


def _with_usual_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose known fields have their usual names, also if they are written as " Prediction"."""
    names = {key: str(key).strip().casefold() for key in record}
    return {
        names[key] if names[key] in _KNOWN_KEYS and names[key] not in record else key: value
        for key, value in record.items()
    }


def find_answer_field(
    records: Sequence[tuple[str, Mapping[str, Any]]], path: Path, options: AnswerOptions
) -> str:
    """Return the field of the answers, which must be unambiguous.

    Raises:
        UsageError: Several fields may be the answer, or there is none of the given name.
        InputError: No field can be the answer.
    """
    location, first = records[0]
    if key := options.answer_field:
        if key not in first and key.strip().casefold() not in first:
            raise UsageError(f"{location} has no field {key}; it has {join_names(map(str, first))}")
        return key if key in first else key.strip().casefold()
    predictions = [key for key in PREDICTION_KEYS if key in first]
    texts = [key for key in TEXT_KEYS if key in first]
    if texts and "prompt" in first:
        # LLaVA's lines: `text` next to the prompt is the answer.
        return texts[0]
    candidates = [*predictions, *texts] or ["answer"]
    if not predictions and texts and "answer" in first:
        candidates.append("answer")
    different = [
        key
        for key in candidates[1:]
        if any(record.get(key) != record.get(candidates[0]) for _, record in records)
    ]
    if different:
        raise UsageError(
            f"{path} may have its answers under {' or '.join([candidates[0], *different])}; choose one with "
            "--answer-field NAME"
        )
    if candidates[0] not in first:
        raise InputError(
            f"{location} should have its answer under one of {', '.join((*TEXT_KEYS, 'answer', *PREDICTION_KEYS))}; it "
            f"has {join_names(map(str, first))}"
        )
    if candidates == ["answer"] and "references" not in first and any(map(first.get, _CHOICE_KEYS)):
        raise InputError(
            f"{path} holds questions with their correct answers, but no prediction; if `answer` is the model's, add "
            "--answer-field answer"
        )
    return candidates[0]


def _from_samples(
    samples: Sequence[tuple[str, Mapping[str, Any]]], path: Path, options: AnswerOptions
) -> list[AnswerRecord]:
    """Return the answers of lmms-eval's samples, as filtered for its own scores."""
    answers = []
    for location, sample in samples:
        key = options.answer_field or ("filtered_resps" if "filtered_resps" in sample else "resps")
        doc = sample.get("doc")
        fields = {**sample, **(doc if isinstance(doc, dict) else {})}
        answers.append(_to_answer(location, fields, sample.get(key), key))
    return _check_texts(answers, path, options)


def _to_answer(location: str, fields: Mapping[str, Any], value: object, key: str) -> AnswerRecord:
    """Return the answer of a record."""
    if isinstance(value, list | dict) and not _is_single(value):
        raise InputError(f"{location}: {key} should be one text, got {shorten_value(value)}")
    name = next((fields[key] for key in ID_KEYS if key in fields), "")
    if isinstance(name, bool) or not isinstance(name, int | float | str):
        raise InputError(
            f"{location}: the id should be a number or a text, got {shorten_value(name)}"
        )
    text = _to_text(value)
    # LLaVA's ScienceQA marks a question without an answer like this.
    if text in _FAILED_MESSAGES and (text != "FAILED" or fields.get("question") == "Unknown"):
        text = ""
    prompts = (_to_prompt(fields[key]) for key in PROMPT_KEYS if key in fields)
    prompt = next(filter(None, prompts), "")
    others = {other: fields[other] for other in fields if other != key}
    return AnswerRecord(location, _to_id(name), text, prompt, others)


def _is_single(value: list[Any] | dict[str, Any]) -> bool:
    """Return whether a value is a list of one text, at any depth."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return not isinstance(value, list | dict)


def _to_text(value: object) -> str:
    """Return an answer as text; null and NaN are empty, and a whole number has no decimal point, as in an id."""
    while isinstance(value, list) and value:
        value = value[0]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)


def _to_id(value: object) -> str:
    """Return an id as text; a whole number has no decimal point, which pandas adds next to empty cells."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float | str) else ""


def _to_prompt(value: object) -> str:
    """Return a question as text, also of OpenCompass's list of turns."""
    if isinstance(value, list):
        return "\n".join(str(turn.get("prompt", "")) for turn in value if isinstance(turn, dict))
    return value if isinstance(value, str) else ""


def _check_texts(
    answers: list[AnswerRecord], path: Path, options: AnswerOptions
) -> list[AnswerRecord]:
    """Return the answers, none of them empty unless that is allowed or a model of a run gave it."""
    empty = [answer for answer in answers if not answer.text.strip()]
    if options.allow_empty or all(answer.fields.get("failed") == "" for answer in empty):
        return answers
    names: Iterable[str] = (answer.id or answer.location for answer in empty)
    raise InputError(
        f"{path}: {len(empty)} of {len(answers)} answers are empty: {join_names(names)}; generate them again, or count "
        "them as wrong with --allow-empty"
    )
