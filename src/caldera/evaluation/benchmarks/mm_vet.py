"""MM-Vet: open answers graded from 0 to 1, by six capabilities and by which are needed together.

Of arXiv 2308.02490.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import InputError
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    JudgeSpec,
    Score,
    Sources,
    check_answers,
)
from caldera.evaluation.files import read_json, require_fields
from caldera.evaluation.judging.grading import GRADE_PROTOCOLS, GRADES, write_grade_files
from caldera.evaluation.judging.protocols import JudgeCase
from caldera.evaluation.judging.scores import average_runs, ratio_interval
from caldera.evaluation.judging.verdicts import Verdict, parse_verdict, validity_metrics

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
"""Recognition, reading, knowledge, writing, places, arithmetic; in the official table's order."""


@dataclass(frozen=True, slots=True)
class MMVet:
    """Its questions; scores are those of a judge's replies."""

    name: str
    items: Sequence[Item]
    max_new_tokens: int = 1024

    def score(self, answers: Mapping[str, str]) -> Score:
        """Score what a judge replied about each answer.

        Raises:
            InputError: Replies are missing, or belong to no item.
        """
        check_answers(self.items, answers)
        verdicts = [
            parse_verdict(item.id, item.category, answers[item.id], GRADES.read)
            for item in self.items
        ]
        return average_runs([score_grades(verdicts)], "total")


def _load(sources: Sources) -> MMVet:
    """Make items of `mm-vet.json`.

    Raises:
        InputError: It is no such file.
    """
    path = sources.require_questions("the official mm-vet.json")
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold an object of questions by id, as mm-vet.json does")
    items = []
    for key, record in content.items():
        where = f"{path}: {key}"
        if not isinstance(record, dict):
            raise InputError(f"{where} should be an object, got {str(record)[:40]!r}")
        require_fields(record, ("imagename", "question", "answer", "capability"), where)
        needed = [name for name in CAPABILITIES if name in record["capability"]]
        if not needed or len(needed) < len(record["capability"]):
            raise InputError(
                f"{where}: capability is {record['capability']!r}; expected some of {', '.join(CAPABILITIES)}"
            )
        turn = Turn("user", (ImageRef(record["imagename"]), f"\n{record['question']}"))
        items.append(
            Item(
                id=key,
                category="_".join(needed),
                question_type="_".join(needed),
                conversation=Conversation(key, (turn,)),
                references=(str(record["answer"]),),
                slices=tuple(f"capability: {name}" for name in needed),
            )
        )
    return MMVet("mm-vet", items)


def _cases(sources: Sources, answers: Mapping[str, str]) -> list[JudgeCase]:
    """Put each answer beside its question and what is right.

    Raises:
        InputError: Answers are missing, or belong to no question.
    """
    items = _load(sources).items
    check_answers(items, answers)
    return [
        JudgeCase(
            id=item.id,
            category=item.category,
            question=str(item.conversation.turns[0].parts[1]).strip(),
            reference=item.references[0],
            candidate=answers[item.id],
        )
        for item in items
    ]


def score_grades(verdicts: Sequence[Verdict]) -> Score:
    """Score one run's grades: the mean over all, by capability, and by which a question needs together.

    A question that needs several capabilities counts in each (the official evaluator's way). One without a grade is
    left out and counted.
    """
    grades: dict[str, list[float]] = defaultdict(list)
    together: dict[str, list[float]] = defaultdict(list)
    marks: dict[str, float] = {}
    for verdict in verdicts:
        if not verdict.scores:
            continue
        marks[verdict.id] = verdict.scores[0]
        together[verdict.category].append(verdict.scores[0])
        for capability in verdict.category.split("_"):
            grades[capability].append(verdict.scores[0])
    unread = {verdict.id: verdict.failure for verdict in verdicts if not verdict.scores}
    overall = fmean(marks.values()) if marks else 0.0
    figures: dict[str, Any] = {}
    if marks:
        figures["total"] = 100 * overall
        figures["interval_95"] = ratio_interval([(1.0, grade) for grade in marks.values()])
    figures["capabilities"] = {
        name: 100 * fmean(grades[name]) for name in CAPABILITIES if grades[name]
    }
    figures["integrations"] = {name: 100 * fmean(given) for name, given in sorted(together.items())}
    figures |= validity_metrics(len(verdicts), unread)
    return Score(
        overall,
        {name: fmean(grades[name]) for name in CAPABILITIES if grades[name]},
        {name: len(grades[name]) for name in CAPABILITIES if grades[name]},
        metrics=figures,
        item_scores=marks,
        unparsed=unread,
    )


def _score_files(sources: Sources, path: Path) -> Score:
    """Score a file of grades in the official layout, of one run or several.

    Raises:
        InputError: It is no such file, or grades are missing.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold an object of grades by id (model, content, score)")
    items = _load(sources).items
    check_answers(items, content)
    counts = {key: len(_contents(record, f"{path}: {key}")) for key, record in content.items()}
    if len({*counts.values()}) != 1:
        raise InputError(
            f"{path} has from {min(counts.values())} to {max(counts.values())} grades a question; "
            "each run must grade all"
        )
    runs, differ = next(iter(counts.values())), 0
    scores = []
    for run in range(runs):
        verdicts = [
            parse_verdict(item.id, item.category, content[item.id]["content"][run], GRADES.read)
            for item in items
        ]
        stored = [content[item.id]["score"][run] for item in items]
        differ = sum(
            verdict.scores != (() if grade is None else (grade,))
            for verdict, grade in zip(verdicts, stored, strict=True)
        )
        score = score_grades(verdicts)
        score.metrics["stored_otherwise"] = differ
        scores.append(score)
    return average_runs(scores, "total")


def _contents(record: object, where: str) -> list[str]:
    """Return what the judge wrote about one answer, a text for each run.

    Raises:
        InputError: The record is not of the official layout.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where} should be an object, got {str(record)[:40]!r}")
    require_fields(record, ("content", "score"), where)
    content, score = record["content"], record["score"]
    if not isinstance(content, list) or not isinstance(score, list) or len(content) != len(score):
        raise InputError(f"{where}: content and score should be lists of the same length")
    if not content or not all(isinstance(text, str) for text in content):
        raise InputError(f"{where}: content should hold what the judge wrote in each run")
    for grade in score:
        if grade is not None and (isinstance(grade, bool) or not isinstance(grade, int | float)):
            raise InputError(
                f"{where}: score should hold numbers, or null where there is none, got {str(grade)[:40]!r}"
            )
    return content


MM_VET = BenchmarkSpec(
    name="mm-vet",
    title="MM-Vet",
    measures="Six capabilities and how they work together, by open answers that a judge grades.",
    description="218 questions about 200 pictures: github.com/yuweihao/MM-Vet",
    chance={},
    primary_metric="total",
    required_files="--questions: mm-vet.json; --answers are the judge's grades, which `caldera evaluate judge` writes",
    load=_load,
    score_answer_files=_score_files,
    judging=JudgeSpec(
        protocols=GRADE_PROTOCOLS, build_cases=_cases, score=score_grades, files=write_grade_files
    ),
)
