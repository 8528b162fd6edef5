"""MM-Vet: open answers graded from 0 to 1, by six capabilities and their combinations (arXiv 2308.02490)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from caldera.errors import InputError
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    JudgeSpec,
    Score,
    ScoredItems,
    Sources,
    check_answers,
)
from caldera.evaluation.benchmarks.llava_questions import ask_as_llava, official_file
from caldera.evaluation.benchmarks.short_answers import question_turn
from caldera.evaluation.files import read_object, require_fields
from caldera.evaluation.judging.grading import GRADE_PROTOCOLS, GRADES, write_grade_files
from caldera.evaluation.judging.protocols import JudgeCase
from caldera.evaluation.judging.scores import average_runs, judged_benchmark, ratio_interval
from caldera.evaluation.judging.verdicts import Verdict, parse_verdict, validity_metrics

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
"""Recognition, OCR, knowledge, generation, spatial awareness, arithmetic; in the official table's order."""


def _load(sources: Sources) -> ScoredItems:
    """Load `mm-vet.json`; if LLaVA's question file is --questions, it is --annotations."""
    path = official_file(sources, "the official mm-vet.json")
    items: list[Item] = []
    content = read_object(path, "of questions by id, as mm-vet.json does")
    for key, record in content.items():
        location = f"{path}: {key}"
        require_fields(record, ("imagename", "question", "answer", "capability"), location)
        needed = [name for name in CAPABILITIES if name in record["capability"]]
        if not needed or len(needed) < len(record["capability"]):
            raise InputError(
                f"{location}: capability is {record['capability']!r}; expected some of {', '.join(CAPABILITIES)}"
            )
        items.append(
            Item(
                id=key,
                category="_".join(needed),
                question_type="_".join(needed),
                conversation=question_turn(key, record["imagename"], record["question"]),
                references=(str(record["answer"]),),
                slices=tuple(f"capability: {name}" for name in needed),
            )
        )
    return judged_benchmark(
        "mm-vet", ask_as_llava(items, sources), GRADES.parse, score_grades, "total"
    )


def _build_cases(sources: Sources, answers: Mapping[str, str]) -> list[JudgeCase]:
    """Combine each answer with its question and correct answer."""
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
    """Score one run's grades: the mean overall, by capability, and by combination of capabilities.

    A question that needs several capabilities counts in each, as in the official evaluator. One without a grade is
    skipped and counted.
    """
    by_capability: dict[str, list[float]] = defaultdict(list)
    by_combination: dict[str, list[float]] = defaultdict(list)
    item_scores: dict[str, float] = {}
    for verdict in verdicts:
        if not verdict.scores:
            continue
        grade = item_scores[verdict.id] = verdict.scores[0]
        by_combination[verdict.category].append(grade)
        for capability in verdict.category.split("_"):
            by_capability[capability].append(grade)
    grades = {name: by_capability[name] for name in CAPABILITIES if by_capability[name]}
    unparsed = {verdict.id: verdict.failure for verdict in verdicts if not verdict.scores}
    overall = fmean(item_scores.values()) if item_scores else 0.0
    metrics: dict[str, Any] = {}
    if item_scores:
        metrics["total"] = 100 * overall
        metrics["interval_95"] = ratio_interval([(1.0, grade) for grade in item_scores.values()])
    metrics["capabilities"] = {name: 100 * fmean(group) for name, group in grades.items()}
    metrics["integrations"] = {
        name: 100 * fmean(group) for name, group in sorted(by_combination.items())
    }
    metrics |= validity_metrics(len(verdicts), unparsed)
    return Score(
        overall,
        {name: fmean(group) for name, group in grades.items()},
        {name: len(group) for name, group in grades.items()},
        metrics,
        item_scores,
        unparsed,
    )


def _score_files(sources: Sources, path: Path) -> Score:
    """Score a file of grades in the official layout, of one run or several."""
    content = read_object(path, "of grades by id (model, content, score)")
    items = _load(sources).items
    check_answers(items, dict.fromkeys(content, ""))
    counts = {_count_runs(record, f"{path}: {key}") for key, record in content.items()}
    if len(counts) != 1:
        raise InputError(
            f"{path} has from {min(counts)} to {max(counts)} grades per question; each run must grade all"
        )
    scores = []
    for run in range(counts.pop()):
        verdicts = [
            parse_verdict(item.id, item.category, content[item.id]["content"][run], GRADES.parse)
            for item in items
        ]
        stored = [content[item.id]["score"][run] for item in items]
        score = score_grades(verdicts)
        score.metrics["num_different"] = sum(
            verdict.scores != (() if grade is None else (grade,))
            for verdict, grade in zip(verdicts, stored, strict=True)
        )
        scores.append(score)
    return average_runs(scores, "total")


def _count_runs(record: object, location: str) -> int:
    """Return the number of runs in the grades of one answer."""
    record = require_fields(record, ("content", "score"), location)
    content, score = record["content"], record["score"]
    if not isinstance(content, list) or not isinstance(score, list) or len(content) != len(score):
        raise InputError(f"{location}: content and score should be lists of the same length")
    if not content or not all(isinstance(text, str) for text in content):
        raise InputError(f"{location}: content should hold the judge's reply in each run")
    for grade in score:
        if grade is not None and (isinstance(grade, bool) or not isinstance(grade, int | float)):
            raise InputError(
                f"{location}: score should hold numbers, or null if there is none, got {str(grade)[:40]!r}"
            )
    return len(content)


MM_VET = BenchmarkSpec(
    name="mm-vet",
    title="MM-Vet",
    measures="Six capabilities and their combinations, by open answers that a judge grades.",
    description="218 questions about 200 images: github.com/yuweihao/MM-Vet",
    chance={},
    primary_metric="total",
    required_files="--questions: mm-vet.json; --answers are the judge's grades, which `caldera evaluate judge` writes",
    load=_load,
    score_official_files=_score_files,
    judging=JudgeSpec(
        protocols=GRADE_PROTOCOLS,
        build_cases=_build_cases,
        score=score_grades,
        files=write_grade_files,
    ),
)
