"""A user's own questions: JSON lines with question, correct answer, and how to compare the two.

A line has `question`, `answer` (a text, or a list of alternatives), and optionally `id`, `image` (a path or several),
`choices`, `kind` (a category that is scored separately) and `match`: exact (the same words), contains (the words are in
the answer), choice (the letter of a choice; `answer` is the letter or the choice itself), or judge (a judge grades the
answer from 0 to 1, as in MM-Vet).
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import InputError, UsageError, describe_validation_error
from caldera.evaluation.annotation_questions import normalized
from caldera.evaluation.answer_parsing import LETTERS, parse_choice
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    JudgeSpec,
    Score,
    ScoredItems,
    Sources,
    check_answers,
    mean,
    score_items,
    to_percent,
)
from caldera.evaluation.benchmarks.multiple_choice import choice_turn
from caldera.evaluation.files import check_unique, read_records
from caldera.evaluation.judging.grading import GRADE_PROTOCOLS, write_grade_files
from caldera.evaluation.judging.protocols import JudgeCase
from caldera.evaluation.judging.scores import ratio_interval
from caldera.evaluation.judging.verdicts import Verdict, validity_metrics

Match = Literal["exact", "contains", "choice", "judge"]
_Texts = str | Annotated[list[str], Field(min_length=1)]


class _RecordSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    question: str = Field(min_length=1)
    answer: _Texts
    id: str | int | None = None
    image: _Texts | None = None
    choices: list[str] = Field(default=[], max_length=len(LETTERS))
    match: Match | None = None
    kind: str = Field(default="question", min_length=1)


def _score(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Compare each answer by its question's rule; an unparsed choice is wrong, and counted."""
    if judged := [item.id for item in items if _needs_judge(item)]:
        raise UsageError(
            f"{len(judged)} questions are compared by a judge, the first {judged[0]!r}; have them judged: caldera "
            "evaluate judge custom, or give them match exact, contains or choice"
        )
    scores = {item.id: float(_is_correct(item, answers[item.id])) for item in items}
    unparsed = {
        item.id: "no single choice could be read"
        for item in items
        if item.question_type == "choice" and not _parse_letter(item, answers[item.id])
    }
    score = score_items(items, scores, unparsed)
    metrics: dict[str, Any] = {"accuracy": to_percent(score.overall)}
    if len(score.by_category) > 1:
        metrics |= {name: to_percent(value) for name, value in score.by_category.items()}
    metrics |= {"questions": len(scores), "parse_failures": len(unparsed)}
    return replace(score, metrics=metrics)


def _needs_judge(item: Item) -> bool:
    return item.question_type == "judge"


def _parse_letter(item: Item, text: str) -> str | None:
    return parse_choice(text, LETTERS[: len(item.choices)], item.choices)


def _is_correct(item: Item, text: str) -> bool:
    """Compare an answer with the references by the item's rule."""
    match item.question_type:
        case "choice":
            return _parse_letter(item, text) in item.references
        case "contains":
            words = f" {_normalize_words(text)} "
            return any(f" {_normalize_words(answer)} " in words for answer in item.references)
        case _:
            return normalized(text) in {normalized(answer) for answer in item.references}


def _normalize_words(text: str) -> str:
    """Return the words of a text in lower case, separated by single spaces."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def load_questions(sources: Sources) -> ScoredItems:
    """Load the questions, whose type is how the answer is compared."""
    path = sources.require_questions("JSON lines with question and answer")
    items = [
        _to_item(record, location, index)
        for index, (location, record) in enumerate(read_records(path))
    ]
    check_unique((item.id for item in items), path)
    return ScoredItems("custom", items, _score)


def _to_item(record: dict[str, Any], location: str, index: int) -> Item:
    """Return the item of a line; its number is the default id."""
    try:
        line = _RecordSchema.model_validate(record)
    except ValidationError as error:
        raise InputError(f"{location}: {describe_validation_error(error, 'line')}") from None
    name = str(index) if line.id is None else str(line.id)
    match = line.match or ("choice" if line.choices else "exact")
    answers = [line.answer] if isinstance(line.answer, str) else line.answer
    images = [line.image] if isinstance(line.image, str) else line.image or []
    if (match == "choice") != bool(line.choices):
        raise InputError(
            f"{location}: match {match!r} and {len(line.choices)} choices do not go together; a choice needs some"
        )
    if match == "choice":
        conversation = choice_turn(name, line.question, line.choices, images)
        answers = [_to_letter(answer, line.choices, location) for answer in answers]
    else:
        text = f"\n{line.question}" if images else line.question
        parts: tuple[str | ImageRef, ...] = (*map(ImageRef, images), text)
        conversation = Conversation(name, (Turn("user", parts),))
    if match == "contains" and not all(map(_normalize_words, answers)):
        raise InputError(
            f"{location}: an answer without words is contained in every text; give it words"
        )
    return Item(name, line.kind, match, conversation, tuple(answers), tuple(line.choices))


def _to_letter(answer: str, choices: Sequence[str], location: str) -> str:
    """Return the letter of a correct choice, given as its letter or its text."""
    if answer in choices:
        return LETTERS[choices.index(answer)]
    if len(answer) == 1 and answer in LETTERS[: len(choices)]:
        return answer
    raise InputError(
        f"{location}: the answer {answer!r} is none of the {len(choices)} choices, nor the letter of one"
    )


def _build_cases(sources: Sources, answers: Mapping[str, str]) -> list[JudgeCase]:
    """Combine each answer that needs a judge with its question and correct answers."""
    items = load_questions(sources).items
    check_answers(items, answers)
    cases = [
        JudgeCase(
            id=item.id,
            category=item.category,
            question=item.conversation.turns[0].text.strip(),
            reference="<OR>".join(item.references),
            candidate=answers[item.id],
        )
        for item in items
        if _needs_judge(item)
    ]
    if not cases:
        raise UsageError(
            "no question has match judge, so none is judged; use: caldera evaluate score custom"
        )
    return cases


def _verdicts_without_judge(sources: Sources, answers: Mapping[str, str]) -> list[Verdict]:
    """Compare the answers that need no judge."""
    return [
        Verdict(
            id=item.id,
            category=item.category,
            scores=(float(_is_correct(item, answers[item.id])),),
            without_judge=True,
        )
        for item in load_questions(sources).items
        if not _needs_judge(item)
    ]


def _score_verdicts(verdicts: Sequence[Verdict]) -> Score:
    """Score one run: the mean grade, overall and by category; answers without a grade are skipped and counted."""
    by_category: dict[str, list[float]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.scores:
            by_category[verdict.category].append(verdict.scores[0])
    scores = {verdict.id: verdict.scores[0] for verdict in verdicts if verdict.scores}
    unparsed = {verdict.id: verdict.failure for verdict in verdicts if not verdict.scores}
    num_judged = sum(not verdict.without_judge for verdict in verdicts)
    metrics: dict[str, Any] = {}
    if scores:
        metrics["accuracy"] = to_percent(mean(scores.values()))
        metrics["interval_95"] = ratio_interval([(1.0, grade) for grade in scores.values()])
    if len(by_category) > 1:
        metrics |= {name: to_percent(mean(grades)) for name, grades in by_category.items()}
    metrics |= {"questions": len(verdicts), "judged": num_judged}
    metrics |= validity_metrics(num_judged, unparsed)
    return Score(
        mean(scores.values()) if scores else 0.0,
        {name: mean(grades) for name, grades in by_category.items()},
        {name: len(grades) for name, grades in by_category.items()},
        metrics,
        scores,
        unparsed,
    )


CUSTOM = BenchmarkSpec(
    name="custom",
    title="Custom questions",
    measures="anything you ask: exact words, contained words, choices, or a judge's grade",
    description="yours",
    chance={},
    primary_metric="accuracy",
    required_files="--questions, JSON lines with question and answer",
    load=load_questions,
    judging=JudgeSpec(
        protocols=GRADE_PROTOCOLS,
        build_cases=_build_cases,
        score=_score_verdicts,
        files=write_grade_files,
        needs_judge=_needs_judge,
        settled_verdicts=_verdicts_without_judge,
    ),
)
