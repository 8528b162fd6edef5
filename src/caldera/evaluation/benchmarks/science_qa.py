"""ScienceQA's test split: choice questions with and without an image, as in LLaVA's paper (P1 Table 7)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from caldera.conversation import Conversation
from caldera.errors import InputError, UsageError, shorten_value
from caldera.evaluation.answer_matching import match_answers
from caldera.evaluation.answer_parsing import LETTERS, science_qa_letter, science_qa_letter_by_llava
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    Score,
    Sources,
    check_answers,
    score_items,
    to_percent,
)
from caldera.evaluation.benchmarks.multiple_choice import items_from_answers
from caldera.evaluation.benchmarks.science_qa_files import (
    EXPECTED_FILES,
    QuestionInfo,
    letters_of,
    load_question_info,
)
from caldera.evaluation.files import json_start, read_json

_COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
"""Columns of the paper's table: subject, text context, image, neither, and school grade."""

_IMAGE_METRICS = ("IMG", "questions", "parse_failures")
"""Metrics of a file that answers the questions with an image only."""


@dataclass(frozen=True, slots=True)
class ScienceQA:
    """Questions whose reference is a letter."""

    items: tuple[Item, ...]
    name: str = "scienceqa"
    max_new_tokens: int = 1024

    def score(self, answers: Mapping[str, str]) -> Score:
        """Parse a letter from each text; a text without one is wrong, and counted."""
        check_answers(self.items, answers)
        letters = {item.id: _parse_letter(item, answers[item.id]) for item in self.items}
        by_llava = {item.id: science_qa_letter_by_llava(answers[item.id]) for item in self.items}
        score, official = self._score(letters), self._score(by_llava)
        metrics = score.metrics | {
            "accuracy_from_texts": score.metrics["accuracy"],
            "official_rule": {
                name: official.metrics[name] for name in ("accuracy", "parse_failures")
            },
        }
        return replace(score, metrics=metrics)

    def score_letters(self, letters: Mapping[str, str]) -> Score:
        """Score letters that were parsed before."""
        check_answers(self.items, letters)
        return self._score(letters)

    def _score(self, letters: Mapping[str, str | None]) -> Score:
        scores = {item.id: float(letters[item.id] == item.references[0]) for item in self.items}
        unparsed: dict[str, str] = {}
        for item in self.items:
            letter, valid_letters = letters[item.id], letters_of(item.choices)
            if not letter:
                unparsed[item.id] = "no letter could be read"
            elif letter not in valid_letters:
                unparsed[item.id] = f"{letter} is none of the choices, {valid_letters}"
        score = score_items(self.items, scores, unparsed)
        metrics = {"accuracy": to_percent(score.overall)}
        metrics |= {
            name: to_percent(score.by_category[name])
            for name in _COLUMNS
            if name in score.by_category
        }
        metrics |= {
            "questions": len(scores),
            "parse_failures": sum(not letter for letter in letters.values()),
        }
        return replace(score, metrics=metrics)


def _parse_letter(item: Item, text: str) -> str | None:
    return science_qa_letter(text, item.choices)


def _to_item(name: str, info: QuestionInfo) -> Item:
    letters = letters_of(info.choices)
    if info.letter not in tuple(letters):
        raise InputError(
            f"question {name} should have one of the letters {letters} as its answer, got {info.letter}"
        )
    slices: list[str] = []
    if info.has_context is not None and info.has_image is not None:
        slices += ["TXT"] if info.has_context else []
        slices += ["IMG"] if info.has_image else []
        slices += [] if slices else ["NO"]
    if info.grade is not None:
        slices += ["G1-6" if info.grade <= 6 else "G7-12"]
    return Item(
        name,
        info.subject or "question",
        "choice",
        info.conversation or Conversation(name, ()),
        (info.letter,),
        info.choices,
        tuple(slices),
    )


def _load(sources: Sources) -> ScienceQA:
    items = tuple(_to_item(name, info) for name, info in load_question_info(sources).items())
    if not items:
        raise InputError(f"the files hold no question of the test split; expected {EXPECTED_FILES}")
    return ScienceQA(items)


def load_questions(sources: Sources) -> ScienceQA:
    """Load the questions, in the layout `sources.prompt_layout`."""
    benchmark = _load(sources)
    if any(not item.conversation.turns for item in benchmark.items):
        raise UsageError(
            "asking needs --questions, problems.json or llava_test_CQM-A.json; this file has letters only"
        )
    return benchmark


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score LLaVA's output file (`results` and `outputs`), or texts by question id."""
    benchmark = _load(sources)
    content = read_json(answers) if answers.is_file() and json_start(answers) else None
    content = content if isinstance(content, dict) else {}
    letters = content.get("results")
    texts = None
    if letters is None or "outputs" in content:
        texts = match_answers(sources.read_answers(answers), benchmark.items, answers)
    if isinstance(letters, dict):
        return _score_output_file(benchmark, letters, texts, answers)
    assert texts is not None
    image_items = tuple(item for item in benchmark.items if "IMG" in item.slices)
    if len(image_items) < len(benchmark.items) and texts.keys() == {
        item.id for item in image_items
    }:
        # VLMEvalKit and lmms-eval ask the questions with an image only.
        score = replace(benchmark, items=image_items).score(texts)
        metrics = {key: value for key, value in score.metrics.items() if key in _IMAGE_METRICS}
        return replace(score, metrics=metrics)
    return benchmark.score(texts)


def _score_output_file(
    benchmark: ScienceQA,
    results: Mapping[str, object],
    texts: Mapping[str, str] | None,
    path: Path,
) -> Score:
    """Score the file that LLaVA's evaluation writes: the paper counts `results`; `outputs` has the texts."""
    # LLaVA writes -1 for an unparsed answer.
    letters = {name: _to_letter(number, name, path) for name, number in results.items()}
    score = benchmark.score_letters(letters)
    if texts is None:
        return score
    text_score = benchmark.score(texts)
    different = sorted(
        item.id
        for item in benchmark.items
        if letters[item.id] != (_parse_letter(item, texts[item.id]) or "")
    )
    text_metrics = {
        name: text_score.metrics[name]
        for name in ("accuracy_from_texts", "parse_failures", "official_rule")
    }
    metrics = score.metrics | text_metrics | {"results_differ_from_texts": different}
    return replace(score, metrics=metrics, unparsed=text_score.unparsed)


def _to_letter(number: object, name: str, path: Path) -> str:
    if type(number) is not int:
        raise InputError(
            f"{path}: 'results' of question {name} should be of type int, got {shorten_value(number)}"
        )
    return LETTERS[number] if 0 <= number < len(LETTERS) else ""


SCIENCE_QA = BenchmarkSpec(
    name="scienceqa",
    title="ScienceQA",
    measures="school science, by subject, grade, and with or without an image",
    description="4,241 questions of the test split, 2,017 with an image (scienceqa.github.io)",
    chance={"accuracy": 39.83, "IMG": 40.08},
    primary_metric="accuracy",
    required_files="--questions or --annotations: problems.json (+ pid_splits.json), test_answers.csv or "
    "llava_test_CQM-A.json",
    default_files=Sources(questions=Path("problems.json"), images=Path("images")),
    load=load_questions,
    from_answers=lambda records: ScienceQA(tuple(items_from_answers(records))),
    score_official_files=score_answer_files,
)
