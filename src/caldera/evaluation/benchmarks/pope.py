"""POPE: whether a named thing is in an image, half of the time it is not; precision and recall of yes (spec 7).

A split is a file of questions with labels, `coco_pope_random.json` and so on, whose ids start at 1. LLaVA's question
file holds all splits under ids of its own and its evaluation trusts the order; here every question is found by its
image and words, and files that do not hold the same questions are refused.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import InputError, UsageError
from caldera.evaluation.answer_parsing import is_explicit_yes_no, parse_pope_answer
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    BootstrapStatistic,
    Item,
    Score,
    Sources,
    check_answers,
    mean,
    to_percent,
)
from caldera.evaluation.files import (
    AnswerRecord,
    join_names,
    read_answer_list,
    read_records,
    require_fields,
    texts_by_id,
)
from caldera.instructions.request_phrases import SHORT_ANSWER

SPLITS = ("random", "popular", "adversarial")
"""How the absent things were chosen."""

_Key = tuple[str, str, int]
"""Image, question, and how often the two were met before."""


@dataclass(frozen=True, slots=True)
class Pope:
    """Questions of one split or of several; `kind` of an item is its split."""

    items: tuple[Item, ...]
    name: str = "pope"
    max_new_tokens: int = 16

    def score(self, answers: Mapping[str, str]) -> Score:
        """Count yes and no as POPE does; with several splits, figures are their means.

        Raises:
            InputError: Answers are missing, or belong to no question.
        """
        check_answers(self.items, answers)
        said = {item.id: parse_pope_answer(answers[item.id]) for item in self.items}
        marks = {item.id: float(said[item.id] == item.references[0]) for item in self.items}
        unread = {
            item.id: "says neither yes nor no; POPE counts it as a yes"
            for item in self.items
            if not is_explicit_yes_no(answers[item.id])
        }
        splits = {
            name: _figures([item for item in self.items if item.category == name], said)
            for name in dict.fromkeys(item.category for item in self.items)
        }
        figures: dict[str, Any] = {
            name: round(mean(split[name] for split in splits.values()), 6)
            for name in ("f1", "accuracy", "precision", "recall", "yes_ratio")
        }
        if len(splits) > 1:
            figures["splits"] = splits
        if unread:
            told = [item for item in self.items if item.id not in unread]
            figures["without_parse_failures"] = _figures(told, said)
        return Score(
            figures["f1"] / 100,
            {name: mean(marks[item.id] for item in self.items if item.category == name) for name in splits},
            dict(Counter(item.category for item in self.items)),
            figures | {"questions": len(marks), "parse_failures": len(unread)},
            marks,
            unread,
            BootstrapStatistic(_terms(self.items, said), _mean_f1),
        )  # fmt: skip


def _terms(items: Sequence[Item], said: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
    """Return what each item adds to its split's hits, false alarms and misses; three sums for each split."""
    splits = list(dict.fromkeys(item.category for item in items))
    terms = {}
    for item in items:
        pair = said[item.id], item.references[0]
        of_split = [float(pair == one) for one in (("yes", "yes"), ("yes", "no"), ("no", "yes"))]
        before = [0.0] * 3 * splits.index(item.category)
        after = [0.0] * 3 * (len(splits) - 1 - splits.index(item.category))
        terms[item.id] = (*before, *of_split, *after)
    return terms


def _mean_f1(sums: np.ndarray) -> np.ndarray:
    """Return the mean F1 of the splits, times 100, of sums, (draws, 3 splits)."""
    hits, false, missed = np.moveaxis(sums.reshape(len(sums), -1, 3), -1, 0)  # each (draws, splits)
    return 100 * (2 * hits / np.maximum(2 * hits + false + missed, 1)).mean(axis=-1)


def _figures(items: Sequence[Item], said: Mapping[str, str]) -> dict[str, float]:
    """Return the figures as papers have them: F1, accuracy, precision, recall times 100, the share of yes as it is."""
    pairs = Counter((said[item.id], item.references[0]) for item in items)
    hits, false, missed = pairs["yes", "yes"], pairs["yes", "no"], pairs["no", "yes"]
    precision = hits / (hits + false) if hits + false else 0.0
    recall = hits / (hits + missed) if hits + missed else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    total = len(items)
    return {
        "f1": to_percent(f1),
        "accuracy": to_percent((hits + pairs["no", "no"]) / total) if total else 0.0,
        "precision": to_percent(precision),
        "recall": to_percent(recall),
        "yes_ratio": round((hits + false) / total, 6) if total else 0.0,
    }


@dataclass(frozen=True, slots=True)
class _Question:
    """One line of a file of questions."""

    id: str
    image: str
    text: str
    """The question alone, without the sentence that asks for a short answer."""

    split: str
    label: str


def load_questions(sources: Sources) -> Pope:
    """Read the questions of one split, or of all in a folder, with their labels.

    Raises:
        UsageError: No file with labels was given.
        InputError: A file is missing or broken, or LLaVA's question file has other questions than the labels.
    """
    return Pope(tuple(_to_item(one) for one in _questions(sources)[0]))


def _to_item(one: _Question) -> Item:
    parts = (ImageRef(one.image), f"\n{one.text}\n{SHORT_ANSWER}")
    asked = Conversation(one.id, (Turn("user", parts),))
    return Item(one.id, one.split, "is there", asked, (one.label,))


def _questions(sources: Sources) -> tuple[list[_Question], set[str]]:
    """Return the questions with labels, under the ids of LLaVA's question file where there is one.

    Beside them, the ids that are LLaVA's for questions of splits that no labels were given for.
    """
    given = [path for path in (sources.annotations, sources.questions) if path is not None]
    files = {path: _load(path) for path in given}
    labeled = next((path for path, lines in files.items() if all(one.label for one in lines)), None)  # fmt: skip
    if labeled is None:
        raise UsageError("this task needs --truth, POPE's coco_pope_SPLIT.json or a folder of them")
    lines = files.pop(labeled)
    unlabeled_ids: set[str] = set()
    for path, asked in files.items():
        if not any(one.label for one in asked):
            splits = {one.split for one in lines}
            unlabeled_ids = {one.id for one in asked if one.split not in splits}
            lines = _join_llava_ids(lines, asked, path)
    return _make_ids_unique(lines), unlabeled_ids


def _load(path: Path) -> list[_Question]:
    """Read a file of questions, or all in a folder.

    Raises:
        InputError: A file is missing or broken, or a label is neither yes nor no.
    """
    if path.is_dir():
        files = [path / f"coco_pope_{split}.json" for split in SPLITS]
        files = [file for file in files if file.exists()] or sorted(path.glob("*_pope_*.json"))
        if not files:
            raise InputError(f"{path} holds no coco_pope_SPLIT.json")
        return [one for file in files for one in _load(file)]
    named = next((split for split in SPLITS if split in path.stem), path.stem)
    lines: list[_Question] = []
    for where, record in read_records(path):
        require_fields(record, ("question_id", "image", "text"), where)
        label = record.get("label", "")
        if "label" in record and label not in ("yes", "no"):
            raise InputError(f"{where}: the label should be yes or no, got {label!r}")
        text = record["text"].split("\n")[0].strip()
        split = record.get("category", named)
        lines.append(_Question(str(record["question_id"]), record["image"], text, split, label))
    return lines


def _index_by_content(lines: Sequence[_Question]) -> dict[tuple[str, _Key], _Question]:
    """Return questions by split, image and words."""
    met: Counter[tuple[str, str, str]] = Counter()
    keyed: dict[tuple[str, _Key], _Question] = {}
    for one in lines:
        number = met[one.split, one.image, one.text]
        keyed[one.split, (one.image, one.text, number)] = one
        met[one.split, one.image, one.text] += 1
    return keyed


def _join_llava_ids(
    lines: Sequence[_Question], asked: Sequence[_Question], path: Path
) -> list[_Question]:
    """Give the labels of POPE's file to the questions of LLaVA's, of the splits that have labels.

    Raises:
        InputError: The two do not hold the same questions.
    """
    splits = {one.split for one in lines}
    labels = _index_by_content(lines)
    wanted = {key: one for key, one in _index_by_content(asked).items() if one.split in splits}
    if apart := labels.keys() ^ wanted.keys():
        shown = {f"{split}: {image} {text!r}" for split, (image, text, _) in apart}
        raise InputError(
            f"{path} and the labels differ in {len(apart)} questions: {join_names(shown)}; give the files of one split"
        )
    return [replace(one, label=labels[key].label) for key, one in wanted.items()]


def _make_ids_unique(lines: Sequence[_Question]) -> list[_Question]:
    """Put the split before ids where several splits use the same, as POPE's own files do.

    Raises:
        InputError: An id is there more than once in a split.
    """
    met = Counter((one.split, one.id) for one in lines)
    if double := {f"{split}: {name}" for (split, name), times in met.items() if times > 1}:
        raise InputError(f"these questions are there more than once: {join_names(double)}")
    if len({one.id for one in lines}) == len(lines):
        return list(lines)
    return [replace(one, id=f"{one.split}/{one.id}") for one in lines]


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score a file of answers, or a folder with one for each split.

    Raises:
        UsageError: No file with labels was given.
        InputError: A file is missing or broken, or answers and questions do not belong together.
    """
    questions, unlabeled_ids = _questions(sources)
    texts: dict[str, str] = {}
    if answers.is_dir():
        by_split: dict[str, list[AnswerRecord]] = defaultdict(list)
        for file in sorted(answers.iterdir()):
            if file.suffix in (".json", ".jsonl"):
                split = next((split for split in SPLITS if split in file.stem), "")
                by_split[split] += read_answer_list(file)
        for split, given in by_split.items():
            wanted = [one for one in questions if not split or one.split == split]
            texts |= _texts(given, wanted, answers)
    else:
        texts = _texts(read_answer_list(answers), questions, answers)
    kept = {name: text for name, text in texts.items() if name not in unlabeled_ids}
    score = Pope(tuple(map(_to_item, questions))).score(kept)
    if len(kept) == len(texts):
        return score
    left = {"answers_to_splits_without_labels": len(texts) - len(kept)}
    return replace(score, metrics=score.metrics | left)


def _texts(
    answers: Sequence[AnswerRecord], questions: Sequence[_Question], path: Path
) -> dict[str, str]:
    """Return the texts of answers by the ids of the questions they answer.

    LLaVA's ids are not POPE's, and POPE's own answers have none: they are then taken in order, if each of them repeats
    its question and all of them are equal.

    Raises:
        InputError: They do not belong together.
    """
    by_id = {one.id.removeprefix(f"{one.split}/"): one for one in questions}
    ids = {answer.id for answer in answers}
    if ids & by_id.keys() or not all(answer.prompt for answer in answers):
        texts = texts_by_id(answers, path)
        pairs = [(answer, by_id[answer.id]) for answer in answers if answer.id in by_id]
        renamed = {by_id[name].id if name in by_id else name: text for name, text in texts.items()}
    else:
        if len(answers) != len(questions):
            raise InputError(
                f"{path} has {len(answers)} answers to {len(questions)} questions, under other ids; give the files "
                "of one split, and LLaVA's question file as --questions"
            )
        pairs = list(zip(answers, questions, strict=True))
        renamed = {one.id: answer.text for answer, one in pairs}
    for answer, one in pairs:
        if answer.prompt and answer.prompt.split("\n")[0].strip() != one.text:
            raise InputError(
                f"{answer.where} answers {answer.prompt.split(chr(10))[0]!r}, but question {one.id} is {one.text!r}; "
                "are these the files of one split?"
            )
    return renamed


POPE = BenchmarkSpec(
    name="pope",
    title="POPE",
    measures="whether the model sees things that are not there",
    description="3 splits of 3,000 questions about 500 COCO val2014 pictures; LLaVA's random split has 2,910 "
    "(github.com/AoiDragon/POPE)",
    chance={"accuracy": 50.0, "f1": 50.0},
    primary_metric="f1",
    required_files="--truth coco_pope_SPLIT.json or their folder; --questions LLaVA's question file where ids are LLaVA's",
    default_files=Sources(annotations=Path("coco"), images=Path("val2014")),
    load=load_questions,
    score_answer_files=score_answer_files,
)
