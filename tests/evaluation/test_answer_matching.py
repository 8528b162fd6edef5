"""Answers are matched to items whose question they repeat, however a toolkit numbers them; nothing is guessed."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError
from caldera.evaluation.answer_files import AnswerRecord, read_answer_list
from caldera.evaluation.answer_matching import extract_question, match_answers
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Sources
from caldera.evaluation.benchmarks.multiple_choice import choice_turn
from caldera.evaluation.benchmarks.registry import BENCHMARKS
from caldera.evaluation.benchmarks.short_answers import short_answer_turn
from caldera.evaluation.runs.results import flatten
from tests.evaluation.answer_formats import Row, sample, write_json, write_lines, write_table
from tests.evaluation.benchmarks.official import OFFICIAL

SCORED = [spec for spec in BENCHMARKS.values() if spec.judging is None]
BEST = {"mme": 2000.0, "captions": 1000.0}
"""The primary metric of correct answers; 100 for all others."""


def toolkit_row(number: int, item: Item) -> dict[str, Any]:
    """Return what VLMEvalKit's table has of an item, in that toolkit's own numbering."""
    [turn] = item.conversation.turns
    question = extract_question(turn.text.strip())
    row: dict[str, Any] = {"index": 70_000 + number, "question": question}
    if item.conversation.images:
        row["image_path"] = f"/root/LMUData/images/{item.conversation.images[0]}"
    row |= dict(zip("ABCD", item.choices, strict=False))
    return {**row, "category": item.category, "answer": item.references[0]}


TOOLKITS: dict[str, Callable[[Path, Sequence[Item]], Path]] = {
    "vlmevalkit": lambda folder, items: write_table(
        folder / "model_DATASET.xlsx",
        [toolkit_row(n, item) | {"prediction": item.references[0]} for n, item in enumerate(items)],
    ),
    "lmms-eval": lambda folder, items: write_lines(
        folder / "samples.jsonl",
        [sample(n, toolkit_row(n, item), item.references[0]) for n, item in enumerate(items)],
    ),
}


@pytest.mark.parametrize("toolkit", TOOLKITS)
@pytest.mark.parametrize("spec", SCORED, ids=[spec.name for spec in SCORED])
def test_toolkits_files_of_every_benchmark_are_scored(
    spec: BenchmarkSpec, toolkit: str, tmp_path: Path
) -> None:
    """Correct answers under a toolkit's numbers get the best score, in any order."""
    sources = OFFICIAL[spec.name](tmp_path)
    items = spec.load(sources).items
    path = TOOLKITS[toolkit](tmp_path, items[::-1])
    score = spec.score_answer_files(sources, path)
    assert flatten(score.metrics)[spec.primary_metric] == BEST.get(spec.name, 100.0)


@pytest.mark.parametrize(
    "name", ["pope", "mme", "mmbench", "mmbench_cn", "seed-bench", "scienceqa"]
)
@pytest.mark.parametrize("toolkit", TOOLKITS)
def test_files_that_repeat_the_correct_answers_need_no_others(
    name: str, toolkit: str, tmp_path: Path
) -> None:
    """The score without official files equals that with them, for correct and for wrong answers."""
    spec = BENCHMARKS[name]
    sources = OFFICIAL[name](tmp_path)
    items = spec.load(sources).items
    path = TOOLKITS[toolkit](tmp_path, items)
    metric = spec.primary_metric
    if name.startswith("mmbench"):
        # Rotations are known by their numbers only.
        rows = [toolkit_row(0, item) | {"index": int(item.id)} for item in items]
        path = write_table(path.with_suffix(".tsv"), [row | {"prediction": "A"} for row in rows])
    alone = spec.score_answer_files(Sources(), path)
    assert alone.metrics[metric] == spec.score_answer_files(sources, path).metrics[metric]


@pytest.mark.parametrize("spec", SCORED, ids=[spec.name for spec in SCORED])
def test_missing_unknown_and_repeated_answers_are_listed(
    spec: BenchmarkSpec, tmp_path: Path
) -> None:
    """H3: for every benchmark, with their ids; nothing is scored."""
    sources = OFFICIAL[spec.name](tmp_path)
    items = spec.load(sources).items
    rows = [{"id": item.id, "text": item.references[0]} for item in items]
    first = re.escape(items[0].id.partition(": ")[0].removeprefix("random/"))
    for records, message in (
        (rows[1:], f"1 of {len(rows)} items have no answer: .*{first}"),
        ([*rows, rows[0]], f"(more than once: .*{first}|{first}.* a second time)"),
        (
            [*rows, {"id": "existence/9.jpg: Is it?", "text": "x"}],
            r"1 answers belong .*existence/9.*Is it\?",
        ),
    ):
        with pytest.raises(InputError, match=message):
            spec.score_answer_files(sources, write_lines(tmp_path / "answers.jsonl", records))


@pytest.mark.parametrize("spec", SCORED, ids=[spec.name for spec in SCORED])
def test_a_file_of_questions_is_not_scored(spec: BenchmarkSpec, tmp_path: Path) -> None:
    """H3: LLaVA's question files have the questions where its answers have the answers."""
    benchmark = spec.load(OFFICIAL[spec.name](tmp_path))
    texts = {item.id: item.conversation.turns[-1].text for item in benchmark.items}
    with pytest.raises(InputError, match="the answers are the questions; give the file of the"):
        benchmark.score({name: extract_question(text.strip()) for name, text in texts.items()})


def item(number: int, question: str, *choices: str, image: str = "") -> Item:
    """Return an item."""
    name = f"q{number}"
    images = [image] if image else []
    if choices:
        return Item(
            name, "c", "choice", choice_turn(name, question, choices, images), ("A",), choices
        )
    return Item(name, "c", "c", short_answer_turn(name, image, question), ("red",))


COLORS = [item(n, "What color is it?", image=f"{n}.jpg") for n in range(3)]


def records(path: Path, rows: Sequence[Row]) -> list[AnswerRecord]:
    """Return the answers of JSON lines."""
    return read_answer_list(write_lines(path / "a.jsonl", rows))


def test_the_id_field_is_the_one_with_the_items_ids(tmp_path: Path) -> None:
    """VLMEvalKit's MMMU has numbers in `index`, and MMMU's names in `id`."""
    rows = [{"index": 9 - n, "id": f"q{n}", "prediction": str(n)} for n in range(3)]
    matched = match_answers(records(tmp_path, rows), COLORS, tmp_path)
    assert matched == {"q0": "0", "q1": "1", "q2": "2"}


def test_numbers_that_are_ids_of_other_questions_do_not_count(tmp_path: Path) -> None:
    """A toolkit's row numbers may be ids of the benchmark; then the questions decide, or it is an error."""
    items = [item(n, f"What is {word}?") for n, word in enumerate(("tea", "coffee", "water"))]
    rows = [
        {"question_id": f"q{n}", "question": f"What is {word}?", "prediction": word}
        for n, word in enumerate(("water", "tea", "coffee"))
    ]
    matched = match_answers(records(tmp_path, rows), items, tmp_path)
    assert matched == {"q0": "tea", "q1": "coffee", "q2": "water"}
    mixed = [rows[n] | {"question_id": f"q{name}"} for n, name in enumerate((2, 1, 0))]
    assert match_answers(records(tmp_path, mixed), items, tmp_path) == matched
    others = [row | {"question": f"Who is {n}?"} for n, row in enumerate(rows)]
    with pytest.raises(
        InputError, match=r"answers 'Who is 0\?', but question q0 is 'What is tea\?'"
    ):
        match_answers(records(tmp_path, others), items, tmp_path)


def test_another_layout_of_the_prompt_is_the_same_question(tmp_path: Path) -> None:
    """ScienceQA's layouts order question and context differently; the ids then count, also of equal questions."""
    items = [item(n, "Context: Look.\nWhich?", "red", "blue") for n in range(2)]
    rows = [
        {"question_id": f"q{n}", "prompt": "Question: Which?\nContext: Look.\nOptions: (A) x", "text": "AB"[n]}
        for n in (1, 0)
    ]  # fmt: skip
    assert match_answers(records(tmp_path, rows), items, tmp_path) == {"q0": "A", "q1": "B"}


def test_indices_of_choices_are_not_letters(tmp_path: Path) -> None:
    """The message says so, instead of a score of 0; choices that are numbers, and a model of a run, may have them."""
    items = [item(n, f"Which {n}?", "red", "blue") for n in range(3)]
    rows = [{"question_id": f"q{n}", "text": str(n % 2)} for n in range(3)]
    with pytest.raises(
        InputError, match="all answers are numbers, the first 0 to question q0, but"
    ):
        match_answers(records(tmp_path, rows), items, tmp_path)
    answered_by_run = [row | {"failed": ""} for row in rows]
    assert len(match_answers(records(tmp_path, answered_by_run), items, tmp_path)) == 3
    numbers = [item(n, f"Which {n}?", "0", "1") for n in range(3)]
    assert len(match_answers(records(tmp_path, rows), numbers, tmp_path)) == 3
    rows[1]["text"] = "B"
    assert len(match_answers(records(tmp_path, rows), items, tmp_path)) == 3


def test_equal_questions_are_told_apart_by_image_choices_or_correct_answer(tmp_path: Path) -> None:
    """Without any of these, the answers match several questions each, which is an error."""
    rows = [
        {"index": n, "question": "What color is it?", "image": f"{n}.png", "prediction": str(n)}
        for n in range(3)
    ]
    assert match_answers(records(tmp_path, rows), COLORS, tmp_path)["q1"] == "1"
    bare = [{key: row[key] for key in ("index", "question", "prediction")} for row in rows[:2]]
    with pytest.raises(InputError, match=r"2 answers match several questions each: 0 'What color"):
        match_answers(records(tmp_path, [*bare, {**rows[2]}]), COLORS, tmp_path)
    choices = [item(0, "Which?", "red", "blue"), item(1, "Which?", "tea", "milk")]
    options = [
        {"index": 5, "question": "Which?", "options": ["tea", "milk"], "prediction": "x"},
        {"index": 6, "question": "Which?", "options": "['red', 'blue']", "prediction": "y"},
    ]
    matched = match_answers(records(tmp_path, options), choices, tmp_path)
    assert matched == {"q0": "y", "q1": "x"}
    options[0]["options"] = ["milk", "tea"]  # its letters mean other choices
    with pytest.raises(InputError, match="1 answers match no question: 5 'Which"):
        match_answers(records(tmp_path, options), choices, tmp_path)


def test_answers_of_another_split_are_listed(tmp_path: Path) -> None:
    """H3: by their ids if these are unknown; by their questions if some match."""
    rows = [{"index": 7, "question": "Who is it?", "prediction": "x"}]
    assert match_answers(records(tmp_path, rows), COLORS, tmp_path) == {"7": "x"}
    matching = {"index": 8, "question": "What color is it?", "image": "0.jpg", "prediction": "x"}
    with pytest.raises(InputError, match=r"1 answers match no question: 7 'Who is it\?'; is this"):
        match_answers(records(tmp_path, [*rows, matching]), COLORS, tmp_path)


def test_answers_of_a_named_other_split_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """VLMEvalKit's table of MMMU also has the questions of dev; the number of these is logged."""
    caplog.set_level("INFO")
    rows = [{"id": f"q{n}", "split": "validation", "prediction": str(n)} for n in range(3)]
    dev = {"id": "dev_1", "split": "dev", "prediction": "x"}
    matched = match_answers(records(tmp_path, [dev, *rows]), COLORS, tmp_path)
    assert matched == {"q0": "0", "q1": "1", "q2": "2"}
    assert "skipped 1 answers to questions of another split: dev" in caplog.text
    unknown = {"id": "q9", "split": "validation", "prediction": "x"}
    assert "q9" in match_answers(records(tmp_path, [*rows, unknown]), COLORS, tmp_path)


def test_an_order_counts_if_every_question_or_correct_answer_agrees(tmp_path: Path) -> None:
    """OpenCompass and lmms-eval number the questions in order; a file in another order is not scored."""
    items = [item(n, f"{word}?", "x", "y") for n, word in enumerate(("Who", "Who", "How"))]
    golds = {
        str(n): {
            "origin_prompt": f"Look.\n{word}?\nA. x\nB. y",
            "prediction": "ABC"[n],
            "gold": "A",
        }
        for n, word in enumerate(("Who", "Who", "How"))
    }
    path = write_json(tmp_path / "a.json", golds)
    assert match_answers(read_answer_list(path), items, path) == {"q0": "A", "q1": "B", "q2": "C"}
    golds["0"]["gold"] = "B"
    golds["2"]["origin_prompt"] = "Look.\nWho?"
    path = write_json(tmp_path / "b.json", golds)
    assert not match_answers(read_answer_list(path), items, path).keys() & {"q0", "q1", "q2"}
