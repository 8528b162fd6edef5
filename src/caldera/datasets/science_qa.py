"""ScienceQA's problems.json and pid_splits.json in, a conversation a problem out.

The forms are those of ScienceQA's code, as LLaVA converts them: letters before the hyphen are the order of the question
(Q), its context (C) and the choices (M); those behind it are the order of the answer (A), the lecture (L) and the
explanation (E). `LEPA` puts the last two on lines of their own. `letter` is what LLaVA-1.5 is asked: choices on lines,
the answer a letter.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.datasets.importer import ImageFolder, ImportOptions, ImportResult
from caldera.errors import AnnotationError, InputError, UnknownNameError, describe_validation_error
from caldera.files.skipped import SkippedItems
from caldera.instructions.request_phrases import LETTER_PROMPT

LETTERS = "ABCDEFGHIJ"
"""Names of the choices."""


class Problem(BaseModel):
    """One problem, as problems.json has it."""

    model_config = ConfigDict(extra="ignore")

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
        """The letter of the true choice.

        Raises:
            AnnotationError: There is no such choice.
        """
        if self.answer >= len(self.choices):
            raise AnnotationError(
                f"the answer is {self.answer}, but there are {len(self.choices)} choices; correct it"
            )
        return LETTERS[self.answer]

    def _labeled(self) -> tuple[str, str, str]:
        """Question, context and options, each behind its name."""
        options = " ".join(
            f"({letter}) {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False)
        )
        context = self.hint.strip() or "N/A"
        return f"Question: {self.question}", f"Context: {context}", f"Options: {options}"


def _question_first(problem: Problem) -> str:
    question, context, options = problem._labeled()
    return f"{question}\n{context}\n{options}".replace(
        "Question: ", ""
    )  # all, as LLaVA's converter


def _context_first(problem: Problem) -> str:
    question, context, options = problem._labeled()
    return f"{context}\n{question}\n{options}"


def _reasons_before(*reasons: str) -> Callable[[Problem], str]:
    """Answer, then give reasons."""

    def write(problem: Problem) -> str:
        given = " ".join(getattr(problem, reason) for reason in reasons)
        text = f"The answer is {problem.letter}." + (f" BECAUSE: {given}" if reasons else "")
        return text.replace("Answer: ", "")  # as LLaVA's converter

    return write


def _reasons_after(*reasons: str) -> Callable[[Problem], str]:
    """Give reasons, then answer."""

    def write(problem: Problem) -> str:
        given = "".join(f"{getattr(problem, reason)} " for reason in reasons)
        return f"{given}The answer is {problem.letter}.".replace("Answer: ", "")

    return write


def _choices_on_lines(problem: Problem) -> str:
    """Give lecture and explanation on lines of their own, where there are any, then the answer behind a rule."""
    lecture = f"LECTURE: {problem.lecture}\n" if problem.lecture.strip() else ""
    solution = f"SOLUTION: {problem.solution}\n" if problem.solution.strip() else ""
    return f"{lecture}{solution}###\nANSWER: {problem.letter}."


QUESTIONS: dict[str, Callable[[Problem], str]] = {"QCM": _question_first, "CQM": _context_first}
"""Layouts of what is asked."""

ANSWERS: dict[str, Callable[[Problem], str]] = {
    "A": _reasons_before(),
    "ALE": _reasons_before("lecture", "solution"),
    "AEL": _reasons_before("solution", "lecture"),
    "AL": _reasons_before("solution"),  # ScienceQA's own code has these two so
    "AE": _reasons_before("lecture"),
    "LA": _reasons_after("lecture"),
    "EA": _reasons_after("solution"),
    "LEA": _reasons_after("lecture", "solution"),
    "ELA": _reasons_after("solution", "lecture"),
    "LEPA": _choices_on_lines,
}
"""Layouts of what is answered."""


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """How a problem is laid out."""

    ask: Callable[[Problem], str]
    answer: Callable[[Problem], str]
    image_first: bool = False
    """Whether the image stands before the text, as in LLaVA-1.5's file, or behind it, as in LLaVA's."""


def _letter_layout(problem: Problem) -> str:
    """Ask with the choices on lines and without names but the context's."""
    context = [f"Context: {problem.hint.strip()}"] if problem.hint.strip() else []
    choices = zip(LETTERS, problem.choices, strict=False)
    options = [f"{letter}. {choice}" for letter, choice in choices]
    return "\n".join((*context, problem.question, *options))


def parse_layout(name: str) -> PromptLayout:
    """Return the form called exactly `name`: `QCM-LEA` and the like, or `letter`.

    Raises:
        UnknownNameError: There is none.
    """
    if name == "letter":
        return PromptLayout(
            lambda problem: f"{_letter_layout(problem)}\n{LETTER_PROMPT}",
            _letter,
            image_first=True,
        )
    ask, _, answer = name.partition("-")
    if ask not in QUESTIONS or answer not in ANSWERS:
        known = [f"{first}-{second}" for first in QUESTIONS for second in ANSWERS]
        raise UnknownNameError("layout", name, [*known, "letter"])
    return PromptLayout(QUESTIONS[ask], ANSWERS[answer])


def _letter(problem: Problem) -> str:
    return problem.letter


def import_science_qa(path: Path, skips: SkippedItems, options: ImportOptions) -> ImportResult:
    """Read the problems of one split.

    Args:
        path: The folder that holds problems.json and pid_splits.json.
        skips: Takes problems that are missing, broken, or without their image.
        options: `split` ("train" if None), `form`, `images` and `find` are used.

    Raises:
        UnknownNameError: There is no such split or form.
        InputError: A file is missing or of another form, or a problem is bad and may not be left out.
    """
    form, split = parse_layout(options.layout), options.split or "train"
    problems, splits = _load(path / "problems.json"), _load(path / "pid_splits.json")
    if not isinstance(splits.get(split), list):
        raise UnknownNameError(f"split of {path}", split, splits)
    beside = path / "images"
    root = options.images or (beside if beside.is_dir() else path)
    folder = ImageFolder(root, find=options.check_exists)
    imported = ImportResult(total=len(splits[split]))
    for identity in splits[split]:
        where = f"{path / 'problems.json'}: problem {identity}"
        try:
            problem = _problem(problems, identity)
            conversation = _conversation(str(identity), problem, form, folder)
        except InputError as fault:
            skips.add_or_raise(where, type(fault)(f"{where}: {fault}"))
        else:
            imported.conversations.append(conversation)
    skips.raise_if_over_limit(imported.total)
    return imported


def _load(path: Path) -> dict[str, Any]:
    """Read one of the two files.

    Raises:
        AnnotationError: It is missing, broken, or not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise AnnotationError(
            f"cannot read {path}: {error.strerror}; give the folder of problems.json and pid_splits.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is broken JSON: {error}") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{path} should hold a JSON object, as ScienceQA's does")
    return content


def _problem(problems: dict[str, Any], identity: object) -> Problem:
    """Return a problem of the split.

    Raises:
        AnnotationError: It is not there, or broken.
    """
    if str(identity) not in problems:
        raise AnnotationError("pid_splits.json lists it, but it is not there; remove it or add it")
    try:
        return Problem.model_validate(problems[str(identity)])
    except ValidationError as error:
        raise AnnotationError(describe_validation_error(error, "problem")) from None


def _conversation(
    identity: str, problem: Problem, form: PromptLayout, folder: ImageFolder
) -> Conversation:
    """Lay a problem out; of every text, two spaces become one, and none stand at its ends.

    Raises:
        InputError: The answer is not among the choices, or the image is missing.
    """
    asked, answered = (
        layout(problem).replace("  ", " ").strip() for layout in (form.ask, form.answer)
    )
    parts: tuple[str | ImageRef, ...] = (asked,)
    if problem.image:
        name = f"{identity}/{problem.image}"
        image = ImageRef(folder.resolve(f"{problem.split}/{name}", name))
        parts = (image, f"\n{asked}") if form.image_first else (f"{asked}\n", image)
    if IMAGE_PLACEHOLDER in asked + answered:
        raise AnnotationError(f"it says {IMAGE_PLACEHOLDER}, which stands for an image; reword it")
    return Conversation(identity, (Turn("user", parts), Turn("assistant", (answered,))))
