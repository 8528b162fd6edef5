"""ScienceQA's test split: choice questions with and without an image, as in LLaVA's paper (P1 Table 7)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from caldera.conversation import Conversation
from caldera.errors import InputError, UsageError
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
from caldera.evaluation.benchmarks.science_qa_files import (
    EXPECTED_FILES,
    QuestionInfo,
    letters_of,
    load_question_info,
)
from caldera.evaluation.files import read_answers, read_json

_COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
"""Columns of the paper's table: subject, text context, image, neither, and school grade."""


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
    is_letter_only = sources.prompt_layout in ("", "letter", "CQM-A")
    return replace(benchmark, max_new_tokens=16 if is_letter_only else 1024)


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score LLaVA's output file (`results` and `outputs`), or texts by question id."""
    benchmark = _load(sources)
    content = read_json(answers) if answers.suffix == ".json" and answers.is_file() else None
    if not isinstance(content, dict) or not {"results", "outputs"} & content.keys():
        return benchmark.score(read_answers(answers))
    return _score_output_file(benchmark, content, answers)


def _score_output_file(benchmark: ScienceQA, content: dict[str, Any], path: Path) -> Score:
    """Score the file that LLaVA's evaluation writes: the paper counts `results`; `outputs` has the texts."""
    texts = _read_part(content, "outputs", str, path) if "outputs" in content else None
    text_score = benchmark.score(texts) if texts is not None else None
    if "results" not in content:
        assert text_score is not None
        return text_score
    # LLaVA writes -1 for an unparsed answer.
    letters = {
        name: LETTERS[number] if 0 <= number < len(LETTERS) else ""
        for name, number in _read_part(content, "results", int, path).items()
    }
    score = benchmark.score_letters(letters)
    if texts is None or text_score is None:
        return score
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


def _read_part(content: dict[str, Any], name: str, value_type: type, path: Path) -> dict[str, Any]:
    """Return `results` or `outputs`, with checked values."""
    part = content[name]
    if not isinstance(part, dict) or not part:
        raise InputError(f"{path}: {name!r} should be a non-empty object by question id")
    for key, value in part.items():
        if type(value) is not value_type:
            raise InputError(
                f"{path}: {name!r} of question {key} should be of type {value_type.__name__}, got {str(value)[:40]!r}"
            )
    return part


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
    score_official_files=score_answer_files,
)
