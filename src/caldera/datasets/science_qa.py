"""Import of ScienceQA's problems.json and pid_splits.json, one conversation per problem.

A layout such as `QCM-LEA` gives the order of the parts, as in ScienceQA's own code: before the hyphen question (Q),
context (C) and choices (M); after it answer (A), lecture (L) and explanation (E). `LEPA` puts lecture and explanation
on separate lines, then `###` and the answer. Reasons in the question, as in `QCMLE-A`, measure an upper bound. `letter`
is LLaVA-1.5's layout: a choice per line, the answer a letter.

The texts are those of LLaVA's scripts/convert_sqa_to_llava.py, with its oddities: labels are removed wherever they
occur, an announced reason that is missing takes every "BECAUSE:" with it, and an answer without any reason may begin
with a space.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.datasets.importer import (
    ImportOptions,
    ImportResult,
    ResolveImage,
    image_resolver,
    read_json,
)
from caldera.errors import AnnotationError, InputError, UnknownNameError, describe_validation_error
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.request_phrases import LETTER_PROMPT

LETTERS = "ABCDEFGHIJ"
"""Letters of the choices."""


class Problem(BaseModel):
    """A problem of problems.json."""

    question: str = Field(min_length=1)
    choices: list[str] = Field(min_length=2, max_length=len(LETTERS))
    answer: int = Field(ge=0)
    hint: str = ""
    image: str | None = None
    lecture: str = ""
    solution: str = ""
    split: str = ""

    @property
    def letter(self) -> str:
        """Letter of the correct choice."""
        if self.answer >= len(self.choices):
            raise AnnotationError(
                f"the answer is {self.answer}, but there are {len(self.choices)} choices; correct it"
            )
        return LETTERS[self.answer]


Write = Callable[[Problem], str]
"""Writes the question or the answer of a problem."""


def _as_converted(write: Write, label: str) -> Write:
    """Return a layout whose text is cleaned as by LLaVA's converter, which removes a label if it begins the text."""

    def write_cleaned(problem: Problem) -> str:
        text = write(problem).replace("  ", " ").strip()
        if text.endswith("BECAUSE:"):
            text = text.replace("BECAUSE:", "").strip()
        return text.replace(label, "") if text.startswith(label) else text

    return write_cleaned


def _question(order: str) -> Write:
    """Return the layout of a question, as in "QCM"."""

    def write(problem: Problem) -> str:
        choices = zip(LETTERS, problem.choices, strict=False)
        parts = {
            "Q": f"Question: {problem.question}",
            "C": f"Context: {problem.hint.strip() or 'N/A'}",
            "M": f"Options: {' '.join(f'({letter}) {choice}' for letter, choice in choices)}",
            "L": f"BECAUSE: {problem.lecture}",
            "E": f"BECAUSE: {problem.solution}",
            "LE": f"BECAUSE: {problem.lecture} {problem.solution}",
        }
        return "\n".join(parts[part] for part in re.findall("LE|.", order))

    return write


def _reasons_before(*reasons: str) -> Write:
    """Return a layout with the answer before its reasons."""

    def write(problem: Problem) -> str:
        explanation = " ".join(getattr(problem, reason) for reason in reasons)
        return f"Answer: The answer is {problem.letter}." + (
            f" BECAUSE: {explanation}" if reasons else ""
        )

    return write


def _reasons_after(*reasons: str) -> Write:
    """Return a layout with the reasons before the answer."""

    def write(problem: Problem) -> str:
        explanation = "".join(f"{getattr(problem, reason)} " for reason in reasons)
        return f"Answer: {explanation}The answer is {problem.letter}."

    return write


def _choices_on_lines(problem: Problem) -> str:
    """Return lecture and explanation on separate lines, if there are any, then the answer after `###`."""
    lecture = f"LECTURE: {problem.lecture}\n" if problem.lecture.strip() else ""
    solution = f"SOLUTION: {problem.solution}\n" if problem.solution.strip() else ""
    return f"{lecture}{solution}###\nANSWER: {problem.letter}."


QUESTIONS: dict[str, Write] = {
    order: _as_converted(_question(order), "Question: ")
    for order in ("QCM", "CQM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
}
"""Layouts of questions."""

ANSWERS: dict[str, Write] = {
    order: _as_converted(write, "Answer: ")
    for order, write in {
        "A": _reasons_before(),
        "ALE": _reasons_before("lecture", "solution"),
        "AEL": _reasons_before("solution", "lecture"),
        # ScienceQA's own code swaps these two.
        "AL": _reasons_before("solution"),
        "AE": _reasons_before("lecture"),
        "LA": _reasons_after("lecture"),
        "EA": _reasons_after("solution"),
        "LEA": _reasons_after("lecture", "solution"),
        "ELA": _reasons_after("solution", "lecture"),
        "LEPA": _choices_on_lines,
    }.items()
}
"""Layouts of answers."""


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """Layout of a problem's question and answer."""

    question: Write
    answer: Write
    image_first: bool = False
    """Whether the image precedes the text, as in LLaVA-1.5's file, or follows it, as in LLaVA's."""


def _letter_layout(problem: Problem) -> str:
    """Return the question with a choice on each line and the request for a letter; only the context has a label."""
    context = [f"Context: {problem.hint.strip()}"] if problem.hint.strip() else []
    choices = zip(LETTERS, problem.choices, strict=False)
    options = [f"{letter}. {choice}" for letter, choice in choices]
    lines = (*context, problem.question, *options, LETTER_PROMPT)
    return "\n".join(lines).replace("  ", " ").strip()


def parse_layout(name: str) -> PromptLayout:
    """Return the layout called exactly `name`: `QCM-LEA` and the like, or `letter`."""
    if name == "letter":
        return PromptLayout(
            _letter_layout,
            lambda problem: problem.letter,
            image_first=True,
        )
    question, _, answer = name.partition("-")
    if question not in QUESTIONS or answer not in ANSWERS:
        names = [f"{first}-{second}" for first in QUESTIONS for second in ANSWERS]
        raise UnknownNameError("layout", name, [*names, "letter"])
    return PromptLayout(QUESTIONS[question], ANSWERS[answer])


def import_science_qa(path: Path, skipped: SkippedItems, options: ImportOptions) -> ImportResult:
    """Import the problems of one split from the folder of problems.json and pid_splits.json."""
    layout, split = parse_layout(options.layout), options.split or "train"
    problems, splits = _load(path / "problems.json"), _load(path / "pid_splits.json")
    if not isinstance(splits.get(split), list):
        raise UnknownNameError(f"split of {path}", split, splits)
    default = path / "images"
    root = options.images or (default if default.is_dir() else path)
    resolve_image = image_resolver(root, check_exists=options.check_exists)
    imported = ImportResult(total=len(splits[split]))
    for identity in splits[split]:
        location = f"{path / 'problems.json'}: problem {identity}"
        try:
            problem = _problem(problems, identity)
            conversation = _conversation(str(identity), problem, layout, resolve_image)
        except InputError as error:
            skipped.add_or_raise(location, type(error)(f"{location}: {error}"))
        else:
            imported.conversations.append(conversation)
    skipped.raise_if_over_limit(imported.total)
    return imported


def _load(path: Path) -> dict[str, Any]:
    """Return the content of problems.json or pid_splits.json."""
    content = read_json(path, "give the folder of problems.json and pid_splits.json")
    if not isinstance(content, dict):
        raise AnnotationError(f"{path} should hold a JSON object, as ScienceQA's does")
    return content


def _problem(problems: dict[str, Any], identity: object) -> Problem:
    """Return a problem of the split; raise if it is missing or broken."""
    if str(identity) not in problems:
        raise AnnotationError(
            "pid_splits.json lists it, but problems.json does not have it; remove or add it"
        )
    try:
        return Problem.model_validate(problems[str(identity)])
    except ValidationError as error:
        raise AnnotationError(describe_validation_error(error, "problem")) from None


def _conversation(
    identity: str, problem: Problem, layout: PromptLayout, resolve_image: ResolveImage
) -> Conversation:
    """Return a problem as a conversation."""
    question, answer = layout.question(problem), layout.answer(problem)
    parts: tuple[str | ImageRef, ...] = (question,)
    if problem.image:
        name = f"{identity}/{problem.image}"
        image = ImageRef(resolve_image(f"{problem.split}/{name}", name))
        parts = (image, f"\n{question}") if layout.image_first else (f"{question}\n", image)
    if IMAGE_PLACEHOLDER in question + answer:
        raise AnnotationError(
            f"its text contains {IMAGE_PLACEHOLDER}, the placeholder of an image; reword it"
        )
    return Conversation(identity, (Turn("user", parts), Turn("assistant", (answer,))))
