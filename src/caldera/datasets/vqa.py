"""Import of VQA v2's questions and annotations (OK-VQA has the same format), one conversation per image.

Rules of LLaVA-1.5 (arXiv 2310.03744, appendix A.2): all questions about an image make one conversation, each question
ends with the sentence of table 7 that asks for a short answer. The answer is the most frequent of ten people's answers.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.datasets.importer import ImportOptions, ImportResult, image_resolver, read_json
from caldera.errors import AnnotationError, InputError, describe_validation_error
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.request_phrases import SHORT_ANSWER


class _Question(BaseModel):
    question_id: int
    image_id: int
    question: str


class _Answer(BaseModel):
    answer: str
    raw_answer: str | None = None
    """The answer as typed; OK-VQA's `answer` is reduced to word stems."""


class _Annotation(BaseModel):
    question_id: int
    image_id: int
    answers: list[_Answer] = []
    multiple_choice_answer: str | None = None


def import_vqa(path: Path, skipped: SkippedItems, options: ImportOptions) -> ImportResult:
    """Import questions and answers, with the questions about one image merged into one conversation.

    `path` is `*_questions.json`, or the folder that holds it and `*_annotations.json`.
    """
    questions_path, answers_path = _find_files(path, options)
    header, questions = read_list(questions_path, "questions")
    annotations = {
        entry.get("question_id"): (f"{answers_path}: annotations.{index}", entry)
        for index, entry in enumerate(read_list(answers_path, "annotations")[1])
        if isinstance(entry, dict)
    }
    subtype = str(header.get("data_subtype", options.split or ""))
    root = _image_folder(questions_path.parent, subtype, options)
    resolve_image = image_resolver(root, check_exists=options.check_exists)
    exchanges: dict[str, list[tuple[str, str]]] = {}
    imported = ImportResult(total=len(questions))
    for index, entry in enumerate(questions):
        location = f"{questions_path}: questions.{index}"
        try:
            question = validate(_Question, entry, location)
            answer = _answer(question, annotations.get(question.question_id), location)
            image = resolve_image(*image_names(question.image_id, subtype))
        except InputError as error:
            skipped.add_or_raise(location, error)
        else:
            exchange = (" ".join(question.question.split()), answer)
            exchanges.setdefault(image, []).append(exchange)
    skipped.raise_if_over_limit(imported.total)
    imported.conversations = [
        _conversation(image, image_exchanges, options)
        for image, image_exchanges in exchanges.items()
    ]
    return imported


def _find_files(path: Path, options: ImportOptions) -> tuple[Path, Path]:
    """Return the file of the questions and the file of the answers; raise unless there is one of each."""
    if not path.exists():
        raise AnnotationError(f"cannot read {path}: it does not exist; check the path")
    folder, ending = path, f"{options.split or ''}_questions.json"
    if path.is_dir():
        candidates = sorted(path.glob(f"*{ending}"))
        if len(candidates) != 1:
            raise AnnotationError(
                f"{path} has {len(candidates)} files *{ending} {[file.name for file in candidates]}; name a split with "
                "--split, or give the file itself"
            )
        path = candidates[0]
    else:
        folder = path.parent
    if options.answers is not None:
        return path, options.answers
    split = path.name.removesuffix("_questions.json").rpartition("_")[2]
    answers = sorted(folder.glob(f"*{split}_annotations.json"))
    if len(answers) != 1:
        raise AnnotationError(
            f"{folder} has {len(answers)} files *{split}_annotations.json; name the file of the answers with --answers "
            "(test splits have none)"
        )
    return path, answers[0]


def read_list(path: Path, field: str) -> tuple[dict[str, Any], list[Any]]:
    """Return the content of a VQA file, and its list of questions or annotations."""
    content = read_json(path)
    entries = content.get(field) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise AnnotationError(
            f"{path} has no list {field!r}, or an empty one; give VQA v2's file of {field}"
        )
    return content, entries


def validate(schema: type[Any], entry: object, location: str) -> Any:  # noqa: ANN401 - of the schema
    """Return an entry as an object of its schema."""
    try:
        return schema.model_validate(entry)
    except ValidationError as error:
        raise AnnotationError(f"{location}: {describe_validation_error(error, 'entry')}") from None


def _image_folder(folder: Path, subtype: str, options: ImportOptions) -> Path:
    """Return the folder of images from the options, or a usual one near the questions."""
    if options.images is not None:
        return options.images
    candidates = (folder / subtype, folder / "images" / subtype, folder / "images")
    return next((path for path in candidates if subtype and path.is_dir()), folder)


def image_names(image_id: int, subtype: str) -> tuple[str, str]:
    """Return the file name of an image in COCO 2014, and in COCO 2017, which LLaVA used."""
    return f"COCO_{subtype}_{image_id:012d}.jpg", f"{image_id:012d}.jpg"


def _answer(question: _Question, located: tuple[str, Any] | None, location: str) -> str:
    """Return the most frequent answer; of several the official one, else the first."""
    if not question.question.strip():
        raise AnnotationError(f"{location}: the question is empty; remove it")
    if located is None:
        raise AnnotationError(
            f"{location}: question {question.question_id} has no annotation; remove it or give the answers of its split"
        )
    entry_location, entry = located
    annotation = validate(_Annotation, entry, entry_location)
    if annotation.image_id != question.image_id:
        raise AnnotationError(
            f"{entry_location}: image_id is {annotation.image_id}, but {question.image_id} in question "
            f"{question.question_id}; correct one"
        )
    texts = (
        " ".join((answer.raw_answer or answer.answer).split()) for answer in annotation.answers
    )
    counts = Counter(text for text in texts if text)
    official = annotation.multiple_choice_answer
    if not counts:
        if official and official.strip():
            return official.strip()
        raise AnnotationError(f"{entry_location}: there is no answer; remove it")
    highest = max(counts.values())
    if official is not None and counts[official] == highest:
        return official
    return next(text for text, count in counts.items() if count == highest)


def _conversation(
    image: str, exchanges: list[tuple[str, str]], options: ImportOptions
) -> Conversation:
    """Return a conversation of all questions about an image."""
    turns: list[Turn] = []
    for number, (question, answer) in enumerate(exchanges):
        first = number == 0
        has_prompt = options.answer_prompt == "each" or (first and options.answer_prompt == "first")
        text = f"{question}\n{SHORT_ANSWER}" if has_prompt else question
        parts = (ImageRef(image), f"\n{text}") if first else (text,)
        turns += [Turn("user", parts), Turn("assistant", (answer,))]
    return Conversation(Path(image).stem, tuple(turns))
