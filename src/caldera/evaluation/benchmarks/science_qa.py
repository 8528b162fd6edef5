"""ScienceQA's test split: choice questions with and without an image, as LLaVA's paper scores them (P1 Table 7)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from caldera.conversation import Conversation
from caldera.errors import InputError, UsageError
from caldera.evaluation.answer_parsing import (
    LETTERS,
    science_qa_letter,
    science_qa_letter_by_llava,
)
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    Score,
    Sources,
    check_answers,
    mean,
    scores_by_group,
    to_percent,
)
from caldera.evaluation.benchmarks.science_qa_files import (
    WANTED,
    QuestionInfo,
    letters_of,
    load_question_info,
)
from caldera.evaluation.files import read_answers, read_json

_COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
"""Columns of the paper's table: subject, whether there is a context in words, an image, neither, and school grade."""


@dataclass(frozen=True, slots=True)
class ScienceQA:
    """The questions, each with its letter."""

    items: tuple[Item, ...]
    name: str = "scienceqa"
    max_new_tokens: int = 1024

    def score(self, answers: Mapping[str, str]) -> Score:
        """Read a letter from each text; a text without one is wrong, and counted.

        Raises:
            InputError: Answers are missing, or belong to no question.
        """
        check_answers(self.items, answers)
        letters = {item.id: _letter(item, answers[item.id]) for item in self.items}
        by_llava = {item.id: science_qa_letter_by_llava(answers[item.id]) for item in self.items}
        score = self._of_letters(letters)
        official = self._of_letters(by_llava)
        figures = score.metrics | {
            "accuracy_from_texts": score.metrics["accuracy"],
            "official_rule": {
                name: official.metrics[name] for name in ("accuracy", "parse_failures")
            },
        }
        return replace(score, metrics=figures)

    def score_letters(self, letters: Mapping[str, str]) -> Score:
        """Score letters that were read from the texts before.

        Raises:
            InputError: Letters are missing, or belong to no question.
        """
        check_answers(self.items, letters)
        return self._of_letters(letters)

    def _of_letters(self, letters: Mapping[str, str | None]) -> Score:
        marks = {item.id: float(letters[item.id] == item.references[0]) for item in self.items}
        groups = scores_by_group(self.items, marks)
        columns = {
            name: to_percent(mean(groups[name].values())) for name in _COLUMNS if name in groups
        }
        figures = {
            "accuracy": to_percent(mean(marks.values())),
            **columns,
            "questions": len(marks),
            "parse_failures": sum(not letter for letter in letters.values()),
        }
        return Score(
            mean(marks.values()),
            {name: mean(group.values()) for name, group in groups.items()},
            {name: len(group) for name, group in groups.items()},
            figures,
            marks,
            _unread(self.items, letters),
        )


def _unread(items: Iterable[Item], letters: Mapping[str, str | None]) -> dict[str, str]:
    """Return the items without a letter, or with one that is none of the choices; LLaVA counts both as wrong."""
    unread: dict[str, str] = {}
    for item in items:
        letter, possible = letters[item.id], letters_of(item.choices)
        if not letter:
            unread[item.id] = "no letter could be read"
        elif letter not in possible:
            unread[item.id] = f"{letter} is none of the choices, {possible}"
    return unread


def _letter(item: Item, text: str) -> str | None:
    return science_qa_letter(text, item.choices)


def _to_item(name: str, known: QuestionInfo) -> Item:
    """Make an item of what files say.

    Raises:
        InputError: They do not say what is right.
    """
    letters = letters_of(known.choices)
    if known.letter not in tuple(letters):
        raise InputError(
            f"question {name} should have one of the letters {letters} as its answer, got {known.letter}"
        )
    slices: list[str] = []
    if known.has_context is not None and known.has_image is not None:
        slices += ["TXT"] if known.has_context else []
        slices += ["IMG"] if known.has_image else []
        slices += [] if slices else ["NO"]
    if known.grade is not None:
        slices += ["G1-6" if known.grade <= 6 else "G7-12"]
    asked = known.conversation or Conversation(name, ())
    return Item(
        name,
        known.subject or "question",
        "choice",
        asked,
        (known.letter,),
        known.choices,
        tuple(slices),
    )


def _benchmark(sources: Sources) -> ScienceQA:
    items = tuple(_to_item(name, known) for name, known in load_question_info(sources).items())
    if not items:
        raise InputError(f"the files hold no question of the test split; expected {WANTED}")
    return ScienceQA(items)


def load_questions(sources: Sources) -> ScienceQA:
    """Read the questions to ask, in the form that `sources.form` names.

    Raises:
        UsageError: The files have the letters only, without the questions.
        InputError: A file is missing, broken, or another disagrees with it.
    """
    benchmark = _benchmark(sources)
    if any(not item.conversation.turns for item in benchmark.items):
        raise UsageError(
            "asking needs --questions, problems.json or llava_test_CQM-A.json; this file has letters only"
        )
    short = sources.prompt_layout in ("", "letter", "CQM-A")
    return replace(benchmark, max_new_tokens=16 if short else 1024)


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score LLaVA's output file (`results` and `outputs`), or texts by question id.

    Raises:
        UsageError: The truth was not given.
        InputError: A file is missing or broken, or answers are missing or belong to no question.
    """
    benchmark = _benchmark(sources)
    content = read_json(answers) if answers.suffix == ".json" and answers.is_file() else None
    if not isinstance(content, dict) or not {"results", "outputs"} & content.keys():
        return benchmark.score(read_answers(answers))
    return _score_output_file(benchmark, content, answers)


def _score_output_file(benchmark: ScienceQA, content: dict[str, Any], path: Path) -> Score:
    """Score the file that LLaVA's evaluation writes: `results` is what the paper counts, `outputs` has the texts."""
    texts = _part(content, "outputs", str, path) if "outputs" in content else None
    of_texts = benchmark.score(texts) if texts is not None else None
    if "results" not in content:
        assert of_texts is not None
        return of_texts
    letters = {
        name: LETTERS[number] if 0 <= number < len(LETTERS) else ""  # LLaVA writes -1 for a failure
        for name, number in _part(content, "results", int, path).items()
    }
    score = benchmark.score_letters(letters)
    if texts is None or of_texts is None:
        return score
    differ = sorted(
        item.id
        for item in benchmark.items
        if letters[item.id] != (_letter(item, texts[item.id]) or "")
    )
    from_texts = {
        name: of_texts.metrics[name]
        for name in ("accuracy_from_texts", "parse_failures", "official_rule")
    }
    figures = score.metrics | from_texts | {"results_differ_from_texts": differ}
    return replace(score, metrics=figures, unparsed=of_texts.unparsed)


def _part(content: dict[str, Any], name: str, kind: type, path: Path) -> dict[str, Any]:
    """Return `results` or `outputs`.

    Raises:
        InputError: It is not an object, or a value has another type.
    """
    part = content[name]
    if not isinstance(part, dict) or not part:
        raise InputError(
            f"{path}: {name!r} should be an object by question id with something in it"
        )
    for key, value in part.items():
        if type(value) is not kind:
            raise InputError(
                f"{path}: {name!r} of question {key} should be of type {kind.__name__}, got {str(value)[:40]!r}"
            )
    return part


SCIENCE_QA = BenchmarkSpec(
    name="scienceqa",
    title="ScienceQA",
    measures="school science, by subject, grade, and whether there is a picture",
    description="4,241 questions of the test split, 2,017 with a picture (scienceqa.github.io)",
    chance={"accuracy": 39.83, "IMG": 40.08},
    primary_metric="accuracy",
    required_files="--questions or --truth: problems.json (+ pid_splits.json), test_answers.csv or llava_test_CQM-A.json",
    default_files=Sources(questions=Path("problems.json"), images=Path("images")),
    load=load_questions,
    score_answer_files=score_answer_files,
)
