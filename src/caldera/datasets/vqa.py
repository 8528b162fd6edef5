"""VQA v2's questions and annotations (or OK-VQA's, which have their form) in, a conversation an image out.

Rules of LLaVA-1.5 (arXiv 2310.03744, appendix A.2): all questions about an image make one conversation, each question
ends with the sentence of table 7 that asks for a short answer. The answer is what most of the ten people said.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.datasets.importer import ImageFolder, ImportOptions, ImportResult
from caldera.errors import AnnotationError, InputError, describe_validation_error
from caldera.files.skipped import SkippedItems
from caldera.instructions.request_phrases import SHORT_ANSWER


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Question(_Wire):
    question_id: int
    image_id: int
    question: str


class _Answer(_Wire):
    answer: str
    raw_answer: str | None = None
    """As it was typed; OK-VQA's `answer` is cut to word stems."""


class _Annotation(_Wire):
    question_id: int
    image_id: int
    answers: list[_Answer] = []
    multiple_choice_answer: str | None = None


def import_vqa(path: Path, skips: SkippedItems, options: ImportOptions) -> ImportResult:
    """Read questions and answers and merge those about one image.

    Args:
        path: `*_questions.json`, or the folder that holds it and `*_annotations.json`.
        skips: Takes questions that are empty, unanswered, or about an image that is missing.
        options: `images`, `split` such as "train2014", `answers`, `sentences` and `find` are used.

    Raises:
        InputError: A file is missing or of another form, or a question is bad and may not be left out.
    """
    questions_path, answers_path = _files(path, options)
    header, questions = read_list(questions_path, "questions")
    annotations = {
        entry.get("question_id"): (f"{answers_path}: annotations.{index}", entry)
        for index, entry in enumerate(read_list(answers_path, "annotations")[1])
        if isinstance(entry, dict)
    }
    subtype = str(header.get("data_subtype", options.split or ""))
    folder = ImageFolder(
        _images(questions_path.parent, subtype, options), find=options.check_exists
    )
    asked: dict[str, list[tuple[str, str]]] = {}
    imported = ImportResult(total=len(questions))
    for index, entry in enumerate(questions):
        where = f"{questions_path}: questions.{index}"
        try:
            question = validate(_Question, entry, where)
            answer = _answer(question, annotations.get(question.question_id), where)
            image = folder.resolve(*image_names(question.image_id, subtype))
        except InputError as fault:
            skips.add_or_raise(where, fault)
        else:
            asked.setdefault(image, []).append((" ".join(question.question.split()), answer))
    skips.raise_if_over_limit(imported.total)
    imported.conversations = [
        _conversation(image, exchanges, options) for image, exchanges in asked.items()
    ]
    return imported


def _files(path: Path, options: ImportOptions) -> tuple[Path, Path]:
    """Find the file of the questions and that of the answers.

    Raises:
        AnnotationError: One is missing, or there are several.
    """
    if not path.exists():
        raise AnnotationError(f"cannot read {path}: it does not exist; check the path")
    folder, ending = path, f"{options.split or ''}_questions.json"
    if path.is_dir():
        found = sorted(path.glob(f"*{ending}"))
        if len(found) != 1:
            raise AnnotationError(
                f"{path} has {len(found)} files *{ending} {[one.name for one in found]}; name a split with --split, or "
                "give the file itself"
            )
        path = found[0]
    else:
        folder = path.parent
    if options.answers is not None:
        return path, options.answers
    split = path.name.removesuffix("_questions.json").rpartition("_")[2]
    answers = sorted(folder.glob(f"*{split}_annotations.json"))
    if len(answers) != 1:
        raise AnnotationError(
            f"{folder} has {len(answers)} files *{split}_annotations.json; name that of the answers with --answers "
            "(test splits have none)"
        )
    return path, answers[0]


def read_list(path: Path, field: str) -> tuple[dict[str, Any], list[Any]]:
    """Read one of the two files: what stands around its list, and the list.

    Raises:
        AnnotationError: It is missing, broken, or holds no such list.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise AnnotationError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is broken JSON: {error}") from error
    found = content.get(field) if isinstance(content, dict) else None
    if not isinstance(found, list) or not found:
        raise AnnotationError(
            f"{path} has no list {field!r} with something in it; give VQA v2's file of {field}"
        )
    return content, found


def validate(form: type[Any], entry: object, where: str) -> Any:  # noqa: ANN401 - of the form
    """Return an entry in its form.

    Raises:
        AnnotationError: It has another.
    """
    try:
        return form.model_validate(entry)
    except ValidationError as error:
        raise AnnotationError(f"{where}: {describe_validation_error(error, 'entry')}") from None


def _images(beside: Path, subtype: str, options: ImportOptions) -> Path:
    """Return the folder of images that was named, or a usual one."""
    if options.images is not None:
        return options.images
    candidates = (beside / subtype, beside / "images" / subtype, beside / "images")
    return next((one for one in candidates if subtype and one.is_dir()), beside)


def image_names(image_id: int, subtype: str) -> tuple[str, str]:
    """Return what an image is called in COCO of 2014, and in COCO of 2017, which LLaVA used."""
    return f"COCO_{subtype}_{image_id:012d}.jpg", f"{image_id:012d}.jpg"


def _answer(question: _Question, found: tuple[str, Any] | None, where: str) -> str:
    """Return the answer that most people gave; of equally many the official one, else the first.

    Raises:
        AnnotationError: There is none, or the question is empty or about another image.
    """
    if not question.question.strip():
        raise AnnotationError(f"{where}: the question is empty; remove it")
    if found is None:
        raise AnnotationError(
            f"{where}: question {question.question_id} has no annotation; remove it or give the answers of its split"
        )
    place, entry = found
    annotation = validate(_Annotation, entry, place)
    if annotation.image_id != question.image_id:
        raise AnnotationError(
            f"{place}: image_id is {annotation.image_id}, but {question.image_id} in question {question.question_id}; "
            "correct one"
        )
    texts = (" ".join((one.raw_answer or one.answer).split()) for one in annotation.answers)
    counts = Counter(text for text in texts if text)
    official = annotation.multiple_choice_answer
    if not counts:
        if official and official.strip():
            return official.strip()
        raise AnnotationError(f"{place}: there is no answer; remove it")
    most = max(counts.values())
    if official is not None and counts[official] == most:
        return official
    return next(text for text, count in counts.items() if count == most)


def _conversation(
    image: str, exchanges: list[tuple[str, str]], options: ImportOptions
) -> Conversation:
    """Make a conversation of all that was asked about an image."""
    turns: list[Turn] = []
    for number, (question, answer) in enumerate(exchanges):
        wanted = options.answer_prompt == "each" or (
            options.answer_prompt == "first" and number == 0
        )
        said = f"{question}\n{SHORT_ANSWER}" if wanted else question
        asked = (ImageRef(image), f"\n{said}") if number == 0 else (said,)
        turns += [Turn("user", asked), Turn("assistant", (answer,))]
    return Conversation(Path(image).stem, tuple(turns))
