"""A data file in, its figures out: sizes, lengths, how questions begin, which objects answers name."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from caldera.conversation import Conversation, from_record
from caldera.datasets.balancing import noun_phrases
from caldera.errors import InputError
from caldera.files.records import read_records
from caldera.files.skipped import SkippedItems
from caldera.instructions.dialogues import Kind

FIRST_WORDS = 3
"""So many words of a question make its beginning."""

NO_OBJECTS = {
    "yes", "no", "none", "nothing", "neither", "left", "right", "middle", "top", "bottom", "side", "front", "back",
    "background", "foreground", "centre", "center", "picture", "image", "photo", "photograph", "scene", "view", "way",
    "kind", "number", "count", "answer", "question",
}  # fmt: skip
"""Nouns of answers that name nothing in an image; nor do single letters, which name choices."""

_KINDS = frozenset(get_args(Kind))
_WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}-][^\W_]+)*")


@dataclass(slots=True)
class Histogram:
    """How often each length comes."""

    counts: Counter[int] = field(default_factory=Counter)

    def quantile(self, share: float) -> int:
        """Return the length that this share of all is no longer than; 0 of none."""
        wanted, met = share * self.counts.total(), 0
        for length in sorted(self.counts):
            met += self.counts[length]
            if met >= wanted:
                return length
        return 0

    @property
    def mean(self) -> float:
        """The mean length; 0 of none."""
        total = self.counts.total()
        return sum(length * count for length, count in self.counts.items()) / total if total else 0.0  # fmt: skip

    def summary(self) -> dict[str, float]:
        """Return mean, quartiles and extremes."""
        return {
            "mean": round(self.mean, 2),
            **{f"{share}%": self.quantile(share / 100) for share in (5, 25, 50, 75, 95)},
            "longest": max(self.counts, default=0),
        }


@dataclass(slots=True)
class KindStatistics:
    """Of the records of one kind."""

    records: int = 0
    answers: int = 0
    words: int = 0
    """Of all answers."""

    objects: Counter[str] = field(default_factory=Counter)
    """In how many records an answer names an object: the last word of a noun phrase."""

    def as_dict(self) -> dict[str, object]:
        """Return means and the objects named most."""
        return {
            "records": self.records,
            "answers": self.answers,
            "words per answer": round(self.words / max(1, self.answers), 2),
            "objects per record": round(self.objects.total() / max(1, self.records), 2),
            "different objects": len(self.objects),
            "objects": dict(self.objects.most_common(12)),
        }


@dataclass(slots=True)
class DatasetStatistics:
    """What a data file is made of."""

    records: int = 0
    bad: int = 0
    images: Counter[str] = field(default_factory=Counter)
    """In how many places each image is shown."""

    ids: Counter[str] = field(default_factory=Counter)
    images_per_record: Histogram = field(default_factory=Histogram)
    """Images of a record."""

    turns_per_record: Histogram = field(default_factory=Histogram)
    """Questions of a record."""

    question_words: Histogram = field(default_factory=Histogram)
    answer_words: Histogram = field(default_factory=Histogram)
    record_words: Histogram = field(default_factory=Histogram)
    """Of all turns together, by which LLaVA groups its batches."""

    question_prefixes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """First words of questions."""

    short_answers: Counter[str] = field(default_factory=Counter)
    """Answers of at most three words."""

    kinds: dict[str, KindStatistics] = field(default_factory=lambda: defaultdict(KindStatistics))

    def add(self, conversation: Conversation) -> None:
        """Count one record."""
        self.records += 1
        self.ids[conversation.id] += 1
        self.images.update(conversation.images)
        self.images_per_record.counts[len(conversation.images)] += 1
        self.turns_per_record.counts[len(conversation.turns) // 2] += 1
        kind = self.kinds[kind_of_record(conversation.id)]
        kind.records += 1
        objects: set[str] = set()
        words = 0
        for turn in conversation.turns:
            text = turn.text
            length = len(text.split())
            words += length
            if turn.role == "user":
                self.question_words.counts[length] += 1
                if beginning := first_words(text):
                    self.question_prefixes[beginning] += 1
                continue
            self.answer_words.counts[length] += 1
            kind.answers += 1
            kind.words += length
            if length <= FIRST_WORDS:
                self.short_answers[text.strip().rstrip(".").lower()] += 1
            objects.update(objects_of(text))
        self.record_words.counts[words] += 1
        kind.objects.update(objects)

    def as_dict(self) -> dict[str, object]:
        """Return them as JSON has them."""
        return {
            "records": self.records,
            "bad": self.bad,
            "repeated ids": sum(count for count in self.ids.values() if count > 1),
            "images": len(self.images),
            "records without an image": self.images_per_record.counts[0],
            "records with several": sum(
                count for length, count in self.images_per_record.counts.items() if length > 1
            ),
            "questions of a record": self.turns_per_record.summary(),
            "words of a question": self.question_words.summary(),
            "words of an answer": self.answer_words.summary(),
            "words of a record": self.record_words.summary(),
            "first words": {
                " ".join(words): count for words, count in self.question_prefixes.most_common(50)
            },
            "short answers": dict(self.short_answers.most_common(50)),
            "kinds": {name: kind.as_dict() for name, kind in self.kinds.items()},
        }


def kind_of_record(name: str) -> str:
    """Return the kind that an id tells: `data generate` ends it with one, `data mix` begins it with the file."""
    ending = name.rpartition("-")[2].partition("#")[0]
    if ending in _KINDS:
        return ending
    source, slash, _ = name.partition("/")
    return source.partition("#")[0] if slash else "all"


def objects_of(answer: str) -> set[str]:
    """Return the objects that an answer names: the last words of its noun phrases, but for those that name none."""
    heads = {phrase.rpartition(" ")[2] for phrase in noun_phrases(answer)}
    return {head for head in heads if len(head) > 1 and head not in NO_OBJECTS}


def first_words(question: str) -> tuple[str, ...]:
    """Return the words that a question begins with, in lower case; of several lines those of the one that asks."""
    return tuple(_WORD.findall(_asked(question.strip().lower().splitlines())))[:FIRST_WORDS]


def _asked(lines: Sequence[str]) -> str:
    """Return the line that asks: the first with a question mark, else the first that says anything."""
    said = [line for line in lines if line.strip()]
    return next((line for line in said if "?" in line), said[0] if said else "")


def compute_statistics(
    file: Path,
    skips: SkippedItems,
    ignore: frozenset[str] = frozenset(),
    read: Callable[[int], None] = lambda count: None,
) -> DatasetStatistics:
    """Count what a data file is made of.

    Args:
        file: `.json` or `.jsonl`.
        skips: Takes bad records.
        ignore: Surplus fields of records to pass over.
        read: Told how many bytes were read.

    Raises:
        InputError: The file cannot be read, or too many records are bad.
    """
    figures = DatasetStatistics()
    for where, record in read_records(file, read):
        try:
            figures.add(from_record(record, where, ignore))
        except InputError as fault:
            skips.add_or_raise(where, fault)
    figures.bad = len(skips.items)
    skips.raise_if_over_limit(figures.records + figures.bad)
    return figures


@dataclass(frozen=True, slots=True)
class Branch:
    """A word at the beginning of questions, and those that go on from it."""

    word: str
    count: int
    branches: tuple["Branch", ...] = ()


def prefix_tree(
    beginnings: Iterable[tuple[tuple[str, ...], int]], most: Sequence[int]
) -> tuple[Branch, ...]:
    """Arrange beginnings as a tree, the most frequent words first.

    Args:
        beginnings: First words and how often they come.
        most: How many words are kept at each depth; what is left out is in the count of the word before.
    """
    if not most:
        return ()
    counts: Counter[str] = Counter()
    rest: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
    for words, count in beginnings:
        if words:
            counts[words[0]] += count
            rest[words[0]].append((words[1:], count))
    return tuple(
        Branch(word, count, prefix_tree(rest[word], most[1:]))
        for word, count in counts.most_common(most[0])
    )
