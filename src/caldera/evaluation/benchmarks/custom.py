"""A user's own questions: JSON lines with what is asked, what is right, and how the two are compared.

A line has `question`, `answer` (a text, or a list of which one is enough), and if need be `id`, `image` (a path or
several), `choices`, `kind` (a group that is scored apart) and `match`: exact (the same words), contains (the words are
in the answer), choice (the letter of a choice; `answer` is the letter or the choice itself), or judge (a judge grades
from 0 to 1 how far the answer says what is right, in the way of MM-Vet).
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    Sources,
    check_answers,
    mean,
    score_by_item_id,
    scores_by_group,
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


class _Record(BaseModel):
    """One line."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str = Field(min_length=1)
    answer: _Texts
    id: str | int | None = None
    image: _Texts | None = None
    choices: list[str] = Field(default=[], max_length=len(LETTERS))
    match: Match | None = None
    kind: str = Field(default="question", min_length=1)


@dataclass(frozen=True, slots=True)
class CustomBenchmark:
    """The questions; an item's form is how its answer is compared."""

    items: Sequence[Item]
    name: str = "custom"
    max_new_tokens: int = 128

    def score(self, answers: Mapping[str, str]) -> Score:
        """Compare each answer in its way; a choice that cannot be read is wrong, and counted.

        Raises:
            UsageError: A question wants a judge.
            InputError: Answers are missing, or belong to no question.
        """
        check_answers(self.items, answers)
        if judged := [item.id for item in self.items if _needs_judge(item)]:
            raise UsageError(
                f"{len(judged)} questions are compared by a judge, the first {judged[0]!r}; have them judged: caldera "
                "evaluate judge custom, or give them match exact, contains or choice"
            )
        marks = {item.id: float(_right(item, answers[item.id])) for item in self.items}
        unread = {
            item.id: "no single choice could be read"
            for item in self.items
            if item.question_type == "choice" and not _letter(item, answers[item.id])
        }
        groups = scores_by_group(self.items, marks)
        by_category = {name: mean(group.values()) for name, group in groups.items()}
        figures: dict[str, Any] = {"accuracy": to_percent(mean(marks.values()))}
        if len(by_category) > 1:
            figures |= {name: to_percent(share) for name, share in by_category.items()}
        figures |= {"questions": len(marks), "parse_failures": len(unread)}
        counts = {name: len(group) for name, group in groups.items()}
        return Score(mean(marks.values()), by_category, counts, figures, marks, unread)


def _needs_judge(item: Item) -> bool:
    return item.question_type == "judge"


def _letter(item: Item, text: str) -> str | None:
    return parse_choice(text, LETTERS[: len(item.choices)], item.choices)


def _right(item: Item, text: str) -> bool:
    """Compare an answer with what is right."""
    match item.question_type:
        case "choice":
            return _letter(item, text) in item.references
        case "contains":
            said = _words(text)
            return any(f" {_words(one)} " in f" {said} " for one in item.references)
        case _:
            return normalized(text) in {normalized(one) for one in item.references}


def _words(text: str) -> str:
    """Return the words of a text in lower case with one space between."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def load_questions(sources: Sources) -> CustomBenchmark:
    """Read the questions.

    Raises:
        UsageError: No file was given.
        InputError: It is missing, broken, or a line breaks the form.
    """
    path = sources.require_questions("JSON lines with question and answer")
    items = [_to_item(record, where, at) for at, (where, record) in enumerate(read_records(path))]
    check_unique((item.id for item in items), path)
    return CustomBenchmark(items)


def _to_item(record: dict[str, Any], where: str, at: int) -> Item:
    """Make an item of a line.

    Raises:
        InputError: It breaks the form.
    """
    try:
        line = _Record.model_validate(record)
    except ValidationError as error:
        raise InputError(f"{where}: {describe_validation_error(error, 'line')}") from None
    name = str(at) if line.id is None else str(line.id)
    match = line.match or ("choice" if line.choices else "exact")
    answers = [line.answer] if isinstance(line.answer, str) else line.answer
    images = [line.image] if isinstance(line.image, str) else line.image or []
    if (match == "choice") != bool(line.choices):
        raise InputError(
            f"{where}: match {match!r} and {len(line.choices)} choices do not go together; a choice needs some"
        )
    if match == "choice":
        asked = choice_turn(name, line.question, line.choices, images)
        answers = [_as_letter(one, line.choices, where) for one in answers]
    else:
        shown = [ImageRef(path) for path in images]
        text = f"\n{line.question}" if shown else line.question
        asked = Conversation(name, (Turn("user", (*shown, text)),))
    if match == "contains" and any(not _words(one) for one in answers):
        raise InputError(f"{where}: an answer without words is contained in every text; give it words")  # fmt: skip
    return Item(name, line.kind, match, asked, tuple(answers), tuple(line.choices))


def _as_letter(answer: str, choices: Sequence[str], where: str) -> str:
    """Return the letter of a right choice that is given as its letter or in its words."""
    if answer in choices:
        return LETTERS[choices.index(answer)]
    if len(answer) == 1 and answer in LETTERS[: len(choices)]:
        return answer
    raise InputError(
        f"{where}: the answer {answer!r} is none of the {len(choices)} choices, nor the letter of one"
    )


def _cases(sources: Sources, answers: Mapping[str, str]) -> list[JudgeCase]:
    """Put each answer that a judge compares beside its question and what is right.

    Raises:
        UsageError: No question wants a judge.
        InputError: Answers are missing, or belong to no question.
    """
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
            scores=(float(_right(item, answers[item.id])),),
            without_judge=True,
        )
        for item in load_questions(sources).items
        if not _needs_judge(item)
    ]


def _score_verdicts(verdicts: Sequence[Verdict]) -> Score:
    """Score one run: the mean grade of all answers, and by kind; one without a grade is left out and counted."""
    by_category: dict[str, list[float]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.scores:
            by_category[verdict.category].append(verdict.scores[0])
    marks = {verdict.id: verdict.scores[0] for verdict in verdicts if verdict.scores}
    unread = {verdict.id: verdict.failure for verdict in verdicts if not verdict.scores}
    judged = sum(not verdict.without_judge for verdict in verdicts)
    figures: dict[str, Any] = {}
    if marks:
        figures["accuracy"] = to_percent(mean(marks.values()))
        figures["interval_95"] = ratio_interval([(1.0, grade) for grade in marks.values()])
    if len(by_category) > 1:
        figures |= {kind: to_percent(mean(grades)) for kind, grades in by_category.items()}
    figures |= {"questions": len(verdicts), "judged": judged, **validity_metrics(judged, unread)}
    return Score(
        mean(marks.values()) if marks else 0.0,
        {kind: mean(grades) for kind, grades in by_category.items()},
        {kind: len(grades) for kind, grades in by_category.items()},
        figures,
        marks,
        unread,
    )


CUSTOM = BenchmarkSpec(
    name="custom",
    title="Own questions",
    measures="whatever you ask: exact words, words contained, choices, or as a judge sees it",
    description="yours",
    chance={},
    primary_metric="accuracy",
    required_files="--questions, JSON lines with question and answer",
    load=load_questions,
    score_answer_files=score_by_item_id(load_questions),
    judging=JudgeSpec(
        protocols=GRADE_PROTOCOLS,
        build_cases=_cases,
        score=_score_verdicts,
        files=write_grade_files,
        needs_judge=_needs_judge,
        settled_verdicts=_verdicts_without_judge,
    ),
)
