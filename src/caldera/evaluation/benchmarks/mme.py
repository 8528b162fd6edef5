"""MME: two yes/no questions per image, one true and one false, in 14 sub-tasks.

The score of a sub-task is its accuracy plus its accuracy+, the fraction of images with both questions correct, each
times 100; perception is the sum of ten sub-tasks, cognition of four. MME's own layout of answers is a folder of
`existence.txt` and so on, whose lines are image, question, correct answer and answer, separated by tabs; LLaVA's is
JSON lines with `question_id` "existence/000000006040.jpg" and the question in `prompt`, and needs --annotations, which
answers of VLMEvalKit and lmms-eval do not, since they repeat the correct answers. As in LLaVA's question file, the
questions are asked without "Please answer yes or no.", with the instruction to answer briefly in its place.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from caldera.errors import InputError, UnknownNameError, UsageError
from caldera.evaluation.answer_files import AnswerRecord
from caldera.evaluation.answer_matching import find_references
from caldera.evaluation.answer_parsing import parse_mme_answer
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    BootstrapStatistic,
    Item,
    Score,
    ScoredItems,
    Sources,
    mean,
    scores_by_group,
    to_percent,
)
from caldera.evaluation.benchmarks.llava_questions import (
    llava_file,
    llava_turn,
    official_file,
    read_llava_questions,
)
from caldera.evaluation.benchmarks.short_answers import short_answer_turn
from caldera.evaluation.files import find_repeated, join_names, read_text
from caldera.instructions.request_phrases import SHORT_ANSWER

PERCEPTION = {
    "existence": 60, "count": 60, "position": 60, "color": 60, "posters": 294, "celebrity": 340, "scene": 400,
    "landmark": 400, "artwork": 400, "OCR": 40,
}  # fmt: skip
COGNITION = {
    "commonsense_reasoning": 140, "numerical_calculation": 40, "text_translation": 40, "code_reasoning": 40,
}  # fmt: skip
SIZES = PERCEPTION | COGNITION
"""Number of questions by sub-task."""

_YES_NO = "Please answer yes or no."
"""MME's instruction, which LLaVA's question file omits."""

_EXPECTED = (
    "MME's folder, or one of existence.txt and so on with image, question and correct answer"
)


@dataclass(frozen=True, slots=True)
class _Question:
    """One question, and an answer if the file has one."""

    subtask: str
    image: str
    text: str
    label: str
    answer: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Identity across files: sub-task, image without suffix, question without instructions."""
        return _question_key(self.subtask, self.image, self.text)

    @property
    def id(self) -> str:
        """Unique name."""
        return f"{self.subtask}/{self.image}: {self.key[2]}"


def _question_key(subtask: str, image: str, text: str) -> tuple[str, str, str]:
    for instruction in (_YES_NO, SHORT_ANSWER):
        text = text.replace(instruction, "")
    return subtask, Path(image).stem, " ".join(text.split())


def _score(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Count correct answers and correct pairs; an answer that is neither yes nor no is wrong, and counted."""
    parsed = {item.id: parse_mme_answer(answers[item.id]) for item in items}
    scores = {item.id: float(parsed[item.id] == item.references[0]) for item in items}
    unparsed = {
        name: "begins with neither yes nor no" for name, word in parsed.items() if word is None
    }
    groups = scores_by_group(items, scores)
    subtask_scores = {name: _score_subtask(items, name, group) for name, group in groups.items()}
    metrics: dict[str, Any] = {
        name: round(sum(subtask_scores[subtask] for subtask in subtasks), 6)
        for name, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION))
        if subtasks.keys() <= subtask_scores.keys()
    }
    metrics |= {name: subtask_scores[name] for name in SIZES if name in subtask_scores}
    metrics |= {"questions": len(scores), "parse_failures": len(unparsed)}
    counts = {name: len(group) for name, group in groups.items()}
    if unusual := {name: count for name, count in counts.items() if count != SIZES[name]}:
        metrics["other_sizes"] = {
            name: f"{count} of {SIZES[name]}" for name, count in unusual.items()
        }
    overall = sum(subtask_scores.values()) / (200 * len(subtask_scores))
    by_category = {name: mean(group.values()) for name, group in groups.items()}
    statistic = None
    if "perception" in metrics:
        statistic = BootstrapStatistic(_summands(items, scores), _perception_from_sums)
    return Score(overall, by_category, counts, metrics, scores, unparsed, statistic)


def _summands(items: Sequence[Item], scores: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
    """Return each item's summands: questions, correct answers, images and correct images of perception.

    Four sums per sub-task; an image is counted with its first question.
    """
    subtasks = list(PERCEPTION)
    pairs: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        pairs[item.group].append(item)
    summands: dict[str, tuple[float, ...]] = {}
    for first, second in pairs.values():
        both = min(scores[first.id], scores[second.id])
        for item, image_summands in ((first, (1.0, both)), (second, (0.0, 0.0))):
            row = np.zeros((len(subtasks), 4))
            if item.category in PERCEPTION:
                row[subtasks.index(item.category)] = 1.0, scores[item.id], *image_summands
            summands[item.id] = tuple(row.flatten().tolist())
    return summands


def _score_subtask(items: Sequence[Item], subtask: str, scores: Mapping[str, float]) -> float:
    """Return accuracy plus accuracy+, each times 100."""
    pairs: dict[str, list[float]] = defaultdict(list)
    for item in items:
        if item.category == subtask:
            pairs[item.question_type].append(scores[item.id])
    both = mean(min(pair) for pair in pairs.values())
    return round(to_percent(mean(scores.values())) + to_percent(both), 6)


def _perception_from_sums(sums: np.ndarray) -> np.ndarray:
    """Return accuracy plus accuracy+ over all sub-tasks, times 100, from sums, (resamples, 4 sub-tasks)."""
    questions, correct, images, both = np.moveaxis(sums.reshape(len(sums), -1, 4), -1, 0)
    # Each (resamples, sub-tasks).
    fractions = correct / np.maximum(questions, 1) + both / np.maximum(images, 1)
    return 100 * fractions.sum(axis=-1)


def _to_benchmark(questions: Sequence[_Question]) -> ScoredItems:
    """Return the benchmark of complete, paired questions; an item's category is its sub-task, its type the image."""
    if repeated := find_repeated(question.id for question in questions):
        raise InputError(f"these questions occur more than once: {join_names(repeated)}")
    pairs = Counter((question.subtask, question.image) for question in questions)
    if unpaired := [f"{subtask}/{image}" for (subtask, image), n in pairs.items() if n != 2]:
        raise InputError(f"these images should have two questions each: {join_names(unpaired)}")
    present = {question.subtask for question in questions}
    for name, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        missing = subtasks.keys() - present
        if missing and len(missing) < len(subtasks):
            raise InputError(
                f"{name} is a sum over {len(subtasks)} sub-tasks; missing: {join_names(missing)}"
            )
    return ScoredItems("mme", [*map(_to_item, questions)], _score)


def _to_item(question: _Question) -> Item:
    image = f"{question.subtask}/{question.image}"
    return Item(
        question.id,
        question.subtask,
        question.image,
        short_answer_turn(question.id, image, question.text.replace(_YES_NO, "").strip()),
        (question.label,),
        group=image,
    )


def _load(folder: Path) -> list[_Question]:
    """Load MME's own folder of images and questions, or a folder with a file for each sub-task."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected {_EXPECTED}")
    questions: list[_Question] = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".txt":
            questions += _load_subtask_file(path, _check_subtask(path.stem, path))
        elif path.is_dir() and path.name in SIZES:
            questions += _load_subtask_folder(path)
    if not questions:
        raise InputError(f"{folder} holds no questions; expected {_EXPECTED}")
    return questions


def _check_subtask(name: str, path: Path) -> str:
    if name not in SIZES:
        raise InputError(f"{path}: {UnknownNameError('sub-task', name, SIZES)}")
    return name


def _load_subtask_file(path: Path, subtask: str) -> Iterable[_Question]:
    """Yield the lines of a sub-task: image, question, correct answer, and optionally the answer."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t", 3)
        if len(cells) < 3:
            raise InputError(
                f"{path}:{number} should be image, question, correct answer and answer, separated by tabs, got "
                f"{line[:60]!r}"
            )
        label = _parse_label(cells[2], f"{path}:{number}")
        answer = cells[3] if len(cells) > 3 else None
        yield _Question(subtask, cells[0], cells[1], label, answer)


def _load_subtask_folder(folder: Path) -> Iterable[_Question]:
    """Yield the two questions of each image of MME's release, which are in a text file of the image's name."""
    inner = folder / "questions_answers_YN"
    image_folder = folder / "images" if inner.is_dir() else folder
    images = {path.stem: path for path in image_folder.iterdir() if path.suffix != ".txt"}
    for path in sorted((inner if inner.is_dir() else folder).glob("*.txt")):
        if path.stem not in images:
            raise InputError(f"{path} has no image of its name in {image_folder}")
        for number, line in enumerate(read_text(path).strip().split("\n"), start=1):
            text, tab, label = line.strip().rpartition("\t")
            location = f"{path}:{number}"
            if not tab:
                raise InputError(
                    f"{location} should be question and correct answer, separated by a tab, got {line[:60]!r}"
                )
            image = str(images[path.stem].relative_to(folder))
            yield _Question(folder.name, image, text.strip(), _parse_label(label, location))


def _parse_label(text: str, location: str) -> str:
    word = text.strip().lower()
    if word not in ("yes", "no"):
        raise InputError(f"{location}: the correct answer should be Yes or No, got {text!r}")
    return word


def load_questions(sources: Sources) -> ScoredItems:
    """Load the questions with their correct answers, worded as in LLaVA's question file if it is given."""
    has_questions = sources.questions is not None
    folder = (
        official_file(sources, _EXPECTED)
        if has_questions
        else sources.require_annotations(_EXPECTED)
    )
    questions = _load(folder)
    benchmark, path = _to_benchmark(questions), llava_file(sources)
    return replace(benchmark, items=_ask_as_llava(questions, path)) if path else benchmark


def _ask_as_llava(questions: Sequence[_Question], path: Path) -> list[Item]:
    """Return the items of the questions with the images and texts of LLaVA's file, in which two share an id."""
    by_key = {}
    for record in read_llava_questions(path):
        subtask, _, image = record.fields["image"].partition("/")
        by_key[_question_key(subtask, image, record.prompt)] = record
    if different := by_key.keys() ^ {question.key for question in questions}:
        raise InputError(
            f"{path} and MME's files differ in {len(different)} questions: {join_names(map('/'.join, different))}; "
            "give all of both"
        )
    return [
        replace(_to_item(question), conversation=llava_turn(question.id, by_key[question.key]))
        for question in questions
    ]


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score a folder of answers in MME's layout, or LLaVA's JSON lines."""
    folder = sources.annotations or (None if llava_file(sources) else sources.questions)
    questions = _load(folder) if folder else None
    if answers.is_dir() and any(answers.glob("*.txt")):
        answered = _load(answers)
        if unanswered := [line.id for line in answered if line.answer is None]:
            raise InputError(
                f"{answers} has {len(unanswered)} lines without an answer: {join_names(unanswered)}"
            )
        if questions is None:
            return _to_benchmark(answered).score({line.id: line.answer or "" for line in answered})
        labels = {question.key: question.label for question in questions}
        if different := [
            line.id for line in answered if labels.get(line.key, line.label) != line.label
        ]:
            raise InputError(f"the answers have another correct answer for {join_names(different)}")
        by_key = {line.key: line.answer or "" for line in answered}
    else:
        records = sources.read_answers(answers)
        by_key = _index_answers(records)
        questions = questions or [_from_answer(record) for record in records]
    ids = {question.key: question.id for question in questions}
    texts = {ids.get(key, "/".join(key)): text for key, text in by_key.items()}
    return _to_benchmark(questions).score(texts)


def _name_of(answer: AnswerRecord) -> str:
    """Return sub-task and image; VLMEvalKit has them in two columns."""
    if "/" not in answer.id and "category" in answer.fields and "image_path" in answer.fields:
        return f"{answer.fields['category']}/{Path(str(answer.fields['image_path'])).name}"
    return answer.id


def _from_answer(answer: AnswerRecord) -> _Question:
    """Return the question that an answer of VLMEvalKit or lmms-eval repeats, with its label."""
    labels = find_references(answer) & {"yes", "no"}
    if len(labels) != 1:
        raise UsageError(f"answers without the correct ones need --annotations, {_EXPECTED}")
    subtask, _, image = _name_of(answer).partition("/")
    return _Question(subtask, image, answer.prompt, labels.pop())


def _index_answers(answers: Sequence[AnswerRecord]) -> dict[tuple[str, str, str], str]:
    """Return answers by sub-task, image and question."""
    by_key: dict[tuple[str, str, str], str] = {}
    for answer in answers:
        subtask, slash, image = _name_of(answer).partition("/")
        prompt = answer.prompt
        # The ids of this module's items hold the question.
        if ": " in image and not prompt:
            image, _, prompt = image.partition(": ")
        if not slash or not prompt:
            raise InputError(
                f"{answer.location} should have a question_id such as existence/000000006040.jpg and the question as "
                "prompt, since two questions share each id"
            )
        key = _question_key(_check_subtask(subtask, Path(answer.location)), image, prompt)
        if key in by_key:
            raise InputError(f"{answer.location} answers {answer.id} a second time: {prompt!r}")
        by_key[key] = answer.text
    return by_key


MME = BenchmarkSpec(
    name="mme",
    title="MME",
    measures="perception (objects, locations, people, text) and cognition (arithmetic, code, translation), by yes/no",
    description="2,374 questions in 14 sub-tasks, two about each image "
    "(github.com/BradyFU/Awesome-Multimodal-Large-Language-Models)",
    chance={"perception": 750.0, "cognition": 300.0},
    primary_metric="perception",
    required_files="none if the answers are MME's folder of existence.txt and so on; JSON lines need "
    "--annotations MME_FOLDER; --questions llava_mme.jsonl to ask with LLaVA's file",
    load=load_questions,
    score_official_files=score_answer_files,
)
