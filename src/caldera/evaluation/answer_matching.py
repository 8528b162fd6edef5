"""Matching of answers to a benchmark's items: by id, else by question, image and choices, else by verified order.

Toolkits number the questions of a benchmark differently, so an id counts only if the questions that the file repeats
are those of the items. Nothing is guessed: an answer that matches no question, or several, is an error.
"""

import ast
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from caldera.errors import InputError
from caldera.evaluation.answer_files import ID_KEYS, AnswerRecord, texts_by_id
from caldera.evaluation.answer_parsing import LETTERS
from caldera.evaluation.files import join_names

if TYPE_CHECKING:
    from caldera.evaluation.benchmark import Item

log = logging.getLogger(__name__)

_IMAGE_KEYS = (
    "image_path", "image", "image_source", "image_name", "file_name", "imageId", "image_id",
)  # fmt: skip
"""Fields that may name the image."""

_REFERENCE_KEYS = ("answer", "answers", "target", "gold", "ground_truth", "label", "references")
"""Fields of the correct answer; the field of the model's answer is not among a record's fields."""

_NUM_COMPARED = 500
"""Records whose questions are compared with those of their ids."""

_MAX_NAME = 255
"""Characters of a file name; longer fields are images in base64."""

_IMAGE_MARK = re.compile(r"<image(?: \d)?>|\(\w+ \d\)")
"""Marks of images in MMMU's files, and what the prompts have in their place."""

_OPTION = re.compile(r"\(?A[.:)]\s|Options:")
_INSTRUCTION = re.compile(
    r"(?:^|\s+)(?:Reference OCR token:|Please answer |Answer the question |Answer with ).*"
)
"""An instruction or OCR words on a line, also after the question."""


def extract_question(prompt: str) -> str:
    """Return the question of a prompt, without its choices and instructions."""
    lines: list[str] = []
    for line in prompt.splitlines():
        if lines and _OPTION.match(line.strip()):
            break
        if text := _INSTRUCTION.sub("", line).strip():
            lines.append(text)
    return "\n".join(lines)


def match_answers(
    records: Sequence[AnswerRecord],
    items: Sequence["Item"],
    path: Path,
    question_of: Callable[[str], str] = extract_question,
) -> dict[str, str]:
    """Return the texts of the answers in a file by item id.

    Raises:
        InputError: As by `match_records`; or ids are missing or repeated, or choices are answered by their indices.
    """
    matched = match_records(records, items, path, question_of)
    _check_no_indices(matched, items, path)
    return texts_by_id(matched, path)


def _check_no_indices(records: Sequence[AnswerRecord], items: Sequence["Item"], path: Path) -> None:
    """Check that the answers to choices are not all numbers, unless a model of a run gave them."""
    choices = {
        item.id: item.choices for item in items if item.choices or item.question_type == "choice"
    }
    answers = {
        record.id: text
        for record in records
        if record.id in choices and "failed" not in record.fields and (text := record.text.strip())
    }
    if not answers or not all(map(str.isdecimal, answers.values())):
        return
    # A choice may be a number itself.
    if 2 * sum(text in choices[name] for name, text in answers.items()) < len(answers):
        name, text = next(iter(answers.items()))
        raise InputError(
            f"{path}: all answers are numbers, the first {text} to question {name}, but choices have letters; write A "
            "for the first choice, B for the second and so on"
        )


def match_records(
    records: Sequence[AnswerRecord],
    items: Sequence["Item"],
    path: Path,
    question_of: Callable[[str], str] = extract_question,
) -> list[AnswerRecord]:
    """Return the records of a file under the ids of their items; ids of no item are kept, for the caller's check.

    Raises:
        InputError: The questions are others than those of the items, or some records match no question or several.
    """
    matcher = _Matcher(items, question_of)
    records_by_id = _without_other_splits(_with_best_ids(records, matcher.items), matcher.items)
    num_known = sum(record.id in matcher.items for record in records_by_id)
    ids_agree = num_known > 0 and matcher.questions_agree(records_by_id)
    if ids_agree and 2 * num_known >= len(records_by_id):
        return records_by_id
    if matcher.is_in_order(records):
        return [replace(record, id=item.id) for record, item in zip(records, items, strict=True)]
    matched = matcher.by_content(records, path)
    if matched is not None:
        return matched
    if num_known and not ids_agree:
        record = next(record for record in records_by_id if record.id in matcher.items)
        raise InputError(
            f"{record.location} answers {question_of(record.prompt)[:60]!r}, but question {record.id} is "
            f"{question_of(matcher.texts[record.id])[:60]!r}; are these the files of one split?"
        )
    return records_by_id


def _with_best_ids(
    records: Sequence[AnswerRecord], items: Mapping[str, "Item"]
) -> list[AnswerRecord]:
    """Return the records with the id field that has the most ids of items; the usual field if none has any."""
    ids = [record.ids for record in records]
    keys = [key for key in ID_KEYS if all(key in record_ids for record_ids in ids)]
    if not keys:
        return list(records)
    best = max(keys, key=lambda key: sum(record_ids[key] in items for record_ids in ids))
    return [
        replace(record, id=record_ids[best])
        for record, record_ids in zip(records, ids, strict=True)
    ]


def _without_other_splits(
    records: list[AnswerRecord], items: Mapping[str, "Item"]
) -> list[AnswerRecord]:
    """Return the records without those of another `split`; VLMEvalKit's table of MMMU holds two."""
    splits = {str(record.fields.get("split", "")) for record in records if record.id in items}
    others = [
        record
        for record in records
        if record.id not in items and str(record.fields.get("split", "")) not in {"", *splits}
    ]
    if not splits or not others:
        return records
    names = join_names({str(record.fields["split"]) for record in others})
    log.info("skipped %d answers to questions of another split: %s", len(others), names)
    skipped = set(map(id, others))
    return [record for record in records if id(record) not in skipped]


class _Matcher:
    """Items of a benchmark, indexed by the lines of their questions and by their images."""

    def __init__(self, items: Sequence["Item"], question_of: Callable[[str], str]) -> None:
        self.items = {item.id: item for item in items}
        self.texts = {
            item.id: item.conversation.turns[-1].text.strip() if item.conversation.turns else ""
            for item in items
        }
        self._question_of = question_of

    @cached_property
    def _words(self) -> dict[str, str]:
        return {name: normalize_words(text) for name, text in self.texts.items()}

    @cached_property
    def _by_line(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for name, text in self.texts.items():
            for line in dict.fromkeys(map(normalize_words, extract_question(text).splitlines())):
                names[line].append(name)
        return names

    @cached_property
    def _by_image(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for item in self.items.values():
            for image in dict.fromkeys(item.conversation.images):
                names[_stem(image)].append(item.id)
        return names

    def questions_agree(self, records: Sequence[AnswerRecord]) -> bool:
        """Return whether most questions of some hundred records are those of the items with their ids.

        None of the others may be the question of another item.
        """
        compared = [
            record
            for record in records[:: 1 + len(records) // _NUM_COMPARED]
            if record.id in self.items and self.texts[record.id] and self._question(record)
        ]
        others = [record for record in compared if not self._agrees(record, record.id)]
        if 2 * len(others) > len(compared):
            return False
        return not any(
            candidates and record.id not in candidates
            for record in others
            for candidates in [self._candidates(record)]
        )

    def _question(self, record: AnswerRecord) -> str:
        return normalize_words(self._question_of(record.prompt))

    def _agrees(self, record: AnswerRecord, name: str) -> bool:
        about_image = self._items_about(record, _IMAGE_KEYS)
        if about_image and name not in about_image:
            return False
        if not self._have_same_choices(record, name):
            return False
        return _has_lines_of(self.texts[name], self._question_of(record.prompt)) or _has_lines_of(
            record.prompt, self._question_of(self.texts[name])
        )

    def _have_same_choices(self, record: AnswerRecord, name: str) -> bool:
        """Return whether record and item have the same choices in the same order, or one of them none."""
        choices, item_choices = find_choices(record), self.items[name].choices
        if not choices or not item_choices:
            return True
        return [*map(normalize_words, choices)] == [*map(normalize_words, item_choices)]

    def by_content(self, records: Sequence[AnswerRecord], path: Path) -> list[AnswerRecord] | None:
        """Return the records with the ids of the items that they repeat; None if no record repeats any."""
        groups: dict[tuple[str, ...], list[AnswerRecord]] = defaultdict(list)
        for record in records:
            groups[tuple(self._candidates(record))].append(record)
        unmatched = groups.pop((), [])
        matched: list[AnswerRecord] = []
        ambiguous: list[AnswerRecord] = []
        for names, group in groups.items():
            if len(names) == 1:
                # Surplus answers to one question are then reported as duplicates.
                matched += [replace(record, id=names[0]) for record in group]
            elif len(names) == len(group):
                # Equal questions with equal correct answers: their scores do not depend on the order.
                matched += [
                    replace(record, id=name) for record, name in zip(group, names, strict=True)
                ]
            else:
                ambiguous += group
        if not matched and not _have_ids_twice(records):
            return None
        for fault, subject in ((unmatched, "no question"), (ambiguous, "several questions each")):
            if fault:
                listed = join_names(
                    f"{record.id} {self._question_of(record.prompt)[:60]!r}" for record in fault
                )
                raise InputError(
                    f"{path}: {len(fault)} answers match {subject}: {listed}; is this the right split?"
                )
        return matched

    def _candidates(self, record: AnswerRecord) -> list[str]:
        """Return the ids of the items with the question, image, choices and correct answer of a record."""
        question = self._question_of(record.prompt)
        lines = [line for line in map(normalize_words, question.splitlines()) if line]
        same_image = self._items_about(record, _IMAGE_KEYS) or self._items_about(
            record, ("question_id",)
        )
        if not lines:
            return list(same_image)
        # The others may be instructions; they must be the smaller part.
        question_lines = [line for line in lines if line in self._by_line]
        if 2 * sum(map(len, question_lines)) < sum(map(len, lines)):
            return []
        candidates = [
            name
            for name in min((self._by_line[line] for line in question_lines), key=len)
            if all(line in self._words[name] for line in question_lines)
        ]
        if same_image:
            candidates = [name for name in candidates if name in same_image]
        candidates = [name for name in candidates if self._have_same_choices(record, name)]
        if "hint" in record.fields:
            candidates = self._with_hint(candidates, str(record.fields["hint"] or ""))
        references = find_references(record)
        return [name for name in candidates if references & self._references(name)] or candidates

    def _with_hint(self, candidates: Sequence[str], hint: str) -> list[str]:
        """Return the candidates with the hint of a record and nothing more, if any has it."""
        words = normalize_words(hint)
        with_hint = [name for name in candidates if words in self._words[name]] or candidates
        shortest = min((len(self._words[name]) for name in with_hint), default=0)
        return [name for name in with_hint if len(self._words[name]) == shortest]

    def _items_about(self, record: AnswerRecord, keys: Sequence[str]) -> dict[str, None]:
        """Return the ids of the items about an image that some fields of a record name, in order."""
        values = [str(record.fields.get(key, "")) for key in keys]
        images = [_stem(value) for value in values if 0 < len(value) <= _MAX_NAME]
        return dict.fromkeys(name for image in images for name in self._by_image.get(image, ()))

    def _references(self, name: str) -> set[str]:
        return set(map(normalize_words, self.items[name].references))

    def is_in_order(self, records: Sequence[AnswerRecord]) -> bool:
        """Return whether each record repeats the question and the correct answer of the item at its place.

        Without correct answers, all questions must be different.
        """
        if len(records) != len(self.items):
            return False
        questions = {self._question_of(text) for text in self.texts.values()}
        if len(questions) < len(records) and not all(map(find_references, records)):
            return False
        for record, name in zip(records, self.items, strict=True):
            references = find_references(record)
            repeats_question = bool(self._question(record) and self.texts[name])
            if repeats_question and not self._agrees(record, name):
                return False
            if references and not references & self._references(name):
                return False
            if not references and not repeats_question:
                return False
        return True


def _have_ids_twice(records: Sequence[AnswerRecord]) -> bool:
    return len({record.id for record in records}) < len(records)


def _has_lines_of(text: str, question: str) -> bool:
    """Return whether a text has the words of each line of a question, in any order of the lines."""
    words = normalize_words(text)
    return all(normalize_words(line) in words for line in question.splitlines())


def normalize_words(text: str) -> str:
    """Return the words of a text in lower case, without marks of images and the word "Question:"."""
    normalized = unicodedata.normalize("NFKC", _IMAGE_MARK.sub(" ", text)).casefold()
    return " ".join(re.findall(r"\w+", normalized)).removeprefix("question ")


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem.casefold()


def find_choices(record: AnswerRecord) -> list[str]:
    """Return the choices that a record repeats, in their order."""
    fields = record.fields
    for key in ("choices", "options"):
        values = _parse_list(fields.get(key))
        if values:
            return values
    for keys in (LETTERS, [f"choice_{letter.lower()}" for letter in LETTERS]):
        values = [str(fields[key]) for key in keys if fields.get(key) not in (None, "", "nan")]
        if values:
            return values
    return []


def find_references(record: AnswerRecord) -> set[str]:
    """Return the words of the correct answers that a record repeats; of choices the letter."""
    value = next((record.fields[key] for key in _REFERENCE_KEYS if key in record.fields), None)
    if isinstance(value, int) and not isinstance(value, bool) and find_choices(record):
        return {LETTERS[value].casefold()} if 0 <= value < len(LETTERS) else set()
    texts = _parse_list(value) or ([str(value)] if isinstance(value, int | float | str) else [])
    return set(filter(None, map(normalize_words, texts)))


def _parse_list(value: object) -> list[str]:
    """Return the texts of a list, or of a Python list in a cell of a table; empty for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return []
    return [str(entry) for entry in value] if isinstance(value, list) else []
