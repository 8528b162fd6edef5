"""POPE: is a named object in an image? Half of the questions name an absent object; F1 of yes.

A split is a file of questions with labels, `coco_pope_random.json` and so on, with ids from 1. LLaVA's question file
holds all splits under ids of its own, and its evaluation relies on the order; here every question is found by its image
and text, and files with different questions are rejected. Until 2023 POPE's questions ended with "in the imange?" after
"an", as they do in LLaVA's file; for matching both spellings are the same, and the text of the file is asked.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from caldera.errors import InputError, UsageError
from caldera.evaluation.answer_files import AnswerRecord, answer_files_in, texts_by_id
from caldera.evaluation.answer_matching import extract_question, find_references, match_answers
from caldera.evaluation.answer_parsing import is_explicit_yes_no, parse_pope_answer
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    BootstrapStatistic,
    Item,
    Score,
    ScoredItems,
    Sources,
    mean,
    score_items,
    to_percent,
)
from caldera.evaluation.benchmarks.short_answers import question_turn
from caldera.evaluation.files import (
    find_repeated,
    join_names,
    read_records,
    require_fields,
    require_texts,
)
from caldera.instructions.request_phrases import SHORT_ANSWER

SPLITS = ("random", "popular", "adversarial")
"""Ways in which the absent objects were chosen."""

_QuestionKey = tuple[str, str, str, int]
"""Split, image, question, and number of earlier occurrences of the three."""


def _score(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Count yes and no as POPE does; metrics are means over the splits."""
    parsed = {item.id: parse_pope_answer(answers[item.id]) for item in items}
    scores = {item.id: float(parsed[item.id] == item.references[0]) for item in items}
    unparsed = {
        item.id: "no yes or no that POPE recognizes; it counts as a yes"
        for item in items
        if not is_explicit_yes_no(answers[item.id])
    }
    score = score_items(items, scores, unparsed)
    splits = {
        name: _split_metrics([item for item in items if item.category == name], parsed)
        for name in score.counts
    }
    metrics: dict[str, Any] = {
        name: round(mean(split[name] for split in splits.values()), 6)
        for name in ("f1", "accuracy", "precision", "recall", "yes_ratio")
    }
    if len(splits) > 1:
        metrics["splits"] = splits
    if unparsed:
        explicit = [item for item in items if item.id not in unparsed]
        metrics["without_parse_failures"] = _split_metrics(explicit, parsed)
    return replace(
        score,
        overall=metrics["f1"] / 100,
        metrics=metrics | {"questions": len(scores), "parse_failures": len(unparsed)},
        statistic=BootstrapStatistic(_summands(items, parsed), _mean_f1),
    )


def _summands(items: Sequence[Item], parsed: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
    """Return each item's summands: true positives, false positives and false negatives, three sums per split."""
    splits = list(dict.fromkeys(item.category for item in items))
    summands = {}
    for item in items:
        outcome = parsed[item.id], item.references[0]
        row = np.zeros((len(splits), 3))
        row[splits.index(item.category)] = [
            outcome == pair for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes"))
        ]
        summands[item.id] = tuple(row.flatten().tolist())
    return summands


def _mean_f1(sums: np.ndarray) -> np.ndarray:
    """Return the splits' mean F1, times 100, from sums, (resamples, 3 splits)."""
    # Each (resamples, splits).
    hits, false_positives, misses = np.moveaxis(sums.reshape(len(sums), -1, 3), -1, 0)
    return 100 * (2 * hits / np.maximum(2 * hits + false_positives + misses, 1)).mean(axis=-1)


def _split_metrics(items: Sequence[Item], parsed: Mapping[str, str]) -> dict[str, float]:
    """Return F1, accuracy, precision and recall times 100, and the fraction of yes, as papers print them."""
    pairs = Counter((parsed[item.id], item.references[0]) for item in items)
    hits, false_positives, misses = pairs["yes", "yes"], pairs["yes", "no"], pairs["no", "yes"]
    precision = hits / (hits + false_positives) if hits + false_positives else 0.0
    recall = hits / (hits + misses) if hits + misses else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    total = len(items)
    return {
        "f1": to_percent(f1),
        "accuracy": to_percent((hits + pairs["no", "no"]) / total) if total else 0.0,
        "precision": to_percent(precision),
        "recall": to_percent(recall),
        "yes_ratio": round((hits + false_positives) / total, 6) if total else 0.0,
    }


@dataclass(frozen=True, slots=True)
class _Question:
    """One line of a question file."""

    id: str
    image: str
    text: str
    """The question without the instruction to answer briefly, in the usual spelling."""

    prompt: str
    """The question as it is asked."""

    split: str
    label: str


def load_questions(sources: Sources) -> ScoredItems:
    """Load the questions of one split, or of all in a folder, with their labels; an item's category is its split."""
    return _to_benchmark(_load_labeled(sources)[0])


def _to_benchmark(questions: Sequence[_Question]) -> ScoredItems:
    items = [
        Item(
            id=question.id,
            category=question.split,
            question_type="is there",
            conversation=question_turn(question.id, question.image, question.prompt),
            references=(question.label,),
        )
        for question in questions
    ]
    return ScoredItems("pope", items, _score)


def _load_labeled(sources: Sources) -> tuple[list[_Question], set[str]]:
    """Return the labeled questions, under the ids of LLaVA's question file if it was given.

    The second result is LLaVA's ids of questions of splits without labels.
    """
    paths = [path for path in (sources.annotations, sources.questions) if path is not None]
    files = {path: _load(path) for path in paths}
    labeled_path = next(
        (path for path, questions in files.items() if all(line.label for line in questions)), None
    )
    if labeled_path is None:
        raise UsageError(
            "this benchmark needs --annotations, POPE's coco_pope_SPLIT.json or a folder of them"
        )
    labeled = files.pop(labeled_path)
    unlabeled_ids: set[str] = set()
    for path, questions in files.items():
        if not any(question.label for question in questions):
            splits = {question.split for question in labeled}
            unlabeled_ids = {line.id for line in questions if line.split not in splits}
            labeled = _join_llava_ids(labeled, questions, path)
    return _make_ids_unique(labeled), unlabeled_ids


def _load(path: Path) -> list[_Question]:
    """Load a question file, or all in a folder."""
    if path.is_dir():
        files = [path / f"coco_pope_{split}.json" for split in SPLITS]
        files = [file for file in files if file.exists()] or sorted(path.glob("*_pope_*.json"))
        if not files:
            raise InputError(f"{path} holds no coco_pope_SPLIT.json")
        return [question for file in files for question in _load(file)]
    default_split = next((split for split in SPLITS if split in path.stem), path.stem)
    questions: list[_Question] = []
    for location, record in read_records(path):
        require_fields(record, ("question_id",), location)
        require_texts(record, ("image", "text"), location)
        label = record.get("label", "")
        if "label" in record and label not in ("yes", "no"):
            raise InputError(f"{location}: the label should be yes or no, got {label!r}")
        text = record["text"].split("\n")[0].strip()
        # LLaVA's questions include the instruction, and have no label.
        prompt = f"{text}\n{SHORT_ANSWER}" if label else record["text"]
        split = record.get("category", default_split)
        name = str(record["question_id"])
        questions.append(_Question(name, record["image"], _respell(text), prompt, split, label))
    return questions


def _respell(text: str) -> str:
    """Return a question with "imange" spelled "image"."""
    return text.replace("imange", "image")


def _index_by_content(questions: Sequence[_Question]) -> dict[_QuestionKey, _Question]:
    """Return questions by split, image and text."""
    occurrences: Counter[tuple[str, str, str]] = Counter()
    index: dict[_QuestionKey, _Question] = {}
    for question in questions:
        content = question.split, question.image, question.text
        index[*content, occurrences[content]] = question
        occurrences[content] += 1
    return index


def _join_llava_ids(
    labeled: Sequence[_Question], questions: Sequence[_Question], path: Path
) -> list[_Question]:
    """Return LLaVA's questions of the labeled splits, with the labels of POPE's file."""
    splits = {question.split for question in labeled}
    labels = _index_by_content(labeled)
    index = _index_by_content([line for line in questions if line.split in splits])
    if different := labels.keys() ^ index.keys():
        names = {f"{split}: {image} {text!r}" for split, image, text, _ in different}
        raise InputError(
            f"{path} and the labels differ in {len(different)} questions: {join_names(names)}; give the files of one "
            "split"
        )
    return [replace(question, label=labels[key].label) for key, question in index.items()]


def _make_ids_unique(questions: Sequence[_Question]) -> list[_Question]:
    """Prefix ids with the split if several splits use the same, as POPE's own files do."""
    if repeated := find_repeated(f"{question.split}: {question.id}" for question in questions):
        raise InputError(f"these questions occur more than once: {join_names(repeated)}")
    if len({question.id for question in questions}) == len(questions):
        return list(questions)
    return [replace(question, id=f"{question.split}/{question.id}") for question in questions]


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score a file of answers, or a folder with one for each split."""
    files = answer_files_in(answers) if answers.is_dir() else [answers]
    by_file = {
        file: [
            replace(record, prompt=_respell(record.prompt)) for record in sources.read_answers(file)
        ]
        for file in files
    }
    records = [record for file_records in by_file.values() for record in file_records]
    if all(record.prompt and "category" in record.fields for record in records):
        return _score_toolkit_answers(sources, records, answers)
    questions, unlabeled_ids = _load_labeled(sources)
    by_split: dict[str, list[AnswerRecord]] = defaultdict(list)
    for file, file_records in by_file.items():
        split = next((split for split in SPLITS if split in file.stem), "")
        by_split[split if answers.is_dir() else ""] += file_records
    texts: dict[str, str] = {}
    for split, split_records in by_split.items():
        split_questions = [line for line in questions if not split or line.split == split]
        texts |= _match_answers(split_records, split_questions, answers)
    labeled = {name: text for name, text in texts.items() if name not in unlabeled_ids}
    return _with_skipped(_to_benchmark(questions).score(labeled), len(texts) - len(labeled))


def _with_skipped(score: Score, num_skipped: int) -> Score:
    """Add the number of answers to questions without labels to the metrics."""
    if not num_skipped:
        return score
    skipped = {"answers_to_splits_without_labels": num_skipped}
    return replace(score, metrics=score.metrics | skipped)


def _score_toolkit_answers(sources: Sources, records: Sequence[AnswerRecord], path: Path) -> Score:
    """Score answers of VLMEvalKit or lmms-eval, which repeat question, split and label.

    VLMEvalKit asks a question of several splits once and joins their names by commas. Without POPE's files, the labels
    of the answers are used.
    """
    by_split: dict[str, list[AnswerRecord]] = defaultdict(list)
    for record in records:
        for split in str(record.fields["category"]).split(","):
            by_split[split.strip()].append(record)
    if sources.has_official_files:
        questions, _ = _load_labeled(sources)
    else:
        for split_records in by_split.values():
            texts_by_id(split_records, path)  # ids must differ
        questions = [
            _from_answer(record, split)
            for split, split_records in by_split.items()
            for record in split_records
        ]
    texts: dict[str, str] = {}
    for split in dict.fromkeys(question.split for question in questions):
        by_id = {
            line.id.removeprefix(f"{split}/"): line for line in questions if line.split == split
        }
        items = _to_benchmark(
            [replace(line, id=name, prompt=line.text) for name, line in by_id.items()]
        ).items
        matched = match_answers(by_split.pop(split, []), items, path)
        texts |= {by_id[name].id if name in by_id else name: text for name, text in matched.items()}
    return _with_skipped(_to_benchmark(questions).score(texts), sum(map(len, by_split.values())))


def _from_answer(record: AnswerRecord, split: str) -> _Question:
    """Return the question that an answer repeats, with its label."""
    labels = find_references(record) & {"yes", "no"}
    if len(labels) != 1:
        raise UsageError(
            f"{record.location} repeats no label, yes or no; give --annotations, POPE's coco_pope_SPLIT.json or a "
            "folder of them"
        )
    image = str(record.fields.get("image_source", record.fields.get("image_path", "")))
    name, text = f"{split}/{record.id}", extract_question(record.prompt)
    return _Question(name, image, text, text, split, labels.pop())


def _match_answers(
    answers: Sequence[AnswerRecord], questions: Sequence[_Question], path: Path
) -> dict[str, str]:
    """Return answer texts by the id of their question.

    LLaVA's ids are not POPE's, and POPE's own answers have none: these are matched in order, provided that each repeats
    its question and all of them are equal.
    """
    by_id = {question.id.removeprefix(f"{question.split}/"): question for question in questions}
    ids = {answer.id for answer in answers}
    if ids & by_id.keys() or not all(answer.prompt for answer in answers):
        texts = texts_by_id(answers, path)
        pairs = [(answer, by_id[answer.id]) for answer in answers if answer.id in by_id]
        matched = {by_id[name].id if name in by_id else name: text for name, text in texts.items()}
    else:
        if len(answers) != len(questions):
            raise InputError(
                f"{path} has {len(answers)} answers to {len(questions)} questions, under other ids; give the files "
                "of one split, and LLaVA's question file as --questions"
            )
        pairs = list(zip(answers, questions, strict=True))
        matched = {question.id: answer.text for answer, question in pairs}
    for answer, question in pairs:
        prompt = answer.prompt.split("\n")[0]
        if answer.prompt and prompt.strip() != question.text:
            raise InputError(
                f"{answer.location} answers {prompt!r}, but question {question.id} is {question.text!r}; are these the "
                "files of one split?"
            )
    return matched


POPE = BenchmarkSpec(
    name="pope",
    title="POPE",
    measures="whether the model hallucinates objects that are not in the image",
    description="3 splits of 3,000 questions about 500 COCO val2014 images; LLaVA's random split has 2,910 "
    "(github.com/AoiDragon/POPE)",
    chance={"accuracy": 50.0, "f1": 50.0},
    primary_metric="f1",
    required_files="--annotations coco_pope_SPLIT.json or their folder; --questions LLaVA's question file if ids are "
    "LLaVA's",
    default_files=Sources(annotations=Path("coco"), images=Path("val2014")),
    load=load_questions,
    score_official_files=score_answer_files,
)
