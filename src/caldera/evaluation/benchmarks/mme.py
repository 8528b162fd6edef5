"""MME: two yes-or-no questions about every image, one true and one false, in 14 sub-tasks (spec 7).

The score of a sub-task is its accuracy plus its accuracy+, the share of images with both questions right, each times
100; perception is the sum of ten, cognition of four. MME's own layout of answers is a folder of `existence.txt` and so
on, whose lines are image, question, truth and answer with tabs between; LLaVA's is JSON lines with `question_id`
"existence/000000006040.jpg" and the question in `prompt`, which need the truth beside.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import InputError, UnknownNameError, UsageError
from caldera.evaluation.answer_parsing import parse_mme_answer
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    BootstrapStatistic,
    Item,
    Score,
    Sources,
    check_answers,
    mean,
    scores_by_group,
    to_percent,
)
from caldera.evaluation.files import AnswerRecord, join_names, read_answer_list, read_text
from caldera.instructions.request_phrases import SHORT_ANSWER

PERCEPTION = {
    "existence": 60, "count": 60, "position": 60, "color": 60, "posters": 294, "celebrity": 340, "scene": 400,
    "landmark": 400, "artwork": 400, "OCR": 40,
}  # fmt: skip
COGNITION = {
    "commonsense_reasoning": 140, "numerical_calculation": 40, "text_translation": 40, "code_reasoning": 40,
}  # fmt: skip
SIZES = PERCEPTION | COGNITION
"""Sub-tasks with their number of questions."""

_FIXED = ("Please answer yes or no.", SHORT_ANSWER)
"""Sentences behind a question, which files add or leave out."""

_WANTED = "MME's folder, or one of existence.txt and so on with picture, question and truth"


@dataclass(frozen=True, slots=True)
class _Row:
    """One question, and an answer where the file has one."""

    subtask: str
    image: str
    question: str
    truth: str
    answer: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others: sub-task, image without ending, question without fixed sentences."""
        return _key(self.subtask, self.image, self.question)

    @property
    def id(self) -> str:
        """A name that no other question has."""
        return f"{self.subtask}/{self.image}: {self.key[2]}"


def _key(subtask: str, image: str, question: str) -> tuple[str, str, str]:
    for sentence in _FIXED:
        question = question.replace(sentence, "")
    return subtask, Path(image).stem, " ".join(question.split())


@dataclass(frozen=True, slots=True)
class Mme:
    """Questions in pairs; an item's kind is its sub-task, its form the image."""

    items: tuple[Item, ...]
    name: str = "mme"
    max_new_tokens: int = 16

    def score(self, answers: Mapping[str, str]) -> Score:
        """Count what is right alone, and in pairs; what MME reads as neither yes nor no is wrong, and counted.

        Raises:
            InputError: Answers are missing, or belong to no question.
        """
        check_answers(self.items, answers)
        said = {item.id: parse_mme_answer(answers[item.id]) for item in self.items}
        marks = {item.id: float(said[item.id] == item.references[0]) for item in self.items}
        unread = {
            name: "begins with neither yes nor no" for name, word in said.items() if word is None
        }
        groups = scores_by_group(self.items, marks)
        scores = {subtask: self._subtask(subtask, groups[subtask]) for subtask in groups}
        figures: dict[str, Any] = {
            name: round(sum(scores[subtask] for subtask in subtasks), 6)
            for name, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION))
            if subtasks.keys() <= scores.keys()
        }
        figures |= {subtask: scores[subtask] for subtask in SIZES if subtask in scores}
        figures |= {"questions": len(marks), "parse_failures": len(unread)}
        counts = {subtask: len(group) for subtask, group in groups.items()}
        if other := {name: n for name, n in counts.items() if n != SIZES[name]}:
            figures["other_sizes"] = {name: f"{n} of {SIZES[name]}" for name, n in other.items()}
        whole = sum(scores.values()) / (200 * len(scores))
        by_category = {subtask: mean(group.values()) for subtask, group in groups.items()}
        sums = (
            BootstrapStatistic(self._terms(marks), _perception) if "perception" in figures else None
        )
        return Score(whole, by_category, counts, figures, marks, unread, sums)

    def _terms(self, marks: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
        """Return what each item adds to the questions, right answers, images and right images of perception.

        Four sums for each sub-task; an image's first question stands for the image.
        """
        subtasks = list(PERCEPTION)
        pairs: dict[str, list[Item]] = defaultdict(list)
        for item in self.items:
            pairs[item.group].append(item)
        terms: dict[str, tuple[float, ...]] = {}
        for first, second in pairs.values():
            both = min(marks[first.id], marks[second.id])
            for item, of_image in ((first, (1.0, both)), (second, (0.0, 0.0))):
                row = np.zeros((len(subtasks), 4))
                if item.category in PERCEPTION:
                    row[subtasks.index(item.category)] = 1.0, marks[item.id], *of_image
                terms[item.id] = tuple(row.flatten().tolist())
        return terms

    def _subtask(self, subtask: str, marks: Mapping[str, float]) -> float:
        """Return accuracy plus accuracy+, each times 100."""
        images: dict[str, list[float]] = defaultdict(list)
        for item in self.items:
            if item.category == subtask:
                images[item.question_type].append(marks[item.id])
        both = mean(min(pair) for pair in images.values())
        return round(to_percent(mean(marks.values())) + to_percent(both), 6)


def _perception(sums: np.ndarray) -> np.ndarray:
    """Return the sum of accuracy and accuracy+ of all sub-tasks, times 100, of sums, (draws, 4 sub-tasks)."""
    asked, right, images, both = np.moveaxis(sums.reshape(len(sums), -1, 4), -1, 0)
    shares = right / np.maximum(asked, 1) + both / np.maximum(images, 1)  # (draws, sub-tasks)
    return 100 * shares.sum(axis=-1)


def _benchmark(rows: Sequence[_Row]) -> Mme:
    """Make items of questions.

    Raises:
        InputError: A question is there twice, an image has not two, or a part of perception or cognition is missing.
    """
    met = Counter(row.id for row in rows)
    if double := [name for name, times in met.items() if times > 1]:
        raise InputError(f"these questions are there more than once: {join_names(double)}")
    pairs = Counter((row.subtask, row.image) for row in rows)
    if single := [f"{subtask}/{image}" for (subtask, image), n in pairs.items() if n != 2]:
        raise InputError(f"these images should have two questions each: {join_names(single)}")
    there = {row.subtask for row in rows}
    for name, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        lacking = subtasks.keys() - there
        if lacking and len(lacking) < len(subtasks):
            raise InputError(f"{name} is a sum over {len(subtasks)} sub-tasks; missing: {join_names(lacking)}")  # fmt: skip
    return Mme(tuple(_to_item(row) for row in rows))


def _to_item(row: _Row) -> Item:
    parts = (ImageRef(f"{row.subtask}/{row.image}"), f"\n{row.question}\n{SHORT_ANSWER}")
    asked = Conversation(row.id, (Turn("user", parts),))
    unit = f"{row.subtask}/{row.image}"
    return Item(row.id, row.subtask, row.image, asked, (row.truth,), group=unit)


def _read_folder(folder: Path) -> list[_Row]:
    """Read MME's own folder of images and questions, or a folder with a file for each sub-task.

    Raises:
        InputError: It is neither, or a line is broken.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected {_WANTED}")
    rows: list[_Row] = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".txt":
            rows += _read_lines(path, _subtask(path.stem, path))
        elif path.is_dir() and path.name in SIZES:
            rows += _read_subtask_folder(path)
    if not rows:
        raise InputError(f"{folder} holds no questions; expected {_WANTED}")
    return rows


def _subtask(name: str, path: Path) -> str:
    if name not in SIZES:
        raise InputError(f"{path}: {UnknownNameError('sub-task', name, SIZES)}")
    return name


def _read_lines(path: Path, subtask: str) -> Iterable[_Row]:
    """Read the lines of a sub-task: image, question, truth, and the answer where there is one."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t", 3)
        if len(cells) < 3:
            raise InputError(
                f"{path}:{number} should be image, question, truth and answer with tabs between, got {line[:60]!r}"
            )
        truth = _truth(cells[2], f"{path}:{number}")
        yield _Row(subtask, cells[0], cells[1], truth, cells[3] if len(cells) > 3 else None)


def _read_subtask_folder(folder: Path) -> Iterable[_Row]:
    """Read the two lines of question and truth beside every image of MME's release."""
    inner = folder / "questions_answers_YN"
    image_folder = folder / "images" if inner.is_dir() else folder
    images = {path.stem: path for path in image_folder.iterdir() if path.suffix != ".txt"}
    for path in sorted((inner if inner.is_dir() else folder).glob("*.txt")):
        if path.stem not in images:
            raise InputError(f"{path} has no image of its name in {image_folder}")
        for number, line in enumerate(read_text(path).strip().split("\n"), start=1):
            question, tab, truth = line.strip().rpartition("\t")
            where = f"{path}:{number}"
            if not tab:
                raise InputError(
                    f"{where} should be question and truth with a tab between, got {line[:60]!r}"
                )
            image = str(images[path.stem].relative_to(folder))
            yield _Row(folder.name, image, question.strip(), _truth(truth, where))


def _truth(text: str, where: str) -> str:
    word = text.strip().lower()
    if word not in ("yes", "no"):
        raise InputError(f"{where}: the truth should be Yes or No, got {text!r}")
    return word


def load_questions(sources: Sources) -> Mme:
    """Read the questions with their truth.

    Raises:
        UsageError: No folder was given.
        InputError: It is broken, or not whole.
    """
    given = sources.annotations or sources.questions
    if given is None:
        raise UsageError(f"this task needs --truth, {_WANTED}")
    return _benchmark(_read_folder(given))


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score a folder of answers as MME has them, or LLaVA's JSON lines.

    Raises:
        UsageError: JSON lines came without the truth.
        InputError: A file is missing or broken, or answers and questions do not belong together.
    """
    given = sources.annotations or sources.questions
    wanted = _read_folder(given) if given else None
    if answers.is_dir() and any(answers.glob("*.txt")):
        rows = _read_folder(answers)
        if silent := [row.id for row in rows if row.answer is None]:
            raise InputError(f"{answers} has {len(silent)} lines without an answer: {join_names(silent)}")  # fmt: skip
        benchmark = _benchmark(rows)
        if wanted is None:
            return benchmark.score({row.id: row.answer or "" for row in rows})
        _check_truths(rows, wanted)
        keyed = {row.key: row.answer or "" for row in rows}
    elif wanted is None and answers.exists():
        raise UsageError(f"answers in JSON need --truth, {_WANTED}")
    else:
        keyed = _keyed(read_answer_list(answers))
        assert wanted is not None  # or there would be nothing to read
    ids = {row.key: row.id for row in wanted}
    texts = {ids.get(key, "/".join(key)): text for key, text in keyed.items()}
    return _benchmark(wanted).score(texts)


def _check_truths(rows: Sequence[_Row], wanted: Sequence[_Row]) -> None:
    """Refuse answers that came with another truth than the one given.

    Raises:
        InputError: They did; the message lists the questions.
    """
    truths = {row.key: row.truth for row in wanted}
    if apart := [row.id for row in rows if truths.get(row.key, row.truth) != row.truth]:
        raise InputError(f"the answers came with another truth for {join_names(apart)}")


def _keyed(answers: Sequence[AnswerRecord]) -> dict[tuple[str, str, str], str]:
    """Return LLaVA's answers by sub-task, image and question.

    Raises:
        InputError: One does not say what it answers, or two answer the same.
    """
    keyed: dict[tuple[str, str, str], str] = {}
    for answer in answers:
        subtask, slash, image = answer.id.partition("/")
        if ": " in image and not answer.prompt:  # as this benchmark's own items are called
            image, _, prompt = image.partition(": ")
        else:
            prompt = answer.prompt
        if not slash or not prompt:
            raise InputError(
                f"{answer.where} should have a question_id such as existence/000000006040.jpg and the question as "
                "prompt, since two questions share each id"
            )
        key = _key(_subtask(subtask, Path(answer.where)), image, prompt)
        if key in keyed:
            raise InputError(f"{answer.where} answers {answer.id} a second time: {prompt!r}")
        keyed[key] = answer.text
    return keyed


MME = BenchmarkSpec(
    name="mme",
    title="MME",
    measures="perception (things, places, people, writing) and cognition (arithmetic, code, translation) by yes and no",
    description="2,374 questions in 14 sub-tasks, two about each picture "
    "(github.com/BradyFU/Awesome-Multimodal-Large-Language-Models)",
    chance={"perception": 750.0, "cognition": 300.0},
    primary_metric="perception",
    required_files="none where the answers are MME's folder of existence.txt and so on; JSON lines need --truth MME_FOLDER",
    load=load_questions,
    score_answer_files=score_answer_files,
)
